//! What the package's own scripts do to a host, beside dpkg: run as they are, in throw-away roots.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::ExitCode};

use anyhow::{Context, Result, ensure};
use system_tests::{
    Root, RootOptions,
    trials::{self, trial},
};

const STATE: &str = "var/lib/linux_patch_executor";
const PINS: &str = "etc/apt/preferences.d/linux-patch-taken-back";

fn main() -> ExitCode {
    trials::main(vec![
        trial("a_change_under_way_keeps_the_package", a_change_under_way_keeps_the_package),
        trial("a_reboot_under_way_keeps_the_package", a_reboot_under_way_keeps_the_package),
        trial("a_removal_takes_the_pins_along", a_removal_takes_the_pins_along),
        trial("a_removal_puts_policy_rc_d_back", a_removal_puts_policy_rc_d_back),
        trial("a_purge_undoes_what_was_provisioned", a_purge_undoes_what_was_provisioned),
        trial("a_purge_leaves_nothing_but_a_way_back_in_use", a_purge_leaves_nothing_but_a_way_back_in_use),
        trial("a_purge_keeps_the_newest_revocations", a_purge_keeps_the_newest_revocations),
        trial("recovery_starts_the_daemon_once_an_hour", recovery_starts_the_daemon_once_an_hour),
    ])
}

/// A root with the scripts in `/scripts`.
fn root() -> Result<Root> {
    let root = Root::new(RootOptions::default())?;
    let packaging = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging");
    fs::create_dir_all(root.path().join("scripts"))?;
    for name in ["prerm", "postrm"] {
        let from = packaging.join("deb").join(format!("linux-patch-api.{name}"));
        fs::copy(from, root.path().join("scripts").join(name))?;
    }
    let unit = "linux-patch-executor-recover.service";
    fs::copy(packaging.join("systemd").join(unit), root.path().join("scripts").join(unit))?;
    fs::create_dir_all(root.path().join(STATE).join("journal"))?;
    Ok(root)
}

fn write(root: &Root, path: &str, text: &str) -> Result<()> {
    let path = root.path().join(path);
    fs::create_dir_all(path.parent().context("no directory")?)?;
    fs::write(path, text)?;
    Ok(())
}

fn a_change_under_way_keeps_the_package() -> Result<()> {
    let root = root()?;
    root.shell("sh /scripts/prerm remove")?;
    root.shell("touch /var/lib/linux_patch_executor/journal/turn; sh /scripts/prerm remove")?;
    // Without flock(1) the kernel's list of locks says the same.
    let without =
        "mkdir -p /few; for t in sh stat grep rm; do ln -sf \"$(command -v $t)\" /few/; done; PATH=/few";
    root.shell(&format!("{without} sh /scripts/prerm remove"))?;
    for way in ["", without] {
        let script = format!("sh /scripts/prerm upgrade 9.9; {way} sh /scripts/prerm remove");
        let held = ["flock", "-n", "/var/lib/linux_patch_executor/journal/turn", "sh", "-ec", &script];
        let refused = root.exec(&held)?;
        ensure!(refused.code() == Some(1), "{refused:?}");
        ensure!(refused.stderr.contains("a change of packages is under way"), "{refused:?}");
    }
    Ok(())
}

