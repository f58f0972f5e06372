//! `audit verify` and `audit show`.

use std::{io::ErrorKind, path::Path};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use patch_audit::{
    Acknowledged, Acknowledgements, AuditEvent, AuditKind, Caller, Damage, Filter, Gap, Head, Known,
    LOG_PATH, PublicKeys, RECORD_BOUNDS, Reader, Report, Retention, SignedHead, Trail, TrailFile, append,
    examine_opened, read_checkpoint, read_heads,
};
use patch_types::{
    JobId,
    executor::{ACKNOWLEDGED, CHECKPOINT_HEAD, CHECKPOINT_HEADS, CHECKPOINT_KEYS, RECORD, STATE_DIR},
    terminal,
};

use super::{Json, exit, print, print_as_is, print_json};
use crate::config;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Find every edited, removed, inserted or reordered record, and compare the trail with what the root side has signed:
    /// as root with everything that it has. Exit code 3 if anything is not in order.
    Verify(Verify),
    /// Say that damage which `audit verify` reports is explained: files that were set aside, and records that are missing. It
    /// stays on record and is a note from then on, as long as it is just that damage. Root's alone. Exit code 3 if something
    /// is left that is not in order.
    Acknowledge(Acknowledge),
    /// Print the last records.
    Show(Show),
}

#[derive(Debug, Args)]
pub(super) struct Acknowledge {
    #[command(flatten)]
    json: Json,
    /// The digest of the damage, as `audit verify` printed it: what has come since then is not acknowledged unseen.
    #[arg(long, value_name = "DIGEST")]
    damage: String,
    /// What it was, for those who read the trail later.
    #[arg(long, value_name = "TEXT", value_parser = a_reason)]
    reason: String,
}

/// The longest reason, in characters.
const MAX_REASON: usize = 500;

fn a_reason(text: &str) -> Result<String, String> {
    let text = text.trim();
    match text.chars().count() {
        0 => Err("say what it was".to_owned()),
        1..=MAX_REASON if !text.chars().any(char::is_control) => Ok(text.to_owned()),
        _ => Err(format!("one line of at most {MAX_REASON} characters is possible")),
    }
}

#[derive(Debug, Args)]
pub(super) struct Verify {
    #[command(flatten)]
    json: Json,
    /// A record that has to be there, as it was kept elsewhere: only so a trail that was cut off is told from one that
    /// ends (`audit_head` in GET /health, PATCH_SEQ and PATCH_HASH in the journal).
    #[arg(long, value_name = "SEQ:HASH")]
    head: Option<Head>,
}

#[derive(Debug, Args)]
pub(super) struct Show {
    #[command(flatten)]
    json: Json,
    /// How many.
    #[arg(long, short = 'n', default_value_t = 50)]
    last: usize,
    /// Only of this kind, such as auth_failure.
    #[arg(long)]
    kind: Option<String>,
    /// Only about this job.
    #[arg(long)]
    job: Option<JobId>,
    /// Only by this identity.
    #[arg(long)]
    identity: Option<String>,
}

pub(super) fn execute(root: &Path, command: &Command) -> anyhow::Result<u8> {
    let log = root.join(LOG_PATH);
    match command {
        Command::Verify(Verify { json, head }) => {
            let report = verified(root, *head)?;
            // Texts of the trail and names of files are the network side's, and whoever reads this may be root.
            if json.json {
                print_json(&as_json(&report))?;
            } else {
                print(&as_text(&report))?;
            }
            Ok(if report.is_intact() { exit::OK } else { exit::NOT_IN_ORDER })
        }
        Command::Acknowledge(Acknowledge { json, damage, reason }) => {
            acknowledge(root, damage, reason, json.json)
        }
        Command::Show(show) => show_last(opened(&log)?.files, show),
    }
}

const UNREADABLE: &str = "cannot read the audit trail; run this as root or as linux-patch-api";

fn opened(log: &Path) -> anyhow::Result<Trail> {
    Trail::open(log).context(UNREADABLE)
}

