//! What still runs old code, as the host itself says.

use anyhow::Context;
use patch_backends::{apt::Database, stale};
use patch_types::stale::{Advice, KernelCode, MicrocodeCode, Owner, StaleOwner, StaleReport, WhyUnread};

use crate::{ask::Root, exit::Exit, screen::Screen};

/// How many files and processes of an owner the table names.
const NAMED: usize = 3;

pub(crate) fn show(root: &Root, screen: &mut Screen) -> anyhow::Result<Exit> {
    let root = root.files().root();
    // Only for the remark that the running kernel's package was updated: what cannot be read is not needed.
    let database = Database::read(root).ok();
    let report = stale::report(root, database.as_ref())
        .with_context(|| "what runs cannot be told; is /proc mounted?".to_owned())?;
    tell(&report, screen)?;
    Ok(exit(&report))
}

/// What was found is certain; that nothing was found is so only where all was read.
fn exit(report: &StaleReport) -> Exit {
    match (report.is_clean(), report.is_whole()) {
        (false, _) => Exit::OldCode,
        (true, true) => Exit::Done,
        (true, false) => Exit::Failed,
    }
}

fn tell(report: &StaleReport, screen: &mut Screen) -> anyhow::Result<()> {
    if screen.is_json() {
        screen.json(report)?;
        return Ok(());
    }
    if report.unread > 0 {
        screen.remark(&format!(
            "{} of {} processes could not be read to their end: {}.",
            report.unread,
            report.processes,
            reasons(&report.why_unread, rustix::process::geteuid().is_root())
        ));
    }
    if !report.owners.is_empty() {
        let rows: Vec<_> = report.owners.iter().map(row).collect();
        screen.table(["WHAT", "PROCESSES", "REPLACED FILES", "ADVICE"], &rows);
    }
    if report.unnamed > 0 {
        screen.text(&format!("and {} more processes of others", report.unnamed));
    }
    if let Some(line) = kernel(&report.kernel) {
        screen.text(&line);
    }
    if let Some(line) = microcode(&report.microcode) {
        screen.text(&line);
    }
    match exit(report) {
        Exit::Done => {
            screen.remark(&format!("Nothing runs old code: {} processes were looked at.", report.processes));
        }
        Exit::Failed => {
            screen.remark("Not known: what could be read runs no old code, and the rest may do so.");
        }
        _ => {}
    }
    Ok(())
}

/// Why processes were not read, and what to do.
fn reasons(why: &WhyUnread, is_root: bool) -> String {
    let refused = if is_root {
        "the kernel refuses them to this root, as in a container or below a security module"
    } else {
        "they are others', run this as root"
    };
    let reasons = [
        (why.refused, refused),
        (why.too_much, "they map more than is read"),
        (why.out_of_time, "they did not answer in time, try again"),
        (why.failed, "reading failed"),
    ];
    let told = reasons.iter().filter(|(count, _)| *count > 0).map(|(count, why)| format!("{count} as {why}"));
    told.collect::<Vec<_>>().join("; ")
}

fn row(owner: &StaleOwner) -> [String; 4] {
    let processes =
        owner.processes.iter().take(NAMED).map(|process| format!("{} {}", process.pid, process.name));
    let files = owner.files.iter().take(NAMED).cloned();
    [
        owner.owner.to_string().trim_end().to_owned(),
        listed(&processes.collect::<Vec<_>>(), owner.process_count),
        listed(&files.collect::<Vec<_>>(), owner.file_count),
        advice(owner),
    ]
}

fn listed(named: &[String], count: usize) -> String {
    let rest = count.saturating_sub(named.len());
    let named = named.join(", ");
    if rest > 0 { format!("{named} and {rest} more") } else { named }
}

/// What to do, as it can be typed where there is something to type.
fn advice(owner: &StaleOwner) -> String {
    let what = match (&owner.owner, owner.advice) {
        (Owner::Unit { name }, Advice::Restart) => format!("systemctl restart {name}"),
        (_, Advice::Restart) => "restart it".to_owned(),
        (_, Advice::Reexec) => "systemctl daemon-reexec".to_owned(),
        (Owner::Session { uid, .. } | Owner::UserManager { uid, .. }, _) => format!("user {uid} logs out"),
        (_, Advice::LogOut) => "log out".to_owned(),
        (_, Advice::Recreate) => "update its image and make it anew".to_owned(),
        (Owner::Container { runtime, .. }, _) if runtime == "qemu" => {
            "shut the guest down and start it, or migrate it".to_owned()
        }
        (Owner::Container { .. }, _) => "restart it, or its services from inside".to_owned(),
        (_, Advice::StartAnew) => "end the processes and start them anew".to_owned(),
        (_, Advice::Reboot) => "reboot".to_owned(),
    };
    match (owner.care, &owner.owner) {
        (Some(care), Owner::Unit { .. }) => format!("{what}, when it suits: {}", care.reason()),
        _ => what,
    }
}

fn kernel(code: &KernelCode) -> Option<String> {
    let reason = code.reason.as_ref().filter(|_| code.old == Some(true))?;
    Some(format!("kernel: {reason}: reboot"))
}