fn a_reboot_under_way_keeps_the_package() -> Result<()> {
    let root = root()?;
    let state = format!("{STATE}/reboot-window.json");
    write(&root, &state, r#"{"causes":{"\"pending\":{":{}},"pending":null,"told":null}"#)?;
    root.shell("sh /scripts/prerm remove")?;
    write(&root, &state, r#"{"causes":{},"pending":{"phase":"undoing","drained":true},"told":null}"#)?;
    root.shell("sh /scripts/prerm upgrade 9.9")?;
    let refused = root.exec(&["sh", "/scripts/prerm", "remove"])?;
    ensure!(refused.code() == Some(1), "{refused:?}");
    ensure!(refused.stderr.contains("linux-patch-host reboot-window tick"), "{refused:?}");
    Ok(())
}

fn a_removal_takes_the_pins_along() -> Result<()> {
    let root = root()?;
    write(&root, PINS, "Package: aa\nPin: version 2\nPin-Priority: -1\n")?;
    write(&root, &format!("{STATE}/taken_back.json"), "[]")?;
    root.shell("sh /scripts/postrm upgrade 9.9")?;
    ensure!(root.path().join(PINS).exists(), "an upgrade keeps them");
    root.shell("sh /scripts/postrm remove")?;
    ensure!(!root.path().join(PINS).exists());
    ensure!(root.path().join(STATE).join("taken_back.json").exists());
    Ok(())
}

fn a_removal_puts_policy_rc_d_back() -> Result<()> {
    let root = root()?;
    let policy = "usr/sbin/policy-rc.d";
    let ours = "#!/bin/sh\n# Made by linux-patch-api for the time of one change, and taken away after it:\n";
    let theirs = "#!/bin/sh\nexit 104\n";
    // The administrator's own, ours over it, ours alone.
    for (now, before, left) in
        [(theirs, None, Some(theirs)), (ours, Some(theirs), Some(theirs)), (ours, None, None)]
    {
        write(&root, policy, now)?;
        if let Some(before) = before {
            write(&root, &format!("{policy}.linux-patch-before"), before)?;
        }
        root.shell("sh /scripts/postrm upgrade 9.9")?;
        ensure!(fs::read_to_string(root.path().join(policy))? == now, "an upgrade changes nothing");
        root.shell("sh /scripts/postrm remove")?;
        ensure!(fs::read_to_string(root.path().join(policy)).ok().as_deref() == left);
        ensure!(!root.path().join(format!("{policy}.linux-patch-before")).exists());
    }
    Ok(())
}

/// As `linux-patch-host provision unattended` notes it.
fn a_purge_undoes_what_was_provisioned() -> Result<()> {
    let root = root()?;
    let kept = format!("{STATE}/provision/unattended");
    let sum = |text: &str| -> Result<String> {
        write(&root, "sum", text)?;
        Ok(root.shell("sha256sum </sum")?.split(' ').next().unwrap_or_default().to_owned())
    };
    let (old, ours, other) = ("the administrator's\n", "ours\n", "ours, of former times\n");
    let sums = [sum(old)?, sum(ours)?, sum(other)?];
    write(&root, &format!("{kept}/{}", sums[0]), old)?;
    let all = format!("{},{}", sums[1], sums[2]);
    let apt = "etc/apt/apt.conf.d";
    let lost = "0".repeat(64);
    let list = [
        format!("/{apt}/20auto-upgrades - {all}"),
        format!("/{apt}/50unattended-upgrades 640:0:0:{} {all}", sums[0]),
        format!("/{apt}/50edited 644:0:0:{} {all}", sums[0]),
        format!("/{apt}/50lost 644:0:0:{lost} {all}"),
        format!("/{apt}/50gone - {all}"),
        format!("/{apt}/50absent 644:0:0:{} {all}", sums[0]),
        format!("/etc/systemd/system/apt-daily.timer.d/linux-patch.conf - {all}"),
        format!("/etc/passwd - {all}"),
        format!("/{apt}/../../victim - {all}"),
        "garbage".to_owned(),
    ];
    write(&root, &format!("{kept}/undo.list"), &format!("{}\n", list.join("\n")))?;
    let drop_in = "etc/systemd/system/apt-daily.timer.d/linux-patch.conf";
    for (path, text) in [
        (format!("{apt}/20auto-upgrades"), ours),
        (format!("{apt}/50unattended-upgrades"), other),
        (format!("{apt}/50edited"), "edited\n"),
        (format!("{apt}/50lost"), ours),
        (drop_in.to_owned(), ours),
        ("etc/victim".to_owned(), ours),
    ] {
        write(&root, &path, text)?;
    }
    let passwd = fs::read(root.path().join("etc/passwd"))?;
    root.shell("sh /scripts/postrm remove")?;
    let text = |path: &str| fs::read_to_string(root.path().join(path)).ok();
    ensure!(text(drop_in).is_some(), "a removal keeps the configuration");
    let said = root.exec(&["sh", "/scripts/postrm", "purge"])?;
    ensure!(said.success(), "{said:?}");
    let now = ["20auto-upgrades", "50unattended-upgrades", "50edited", "50lost", "50gone", "50absent"]
        .map(|name| text(&format!("{apt}/{name}")));
    let now: Vec<_> = now.iter().map(Option::as_deref).collect();
    ensure!(now == [None, Some(old), Some("edited\n"), Some(ours), None, Some(old)], "{now:?}");
    let mode = root.shell(&format!("stat -c %a /{apt}/50unattended-upgrades"))?;
    ensure!(mode.trim() == "640", "{mode}");
    ensure!(!root.path().join("etc/systemd/system/apt-daily.timer.d").exists());
    ensure!(
        fs::read(root.path().join("etc/passwd"))? == passwd && text("etc/victim").as_deref() == Some(ours)
    );
    for word in [
        "kept /etc/apt/apt.conf.d/50edited",
        "/etc/apt/apt.conf.d/50lost is left as it is",
        "nobody installs security fixes any more",
        "kept /var/lib/linux_patch_executor/provision",
    ] {
        ensure!(said.stderr.contains(word), "{word}: {said:?}");
    }
    ensure!(!said.stderr.contains("are as they were"), "{said:?}");
    // What it could not undo can still be undone by hand.
    ensure!(text(&format!("{kept}/{}", sums[0])).as_deref() == Some(old));
    let left: Vec<_> =
        fs::read_dir(root.path().join(STATE))?.flatten().map(|entry| entry.file_name()).collect();
    ensure!(left == ["provision"], "{left:?}");

    // Where all can be undone nothing is kept.
    write(&root, &format!("{kept}/undo.list"), &format!("/{apt}/50edited 644:0:0:{} {all}\n", sums[0]))?;
    write(&root, &format!("{apt}/50edited"), ours)?;
    let said = root.exec(&["sh", "/scripts/postrm", "purge"])?;
    ensure!(said.success() && said.stderr.contains("are as they were"), "{said:?}");
    ensure!(text(&format!("{apt}/50edited")).as_deref() == Some(old));
    ensure!(!root.path().join(STATE).exists());
    Ok(())
}

fn a_purge_leaves_nothing_but_a_way_back_in_use() -> Result<()> {
    let root = root()?;
    let list = r#"["/.linux-patch-ballast","/boot/.linux-patch-ballast","/with space, $(touch /pwned)/.linux-patch-ballast",
        "/opt/precious","/opt/../etc/.linux-patch-ballast","/opt/a\"/.linux-patch-ballast","-rf /.linux-patch-ballast"]"#;
    write(&root, &format!("{STATE}/ballast.json"), list)?;
    write(&root, &format!("{STATE}/rollback_failed.json"), "{}")?;
    let gone = [
        ".linux-patch-ballast",
        "boot/.linux-patch-ballast",
        "with space, $(touch /pwned)/.linux-patch-ballast",
    ];
    for path in gone.into_iter().chain(["opt/precious", "etc/.linux-patch-ballast"]) {
        write(&root, path, "x")?;
    }
    let kept = root.exec(&["sh", "/scripts/postrm", "purge"])?;
    ensure!(kept.code() == Some(0) && kept.stderr.contains("kept /var/lib/linux_patch_executor"), "{kept:?}");
    ensure!(root.path().join(STATE).join("ballast.json").exists());
    fs::remove_file(root.path().join(STATE).join("rollback_failed.json"))?;
    root.shell("sh /scripts/postrm purge")?;
    ensure!(!root.path().join(STATE).exists());
    for path in gone {
        ensure!(!root.path().join(path).exists(), "{path} is left");
    }
    ensure!(
        root.path().join("opt/precious").exists() && root.path().join("etc/.linux-patch-ballast").exists()
    );
    ensure!(!root.path().join("pwned").exists());
    Ok(())
}

/// Or a client that was revoked over the API would be let in again by the next installation.
fn a_purge_keeps_the_newest_revocations() -> Result<()> {
    let (kept, file) = ("var/lib/linux_patch_api/crl.pem", "etc/linux_patch_api/certs/crl.pem");
    let root = root()?;
    let here = |path: &str| fs::read_to_string(root.path().join(path)).unwrap_or_default();
    write(&root, file, "of the file")?;
    write(&root, kept, "of the API")?;
    let said = root.exec(&["sh", "/scripts/postrm", "purge"])?;
    ensure!(said.success() && said.stderr.contains("crl.pem.uploaded"), "{said:?}");
    ensure!(here(file) == "of the file" && here(&format!("{file}.uploaded")) == "of the API");
    write(&root, kept, "of the API")?;
    root.shell(&format!("rm /{file}*; sh /scripts/postrm purge"))?;
    ensure!(here(file) == "of the API" && !root.path().join(kept).exists());
    // The directory was the network side's: nothing in it is followed.
    write(&root, "etc/secret", "secret")?;
    root.shell(&format!("mkdir -p /var/lib/linux_patch_api; ln -s /etc/secret /{kept}; rm /{file}"))?;
    root.shell("sh /scripts/postrm purge")?;
    ensure!(!root.path().join(file).exists());
    Ok(())
}

fn recovery_starts_the_daemon_once_an_hour() -> Result<()> {
    let root = root()?;
    write(
        &root,
        "fake/systemctl",
        "#!/bin/sh\necho \"$*\" >>/asked\n[ \"$1\" != is-failed ] || exit \"$(cat /failed)\"\n",
    )?;
    fs::set_permissions(root.path().join("fake/systemctl"), fs::Permissions::from_mode(0o755))?;
    let unit = root.path().join("scripts/linux-patch-executor-recover.service");
    let unit = fs::read_to_string(unit)?.replace("\\\n", " ");
    let line = unit.lines().find_map(|line| line.strip_prefix("ExecStopPost=-/bin/sh -c '"));
    let script = line.and_then(|line| line.strip_suffix('\'')).context("no ExecStopPost")?;
    let script = script.replace("$$", "$").replace("%%", "%");
    let starts = |failed: &str| -> Result<usize> {
        write(&root, "failed", failed)?;
        root.exec_ok(&["sh", "-c", &format!("PATH=/fake:$PATH; {script}")])?;
        let asked = fs::read_to_string(root.path().join("asked"))?;
        Ok(asked.lines().filter(|line| *line == "--no-block start linux-patch-api.service").count())
    };
    ensure!(starts("1")? == 0, "one that has not failed is left alone");
    ensure!(starts("0")? == 1 && starts("0")? == 1, "not twice within the hour");
    let stamp = root.path().join("run/linux-patch-executor-recover.restarted");
    let up: i64 = fs::read_to_string(&stamp)?.trim().parse()?;
    fs::write(&stamp, format!("{}\n", up - 3600))?;
    ensure!(starts("0")? == 2);
    Ok(())
}