/// Verifies the trail by all that is known of it.
fn verified(root: &Path, head: Option<Head>) -> anyhow::Result<Report> {
    let log = root.join(LOG_PATH);
    // What is signed meanwhile is not in what was opened before.
    let trail = opened(&log)?;
    let (known, problems, notes) = known(root, head);
    let mut report = examine_opened(&log, trail, &known).context(UNREADABLE)?;
    report.problems.extend(problems);
    report.notes.extend(notes);
    Ok(report)
}

/// Notes, on the root side and in its record, that damage is explained. Whatever else is wrong with the trail stays so, and
/// is said.
fn acknowledge(root: &Path, digest: &str, reason: &str, json: bool) -> anyhow::Result<u8> {
    let found = verified(root, None)?;
    let there = found.damage.digest();
    if let Some(there) = &there {
        anyhow::ensure!(
            there == digest,
            "the damage of this moment is not the one that was named: look at it anew with linux-patch-api audit verify, which \
             prints the digest to name; nothing was acknowledged"
        );
    }
    let what: Vec<String> = found
        .damage
        .files
        .keys()
        .map(|name| format!("the file {name}, which was set aside"))
        .chain(
            found
                .damage
                .missing
                .iter()
                .map(|Gap { from, to, .. }| format!("that records {from} to {to} are missing")),
        )
        .collect();
    let left = if there.is_some() {
        keep(root, found.damage, reason, &what)?;
        verified(root, None)?
    } else {
        found
    };
    if json {
        let report = serde_json::json!({ "acknowledged": what, "intact": left.is_intact(), "problems": left.problems });
        print_json(&report)?;
    } else {
        let mut text: String =
            what.iter().map(|one| format!("acknowledged: {}\n", terminal::line(one))).collect();
        text.push_str(if what.is_empty() {
            "there is nothing to acknowledge: no file was set aside and no record is missing that was not explained before\n"
        } else {
            "linux-patch-api audit verify tells it as a note from now on\n"
        });
        text.extend(
            left.problems.iter().map(|problem| format!("still wrong: {}\n", terminal::line(problem))),
        );
        print(&text)?;
    }
    Ok(if left.is_intact() { exit::OK } else { exit::NOT_IN_ORDER })
}

/// Writes an acknowledgement down.
fn keep(root: &Path, damage: Damage, reason: &str, what: &[String]) -> anyhow::Result<()> {
    if root == Path::new("/") && !rustix::process::geteuid().is_root() {
        anyhow::bail!("only root can acknowledge damage to the audit trail");
    }
    let state = root.join(STATE_DIR);
    anyhow::ensure!(
        state.is_dir(),
        "{} is not there: what the trail is measured by is the root side's; start linux-patch-executor.socket first",
        state.display()
    );
    let path = root.join(ACKNOWLEDGED);
    let acknowledged = Acknowledged { at: jiff::Timestamp::now(), reason: reason.to_owned(), damage };
    let text = Acknowledgements::read(&path)
        .and_then(|known| known.text_with(&acknowledged))
        .with_context(|| unreadable(&path))?;
    // On record before it counts.
    let sentence = format!("damage to the audit trail was acknowledged: {}; {reason}", what.join(", "));
    let event = AuditEvent::new(AuditKind::SystemChanged { what: sentence }, &Caller::local());
    append(&root.join(RECORD), &[event], &RECORD_BOUNDS)
        .context("the root side's record cannot be written")?;
    Acknowledgements::write(&path, &text).with_context(|| format!("{} cannot be written", path.display()))
}

/// What is to be done about a file of acknowledgements that cannot be used.
fn unreadable(path: &Path) -> String {
    format!(
        "{0} cannot be used, so nothing counts as acknowledged; move it away (what was acknowledged is also in the root side's \
         record: linux-patch-host record) and acknowledge what is still there anew",
        path.display()
    )
}