fn microcode(code: &MicrocodeCode) -> Option<String> {
    let (running, installed) = (code.running.as_ref()?, code.installed.as_ref()?);
    (code.old == Some(true))
        .then(|| format!("microcode: {installed} is installed and {running} is running: reboot"))
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink};

    use patch_types::stale::{Care, StaleProcess};
    use serde_json::Value;

    use super::*;
    use crate::screen::tests::paper;

    fn owner(owner: Owner, advice: Advice, care: Option<Care>) -> StaleOwner {
        let processes = (1..=4).map(|pid| StaleProcess { pid, name: "d\u{1b}[2J".into() }).collect();
        let files = vec!["/usr/lib/libssl.so.3".into()];
        StaleOwner { owner, advice, care, processes, process_count: 4, files, file_count: 1 }
    }

    #[test]
    fn the_table_says_what_to_type() {
        let unit = |name: &str| Owner::Unit { name: name.into() };
        let container =
            |runtime: &str| Owner::Container { runtime: runtime.into(), id: "ab".into(), uid: None };
        let report = StaleReport {
            owners: vec![
                owner(Owner::Init, Advice::Reexec, None),
                owner(unit("nginx.service"), Advice::Restart, None),
                owner(unit("mariadb.service"), Advice::Restart, Some(Care::Database)),
                owner(Owner::Session { uid: 7, session: "1".into() }, Advice::LogOut, Some(Care::Sessions)),
                owner(container("docker"), Advice::Recreate, Some(Care::Virtualization)),
                owner(container("qemu"), Advice::StartAnew, Some(Care::Virtualization)),
                owner(Owner::Process { uid: 7 }, Advice::StartAnew, None),
            ],
            kernel: KernelCode { old: Some(true), reason: Some("newer".into()), ..KernelCode::default() },
            microcode: MicrocodeCode {
                running: Some("0x1".into()),
                installed: Some("0x2".into()),
                old: Some(true),
            },
            unnamed: 8,
            processes: 9,
            unread: 1,
            why_unread: WhyUnread { failed: 1, ..WhyUnread::default() },
        };
        let (mut screen, out, remarks) = paper(false);
        tell(&report, &mut screen).unwrap();
        let text = out.text();
        for words in [
            "systemctl daemon-reexec",
            "systemctl restart nginx.service\n",
            "systemctl restart mariadb.service, when it suits: a database",
            "user 7 logs out",
            "update its image",
            "shut the guest down",
            "1 d, 2 d, 3 d and 1 more",
            "and 8 more processes of others",
            "kernel: newer: reboot",
            "microcode: 0x2 is installed and 0x1 is running: reboot",
        ] {
            assert!(text.contains(words), "{words}: {text}");
        }
        assert!(!text.contains('\u{1b}') && remarks.text().contains("1 of 9 processes"), "{text}");
    }

    #[test]
    fn what_was_not_read_is_not_called_clean() {
        let mut report = StaleReport { processes: 9, unread: 3, ..StaleReport::default() };
        report.why_unread = WhyUnread { refused: 2, out_of_time: 1, ..WhyUnread::default() };
        let (mut screen, out, remarks) = paper(false);
        tell(&report, &mut screen).unwrap();
        assert_eq!((exit(&report), out.text().as_str()), (Exit::Failed, ""));
        let remarks = remarks.text();
        for words in ["3 of 9 processes", "2 as ", "; 1 as they did not answer", "Not known: "] {
            assert!(remarks.contains(words), "{words}: {remarks}");
        }
        assert!(!remarks.contains("Nothing runs"), "{remarks}");
        assert!(reasons(&report.why_unread, false).contains("run this as root"));
        assert!(reasons(&report.why_unread, true).contains("container"));
        report.owners.push(owner(Owner::Init, Advice::Reexec, None));
        assert_eq!(exit(&report), Exit::OldCode);
    }

    #[test]
    fn the_exit_code_says_whether_old_code_runs() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::new(dir.path().to_owned(), false);
        let (mut screen, ..) = paper(false);
        assert!(show(&root, &mut screen).unwrap_err().to_string().contains("/proc"));
        let process = dir.path().join("proc/5");
        fs::create_dir_all(&process).unwrap();
        fs::create_dir_all(dir.path().join("proc/sys/kernel")).unwrap();
        fs::write(dir.path().join("proc/sys/kernel/osrelease"), "none\n").unwrap();
        for (name, text) in [("comm", "x\n"), ("cgroup", "0::/system.slice/x.service\n"), ("maps", "1-2 r\n")]
        {
            fs::write(process.join(name), text).unwrap();
        }
        symlink("/usr/bin/x", process.join("exe")).unwrap();
        let (mut screen, out, remarks) = paper(false);
        assert_eq!(show(&root, &mut screen).unwrap(), Exit::Done);
        assert_eq!(
            (out.text().as_str(), remarks.text().as_str()),
            ("", "Nothing runs old code: 1 processes were looked at.\n")
        );
        fs::write(process.join("maps"), "1-2 r-xp 0 0:1 5 /usr/bin/x (deleted)\n").unwrap();
        let (mut screen, out, _) = paper(true);
        assert_eq!(show(&root, &mut screen).unwrap(), Exit::OldCode);
        let value: Value = serde_json::from_str(&out.text()).unwrap();
        assert_eq!(value["owners"][0]["owner"]["name"], "x.service");
        assert_eq!(value["owners"][0]["advice"], "restart");
        // A directory instead of a map cannot be read.
        fs::remove_file(process.join("maps")).unwrap();
        fs::create_dir(process.join("maps")).unwrap();
        let (mut screen, _, remarks) = paper(false);
        assert_eq!(show(&root, &mut screen).unwrap(), Exit::Failed);
        assert!(
            remarks.text().contains("1 of 1 processes could not be read to their end: 1 as reading failed.")
        );
    }
}
