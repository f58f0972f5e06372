//! What the root side reads: from its socket, from its disk, from the tools.

use std::path::Path;

use patch_apply::{
    apt::{self, argv as lines, rehearse, snapshot},
    snapshots::{btrfs, lvm, snapper, zfs},
};
use patch_audit::{Expect, Filter, Reader, Start, verify};
use patch_types::{
    Architecture, Event, PackageName, PackageVersion, Plan, RehearsalReport, TakenBack,
    executor::{MAX_FRAME, Reply, Request, RequestBody, RootStatus, body_length, decode, encode},
    operation::{Install, PackageSpec, Remove, Update},
};

use crate::text;

/// A frame of the executor's socket, prefix and all; and what both ends make of its body.
pub fn frames(bytes: &[u8]) {
    let body = match bytes.split_first_chunk::<4>() {
        Some((prefix, rest)) => match body_length(*prefix) {
            Ok(length) => {
                assert!(length <= MAX_FRAME, "{length} bytes would be allocated");
                rest.get(..length).unwrap_or(bytes)
            }
            Err(_) => bytes,
        },
        None => bytes,
    };
    if let Ok(request) = decode::<Request>(body) {
        if let RequestBody::Change { operation, .. } | RequestBody::Plan { operation } = &request.body {
            let _ = operation.check();
        }
        let frame = encode(&request).expect("what came in a frame fits into one");
        let again = frame.get(4..).and_then(|body| decode::<Request>(body).ok());
        assert_eq!(again.as_ref(), Some(&request));
    }
    let _ = decode::<Reply>(body);
}

/// The event file and the root side's status, as the daemon follows them.
pub fn events(bytes: &[u8]) {
    for line in text(bytes).lines() {
        if let Ok(event) = Event::parse(line) {
            let again = serde_json::to_string(&event).expect("it can be written");
            assert!(!again.contains('\n'), "an event of two lines");
            assert!(Event::parse(&again).is_ok(), "{again}");
        }
    }
    let _ = serde_json::from_slice::<RootStatus>(bytes);
}

/// A change's journal.
pub fn journal(bytes: &[u8]) {
    if let Some(again) = patch_executor::journal(bytes) {
        assert_eq!(patch_executor::journal(&again).as_ref(), Some(&again), "it changes by being read");
    }
}

/// `ceiling.yaml`.
pub fn ceiling(bytes: &[u8]) {
    if let Err(why) = patch_executor::ceiling(&text(bytes)) {
        assert!(!why.is_empty(), "a refusal without a word");
    }
}

/// The record of the way back, what the change left, and the versions that were taken back.
pub fn way_back(bytes: &[u8]) {
    if let Ok(record) = serde_json::from_slice::<snapshot::Snapshot>(bytes) {
        let _ = record.way_back();
        for affected in &record.affected {
            for conffile in &affected.conffiles {
                let _ = apt::files::from_text(&conffile.path);
            }
        }
    }
    let _ = serde_json::from_slice::<snapshot::After>(bytes);
    let _ = serde_json::from_slice::<Vec<TakenBack>>(bytes);
    let path = apt::files::from_text(&text(bytes));
    let _ = apt::files::to_text(&path);
    // Whatever a path's bytes are, they survive the record.
    assert_eq!(apt::files::from_text(&apt::files::to_text(bytes)), bytes);
}

/// The audit trail.
pub fn audit(bytes: &[u8]) {
    for start in [Start::Genesis, Start::Anything] {
        let _ = verify(bytes, &Expect { start, head: None }).expect("memory can be read");
    }
    let _ = Reader::new(bytes).tail(10, &Filter::default()).expect("memory can be read");
}

/// What a rehearsal prints and tells, all of which a maintainer script may have written, and the report of it.
pub fn rehearsal(bytes: &[u8]) {
    const MOST: usize = 4096;
    let heard = rehearse::lines(bytes, MOST);
    let mut listener = rehearse::Listener::default();
    for (line, again) in &heard {
        assert!(!line.contains(['\n', '\r']), "{line:?} is no line");
        // What is not UTF-8 is written as three bytes for each.
        assert!(line.len() <= 3 * MOST + "…".len(), "a line of {} bytes", line.len());
        listener.hear(line);
        if let Some(again) = again {
            let once_more = rehearse::lines(again.as_bytes(), usize::MAX);
            assert_eq!(once_more.first().and_then(|(_, again)| again.as_ref()), Some(again), "it changes");
        }
    }
    assert!(listener.last_words().len() <= 1 << 20, "the last words are without end");
    let (findings, conffiles) = listener.end();
    assert!(findings.len() <= heard.len() && conffiles.len() <= heard.len(), "more is found than was said");
    let lengths = findings.iter().map(|finding| {
        finding.message.len()
            + finding.package.as_ref().map_or(0, String::len)
            + finding.output.concat().len()
    });
    let told = lengths.sum::<usize>() + conffiles.concat().len();
    assert!(told <= 256 << 10, "{told} bytes are told");
    let report = RehearsalReport { findings, conffiles, ..RehearsalReport::not_rehearsed("") };
    let text = serde_json::to_vec(&report).expect("it can be written");
    assert_eq!(serde_json::from_slice::<RehearsalReport>(&text).ok(), Some(report));
    let _ = serde_json::from_slice::<RehearsalReport>(bytes);
}

/// The tape archives and lists of hashes in a package.
pub fn archive(bytes: &[u8]) {
    let _ = apt::read_members(bytes);
}