/// What the root side knows of the trail, as far as whoever runs this may read it, what is damaged of that, and what could
/// not be read.
fn known(root: &Path, head: Option<Head>) -> (Known, Vec<String>, Vec<String>) {
    let mut known = Known { head, ..Known::default() };
    let (mut problems, mut notes) = (Vec::new(), Vec::new());
    let keys = root.join(CHECKPOINT_KEYS);
    match PublicKeys::read(&keys) {
        Ok(keys) => known.keys = Some(keys),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            notes.push("the root side has signed nothing on this host yet".to_owned());
        }
        Err(error) => notes.push(format!("{}: {error}", keys.display())),
    }
    let last = root.join(CHECKPOINT_HEAD);
    match read_checkpoint(&last) {
        Ok(checkpoint) => known.signed.extend(checkpoint.and_then(|c| SignedHead::try_from(&c).ok())),
        Err(error) => notes.push(format!("{}: {error}", last.display())),
    }
    let record = root.join(RECORD);
    match Trail::open(&record) {
        Ok(trail) => {
            for file in trail.files {
                let name = file.path().display().to_string();
                for read in Reader::new(file.reader()) {
                    match read {
                        Ok(record) => {
                            let checkpoint = record.event.kind.checkpoint();
                            known.signed.extend(checkpoint.and_then(|c| SignedHead::try_from(&c).ok()));
                        }
                        // Nothing can be read behind it.
                        Err(error) => {
                            problems.push(format!("{name}: the root side's record is damaged: {error}"));
                            break;
                        }
                    }
                }
            }
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(_) => notes.push(
            "only the last of the heads that the root side has signed was compared; as root all of them are"
                .to_owned(),
        ),
    }
    let acknowledged = root.join(ACKNOWLEDGED);
    match Acknowledgements::read(&acknowledged) {
        Ok(read) => known.acknowledged = read,
        Err(error) => problems.push(format!("{}: {error}", unreadable(&acknowledged))),
    }
    match read_heads(&root.join(CHECKPOINT_HEADS)) {
        Ok(heads) => known.signed.extend(heads.iter().filter_map(|c| SignedHead::try_from(c).ok())),
        // Whoever is not root has been told above.
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {}
        Err(error) => problems.push(format!("{}: {error}", root.join(CHECKPOINT_HEADS).display())),
    }
    known.signed.sort_unstable_by_key(|signed| (signed.head.seq, signed.head.hash.0, signed.at));
    known.signed.dedup();
    match retention(root) {
        Ok(retention) => known.retention = Some(retention),
        Err(error) => notes.push(format!(
            "whether what was removed was old enough was not looked at, since the configuration cannot be read: {error:#}"
        )),
    }
    (known, problems, notes)
}

/// How long the trail has to be kept. The configuration is root's, and when its content was changed the file system says:
/// not when its owner or mode was, which would excuse what was removed before.
fn retention(root: &Path) -> anyhow::Result<Retention> {
    let keep_days = config::load(root)?.retention_days;
    let since = match std::fs::metadata(root.join(config::CONFIG)) {
        Ok(meta) => Some(jiff::Timestamp::try_from(meta.modified()?)?),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error.into()),
    };
    Ok(Retention { keep_days, since })
}

fn as_json(report: &Report) -> serde_json::Value {
    let head = report.head.map(|h| serde_json::json!({ "seq": h.seq, "hash": h.hash.to_string() }));
    serde_json::json!({
        "intact": report.is_intact(), "records": report.records, "first_seq": report.first.map(|f| f.seq),
        "head": head, "vouched_seq": report.vouched, "checkpoints": report.checkpoints,
        "problems": report.problems, "notes": report.notes, "damage": report.damage,
        "damage_digest": report.damage.digest(), "being_written": report.is_being_written,
    })
}

fn as_text(report: &Report) -> String {
    let mut text: String = report.problems.iter().map(|p| format!("{}\n", terminal::line(p))).collect();
    text.extend(report.notes.iter().map(|note| format!("note: {}\n", terminal::line(note))));
    if report.is_being_written {
        text.push_str("note: the last line is incomplete; it is being written, or a crash broke it off\n");
    }
    let span = match (report.first, report.head) {
        (Some(first), Some(head)) => format!(", {} to {}, head {head}", first.seq, head.seq),
        _ => String::new(),
    };
    let verdict = if report.is_intact() { "the audit trail is intact" } else { "the audit trail is broken" };
    text.push_str(&format!("{verdict}: {} records{span}\n", report.records));
    if let Some(digest) = report.damage.digest() {
        text.push_str(&format!(
            "When it is explained what happened to files that were set aside, and to records that are missing, say so as root: \
             linux-patch-api audit acknowledge --damage {digest} --reason TEXT\n"
        ));
    }
    text
}

fn show_last(files: Vec<TrailFile>, show: &Show) -> anyhow::Result<u8> {
    let filter =
        Filter { kind: show.kind.clone(), job: show.job, identity: show.identity.clone(), priority: None };
    let mut groups = Vec::new();
    let mut missing = show.last;
    for file in files.into_iter().rev() {
        if missing == 0 {
            break;
        }
        let path = file.path().to_owned();
        let mut reader = Reader::new(file.reader());
        let records =
            reader.tail(missing, &filter).with_context(|| format!("cannot read {}", path.display()))?;
        missing -= records.len();
        groups.push(records);
    }
    let mut text = String::new();
    for record in groups.into_iter().rev().flatten() {
        if show.json.json {
            // Between strings they are only space, and within them they cannot be.
            text.push_str(&terminal::json(&record.line.replace(['\r', '\t'], " ")));
        } else {
            let event = &record.event;
            text.push_str(&format!(
                "{:>6}  {:.0}  {:<6}  {}",
                record.seq,
                event.at,
                event.priority.as_str(),
                terminal::line(&event.message)
            ));
        }
        text.push('\n');
    }
    // Each record was made safe, by the way that its form asks for.
    print_as_is(&text)?;
    Ok(exit::OK)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use patch_audit::{AuditEvent, AuditKind, AuditLog, Caller, Options, examine};

    use super::*;

    /// A trail of five records.
    fn trail() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("audit.log");
        let writer = AuditLog::open(&log, Options::new("test").without_journal()).unwrap();
        for _ in 0..5 {
            writer.record_later(AuditEvent::new(AuditKind::AuthSuccess, &Caller::local()));
        }
        writer.close();
        (directory, log)
    }

    fn examined(log: &Path, head: Option<Head>) -> Report {
        examine(log, &Known { head, ..Known::default() }).unwrap()
    }

    /// Moves the first lines into a file of a former day.
    fn rotate(log: &Path, suffix: &str, lines: usize) {
        let text = std::fs::read_to_string(log).unwrap();
        let at = text.match_indices('\n').nth(lines - 1).unwrap().0 + 1;
        std::fs::write(log.with_file_name(format!("audit.log.{suffix}")), &text[..at]).unwrap();
        std::fs::write(log, &text[at..]).unwrap();
    }

    #[test]
    fn a_head_kept_elsewhere_shows_a_cut() {
        let (_directory, log) = trail();
        let heads: Vec<Head> = (1..=5)
            .map(|n| {
                let (copy_dir, copy) = (tempfile::tempdir().unwrap(), std::fs::read_to_string(&log).unwrap());
                let copied = copy_dir.path().join("audit.log");
                let lines: String = copy.split_inclusive('\n').take(n).collect();
                std::fs::write(&copied, lines).unwrap();
                examined(&copied, None).head.unwrap()
            })
            .collect();
        rotate(&log, "2026-11-20", 2);
        for head in &heads {
            assert!(examined(&log, Some(*head)).is_intact(), "{head}");
        }
        let other = Head { seq: 4, hash: heads[0].hash };
        assert!(as_text(&examined(&log, Some(other))).contains("not the one"));

        let text = std::fs::read_to_string(&log).unwrap();
        let cut: String = text.split_inclusive('\n').take(2).collect();
        std::fs::write(&log, cut).unwrap();
        assert!(examined(&log, None).is_intact(), "nothing shows it from within");
        let report = examined(&log, Some(heads[4]));
        assert!(as_text(&report).contains("cut off"), "{}", as_text(&report));

        std::fs::remove_file(log.with_file_name("audit.log.2026-11-20")).unwrap();
        assert_eq!(examined(&log, Some(heads[2])).problems.len(), 1, "a file was removed");
        let report = examined(&log, Some(heads[0]));
        assert_eq!(report.problems.len(), 2, "{:?}", report.problems);
        assert!(report.problems[0].contains("begins with record 3"), "{:?}", report.problems);
    }

    #[test]
    fn former_files_are_read_by_day_and_number() {
        let (_directory, log) = trail();
        for suffix in ["2026-11-19", "2026-11-20.2", "2026-11-20.10"] {
            rotate(&log, suffix, 1);
        }
        std::fs::write(log.with_file_name("audit.log.set-aside-20261120T000000Z"), "rubbish").unwrap();
        let report = examined(&log, None);
        assert_eq!(report.records, 5);
        let name = "audit.log.set-aside-x\u{1b}[2J\nthe audit trail is intact";
        std::fs::write(log.with_file_name(name), "rubbish").unwrap();
        let text = as_text(&examined(&log, None));
        assert!(
            !text.contains('\u{1b}') && !text.lines().any(|line| line.starts_with("the audit trail is i")),
            "{text}"
        );
        std::fs::remove_file(log.with_file_name(name)).unwrap();
        let aside = report.problems.iter().filter(|problem| problem.contains("set-aside")).count();
        assert_eq!(aside, report.problems.len(), "{}", as_text(&report));
        assert!(aside > 0);
    }

    #[test]
    fn root_acknowledges_what_is_explained_and_that_is_on_record() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        let log = root.join(LOG_PATH);
        std::fs::create_dir_all(log.parent().unwrap()).unwrap();
        let writer = AuditLog::open(&log, Options::new("test").without_journal()).unwrap();
        writer.record(AuditEvent::new(AuditKind::AuthSuccess, &Caller::local())).unwrap();
        writer.close();
        let aside = "audit.log.set-aside-20261120T000000Z";
        std::fs::write(log.with_file_name(aside), "rubbish").unwrap();
        let verify =
            || execute(root, &Command::Verify(Verify { json: Json { json: false }, head: None })).unwrap();
        let digest = || verified(root, None).unwrap().damage.digest().unwrap();
        let naming = |damage: &str| {
            let (reason, damage) = ("a disk that was full".to_owned(), damage.to_owned());
            execute(root, &Command::Acknowledge(Acknowledge { json: Json { json: false }, damage, reason }))
        };
        let seen = digest();
        let acknowledge = || naming(&seen);
        assert_eq!(
            (verify(), crate::audit::set_aside(root).files),
            (exit::NOT_IN_ORDER, vec![aside.to_owned()])
        );
        assert!(acknowledge().unwrap_err().to_string().contains("root side"), "there is none here");
        std::fs::create_dir_all(root.join(STATE_DIR)).unwrap();
        assert_eq!(acknowledge().unwrap(), exit::OK);
        assert_eq!((verify(), crate::audit::set_aside(root)), (exit::OK, crate::audit::SetAside::default()));
        let record = std::fs::read_to_string(root.join(RECORD)).unwrap();
        assert!(record.contains(aside) && record.contains("a disk that was full"), "{record}");
        assert_eq!(acknowledge().unwrap(), exit::OK, "nothing is left to say");
        assert_eq!(std::fs::read_to_string(root.join(RECORD)).unwrap(), record);
        // A torn file is not written upon.
        let path = root.join(ACKNOWLEDGED);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 9]).unwrap();
        assert_eq!(verify(), exit::NOT_IN_ORDER);
        assert!(crate::audit::set_aside(root).unread.is_some_and(|why| why.contains("line 1")));
        let refused = format!("{:#}", acknowledge().unwrap_err());
        assert!(refused.contains("move it away") && refused.contains("line 1"), "{refused}");
        assert_eq!(std::fs::read_to_string(root.join(RECORD)).unwrap(), record);
        std::fs::write(&path, &whole).unwrap();
        // What comes later is new, and not acknowledged by what was seen before.
        std::fs::write(log.with_file_name("audit.log.set-aside-20261121T000000Z"), "rubbish").unwrap();
        assert_eq!(verify(), exit::NOT_IN_ORDER);
        assert!(acknowledge().unwrap_err().to_string().contains("nothing was acknowledged"));
        assert_eq!(verify(), exit::NOT_IN_ORDER);
        // An edit is still wrong when the rest is acknowledged.
        let text = std::fs::read_to_string(&log).unwrap();
        std::fs::write(&log, text.replace("auth", "auht")).unwrap();
        assert_eq!(naming(&digest()).unwrap(), exit::NOT_IN_ORDER);
        assert_eq!(naming("x").unwrap(), exit::NOT_IN_ORDER, "nothing is left but the edit");
        std::fs::write(&log, text).unwrap();
        assert_eq!(verify(), exit::OK);
        for bad in ["", "  ", "two\nlines"] {
            assert!(a_reason(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn what_the_root_side_signed_is_compared() {
        let (directory, _) = trail();
        let root = directory.path();
        let log = root.join(LOG_PATH);
        std::fs::create_dir_all(log.parent().unwrap()).unwrap();
        std::fs::rename(root.join("audit.log"), &log).unwrap();
        let state = root.join("var/lib/linux_patch_executor");
        std::fs::create_dir_all(&state).unwrap();
        let key = patch_audit::Key::open(&state.join("checkpoint.key"), &root.join(CHECKPOINT_KEYS)).unwrap();
        let head = examined(&log, None).head.unwrap();
        let signed = key.sign(head, jiff::Timestamp::now());
        patch_audit::write_checkpoint(&root.join(CHECKPOINT_HEAD), &signed).unwrap();
        let bounds = patch_audit::Bounds { file_bytes: 1 << 20, files: 1 };
        let record = AuditEvent::new((&signed).into(), &Caller::local());
        patch_audit::append(&root.join(RECORD), &[record], &bounds).unwrap();
        let look = || examine(&log, &known(root, None).0).unwrap();
        assert_eq!((look().is_intact(), look().vouched), (true, Some(5)));
        let text = std::fs::read_to_string(&log).unwrap();
        // A file of the record that is damaged ends the reading, and is a problem.
        let damaged = root.join(format!("{RECORD}.2026-11-20.gz"));
        std::fs::write(&damaged, "this is not compressed").unwrap();
        assert_eq!(known(root, None).1.len(), 1);
        std::fs::remove_file(damaged).unwrap();
        // What only the file of heads has is compared as well.
        patch_audit::keep_head(&root.join(CHECKPOINT_HEADS), &key.sign(Head { seq: 3, ..head }, signed.at))
            .unwrap();
        assert!(as_text(&look()).contains("record 3 is not the one that the root side signed"));
        std::fs::remove_file(root.join(CHECKPOINT_HEADS)).unwrap();
        let cut: String = text.split_inclusive('\n').take(4).collect();
        std::fs::write(&log, cut).unwrap();
        assert!(as_text(&look()).contains("the root side has signed record 5"), "{}", as_text(&look()));
        assert_eq!(
            execute(root, &Command::Verify(Verify { json: Json { json: true }, head: None })).unwrap(),
            3
        );
    }

    #[test]
    fn a_beginning_that_was_removed_before_its_time_is_no_retention() {
        let (directory, trail) = trail();
        let root = directory.path();
        let log = root.join(LOG_PATH);
        std::fs::create_dir_all(log.parent().unwrap()).unwrap();
        std::fs::rename(trail, &log).unwrap();
        std::fs::create_dir_all(root.join("etc/linux_patch_api")).unwrap();
        std::fs::write(root.join(config::CONFIG), "logging: {retention_days: 3}\n").unwrap();
        let state = root.join("var/lib/linux_patch_executor");
        std::fs::create_dir_all(&state).unwrap();
        let key = patch_audit::Key::open(&state.join("checkpoint.key"), &root.join(CHECKPOINT_KEYS)).unwrap();
        let second = std::fs::read_to_string(&log).unwrap().lines().nth(1).unwrap().to_owned();
        let hash = serde_json::from_str::<patch_audit::Record>(&second).unwrap().hash;
        let second: Head = format!("2:{hash}").parse().unwrap();

        // As whoever has the network side can do it: remove the beginning, and say that it was old.
        let writer = AuditLog::open(&log, Options::new("test").without_journal()).unwrap();
        let kind = AuditKind::TrailPruned { removed: vec!["audit.log.2020-01-01".to_owned()], first_left: 4 };
        writer.record(AuditEvent::new(kind, &Caller::local())).unwrap();
        writer.close();
        let text = std::fs::read_to_string(&log).unwrap();
        std::fs::write(&log, text.split_inclusive('\n').skip(3).collect::<String>()).unwrap();
        let look = |days: i64| {
            let at = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24 * days);
            let _ = std::fs::remove_file(root.join(CHECKPOINT_HEADS));
            patch_audit::keep_head(&root.join(CHECKPOINT_HEADS), &key.sign(second, at)).unwrap();
            examine(&log, &known(root, None).0).unwrap()
        };
        let report = look(2);
        assert!(as_text(&report).contains("removed before its time"), "{}", as_text(&report));
        assert!(look(5).is_intact(), "{}", as_text(&look(5)));
        // Signed after the removal: what the configuration said then counts, whatever became of its mode since.
        let last = examined(&log, None).head.unwrap();
        let days_ago = |days: i64| jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24 * days);
        look(2);
        patch_audit::keep_head(&root.join(CHECKPOINT_HEADS), &key.sign(last, days_ago(1))).unwrap();
        let file = std::fs::File::options().write(true).open(root.join(config::CONFIG)).unwrap();
        for (changed, is_intact) in [(10, false), (0, true)] {
            file.set_modified(std::time::SystemTime::from(days_ago(changed))).unwrap();
            let report = examine(&log, &known(root, None).0).unwrap();
            assert_eq!(report.is_intact(), is_intact, "{}", as_text(&report));
        }
        // Without the configuration nobody knows how long it had to be kept.
        std::fs::write(root.join(config::CONFIG), "nonsense").unwrap();
        assert!(known(root, None).2.iter().any(|note| note.contains("configuration cannot be read")));
    }

    #[test]
    fn a_line_that_is_being_written_is_no_damage() {
        let (_directory, log) = trail();
        let text = std::fs::read_to_string(&log).unwrap();
        std::fs::write(&log, format!("{text}{{\"seq\":6,")).unwrap();
        let report = examined(&log, None);
        assert!(report.is_intact() && report.is_being_written, "{}", as_text(&report));
        // In a file that nobody writes any more it is.
        std::fs::rename(&log, log.with_file_name("audit.log.2026-11-20")).unwrap();
        std::fs::write(&log, "").unwrap();
        assert!(!examined(&log, None).is_intact());
    }

    #[test]
    fn what_is_written_meanwhile_is_not_read() {
        let (_directory, log) = trail();
        let files = Trail::open(&log).unwrap();
        let text = std::fs::read_to_string(&log).unwrap();
        std::fs::write(&log, format!("{text}{{\"seq\":6,")).unwrap();
        let report = examine_opened(&log, files, &Known::default()).unwrap();
        assert!(report.is_intact() && !report.is_being_written, "{}", as_text(&report));
    }

    #[test]
    fn a_trail_without_records_is_not_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("audit.log");
        assert!(!examined(&log, None).is_intact());
        std::fs::write(&log, "").unwrap();
        assert!(!examined(&log, None).is_intact());
    }
}