/// What apt announces to the hook under its lock.
pub fn hook(bytes: &[u8]) {
    if let Ok(announced) = apt::hook::parse(bytes) {
        let _ = apt::hook::compare(&announced, &[]);
    }
}

/// Names and versions: whatever passes can neither be an option nor reach a shell.
pub fn names(bytes: &[u8]) {
    let all = text(bytes);
    for word in all.split('\n') {
        if let Ok(name) = word.parse::<PackageName>() {
            assert_eq!(name.as_str(), word);
            assert!(harmless(word, b"+-.:"), "{word:?}");
        }
        if let Ok(version) = word.parse::<PackageVersion>() {
            assert_eq!(version.as_str(), word);
            assert!(harmless(word, b"+-.:~"), "{word:?}");
        }
        if word.parse::<Architecture>().is_ok() {
            assert!(harmless(word, b"-"), "{word:?}");
        }
    }
}

fn harmless(word: &str, besides: &[u8]) -> bool {
    !word.is_empty()
        && word.len() <= 256
        && !word.contains("..")
        && word.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        && word.bytes().all(|b| b.is_ascii_alphanumeric() || besides.contains(&b))
}

/// Command lines with whatever a client can name: every operand stands behind `--`, and nothing that a client sent
/// stands before it.
pub fn argv(bytes: &[u8]) {
    let all = text(bytes);
    let mut packages: Vec<PackageSpec> = Vec::new();
    for word in all.split('\n') {
        let (name, version) = word.split_once('=').map_or((word, None), |(n, v)| (n, Some(v)));
        let Ok(name) = name.parse::<PackageName>() else { continue };
        packages.push(PackageSpec { name, version: version.and_then(|v| v.parse().ok()) });
    }
    let root = Path::new("/");
    let names: Vec<PackageName> = packages.iter().map(|p| p.name.clone()).collect();
    let words: Vec<String> = packages.iter().map(|p| p.name.to_string()).collect();
    let mut made = Vec::new();
    if let Some(first) = packages.first() {
        for (purge, autoremove) in [(false, false), (true, true)] {
            let remove = Remove { name: first.name.clone(), purge, autoremove };
            made.push((1, lines::simulate(root, &lines::Task::Remove(remove))));
        }
        let update = Update { name: first.name.clone(), version: first.version.clone() };
        made.push((1, lines::apply(root, &lines::Task::Update(update), 9, None)));
        made.push((1, lines::policy(root, &first.name)));
        made.push((1, lines::hold(root, &first.name, true)));
        let install = |yes| Install {
            packages: packages.clone(),
            no_recommends: yes,
            allow_downgrade: yes,
            reinstall: yes,
        };
        made.push((packages.len(), lines::simulate(root, &lines::Task::Install(install(false)))));
        made.push((packages.len(), lines::apply(root, &lines::Task::Install(install(true)), 9, None)));
        let some = packages.iter().map(|p| (p.name.clone(), p.version.clone())).collect();
        let some = lines::Task::UpgradeSome { packages: some, allow_removals: false };
        made.push((packages.len(), lines::simulate(root, &some)));
        made.push((words.len(), lines::mark_auto(root, &names)));
        made.push((words.len(), lines::mark_manual(root, &names)));
        made.push((words.len(), lines::discard(root, &words, true)));
        made.push((words.len(), lines::mark(root, &words, true)));
        made.extend(lines::select(root, &words, &all).map(|argv| (words.len(), argv)));
        made.extend(lines::select(root, &words, "hold").map(|argv| (words.len(), argv)));
    }
    for (operands, argv) in made {
        let separator = argv.args.iter().position(|arg| arg == "--").expect("a separator");
        let (before, behind) = argv.args.split_at(separator);
        assert_eq!(behind.len(), operands + 1, "{argv}");
        for arg in before {
            // `remove` and the like are verbs; a client's word would have to be one of them.
            let ours = arg.starts_with('-') || arg.contains('=') || VERBS.contains(&arg.as_str());
            assert!(ours, "{arg:?} of {argv}");
        }
        assert!(behind.iter().skip(1).all(|arg| !arg.starts_with('-')), "{argv}");
    }
    if let Ok(plan) = serde_json::from_str::<Plan>(&all) {
        for word in lines::archives(&plan) {
            assert!(harmless(&word.replace('=', ":"), b"+-.:~"), "{word:?}");
        }
    }
}

/// Words of ours that stand before the separator and are no options.
const VERBS: &[&str] = &["install", "remove", "purge", "policy", "hold", "unhold", "auto", "manual"];

/// The kernel's list of mounts, and what the tools of file systems print.
pub fn snapshots(bytes: &[u8]) {
    let text = text(bytes);
    let mounts = patch_apply::snapshots::mounts(&text);
    if let Ok(system) = patch_apply::snapshots::system(&mounts) {
        assert!(
            system.members.iter().all(|member| member.family() == system.family()),
            "a system is torn apart"
        );
    }
    let _ = (btrfs::parse_list(&text), btrfs::parse_show(&text), btrfs::parse_default(&text));
    let _ = (snapper::parse_number(&text), snapper::parse_list(&text, "job"));
    let _ = (lvm::parse_list(&text), lvm::parse_fullness(&text));
    for name in zfs::parse_list(&text) {
        if let Some(argv) = zfs::destroy("/usr/sbin/zfs", name) {
            let is_ours =
                argv.args.get(1).is_some_and(|arg| arg.contains("@linux-patch-") && !arg.starts_with('-'));
            assert!(is_ours, "{argv} is not ours");
        }
    }
}
