//! Snapshots of the file systems: real btrfs and snapper, made before a change, gone back to, and removed again.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use patch_types::operation::Rollback;
use patch_types::snapshot::{FileChange, SnapshotKind, SnapshotState};
use patch_types::{
    ChangeOptions, ErrorCode, JobId, JobStatus, Operation, Outcome, Plan, RollbackMode, SnapshotReport,
};
use system_tests::disk::{self, Disk};
use system_tests::executor::{ExecutorIn, LIMIT, PROGRAM, Refusal, Seen};
use system_tests::packages::Packages;
use system_tests::place::{self, Place};
use system_tests::trials::trial;
use system_tests::{Root, wait};

/// Where ours are on a disk, as its holder sees it.
const OURS: &str = "/mnt/top/.linux-patch-snapshots";

/// Where what of a disk is mounted, and how.
type Mounts = &'static [(&'static str, &'static str)];

/// As Debian's and Ubuntu's installers have it: by the name of a subvolume.
const AT: Mounts = &[("/", "subvol=@")];

/// What a host of these trials has.
const INSTALLED: &[&str] = &["lp-app", "lp-conf"];

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("a_snapshot_is_gone_back_to_at_the_next_boot", a_snapshot_is_gone_back_to_at_the_next_boot),
        trial("a_default_subvolume_goes_back_and_back_again", a_default_subvolume_goes_back_and_back_again),
        trial("what_one_exchange_does_not_do_is_left_to_a_person", what_one_exchange_does_not_do),
        trial("a_host_that_booted_what_it_ran_from_changes_nothing", a_host_that_booted_what_it_ran_from),
        trial("going_back_to_a_snapshot_is_called_off_as_documented", called_off_as_documented),
        trial("what_cannot_be_fetched_after_going_back_is_kept", what_cannot_be_fetched_is_kept),
        trial("what_was_not_listed_is_not_taken_back", what_was_not_listed_is_not_taken_back),
        trial("a_job_says_why_it_has_no_snapshot", a_job_says_why_it_has_no_snapshot),
        trial("snapshots_are_removed_by_number_and_age", removed_by_number_and_age),
        trial("a_snapshot_that_was_broken_off_leaves_nothing", broken_off_leaves_nothing),
        trial("going_back_to_a_snapshot_that_was_broken_off_is_ended", a_return_that_was_broken_off),
        trial("what_is_taken_up_again_is_listed_again", what_is_taken_up_again_is_listed_again),
        trial("thin_volumes_are_snapshotted_by_the_tools_of_lvm", thin_volumes_by_the_tools_of_lvm),
        trial("snapper_makes_the_snapshot_where_it_is_configured", snapper_makes_it),
    ]
}

/// A host on a disk of btrfs, on the repository's second day. The disk outlives it.
struct Host {
    place: Place,
    disk: Disk,
}

impl Host {
    fn new(subvolume: &str, mounts: Mounts, mode: &str) -> Result<Self> {
        Self::on(Disk::new("2G", subvolume)?, mounts, mode)
    }

    fn on(disk: Disk, mounts: Mounts, mode: &str) -> Result<Self> {
        let place = Place::with(disk.root(mounts), INSTALLED, &Packages::executor()?)?;
        disk::bring_btrfs(&place.root.path())?;
        let config = format!("rollback:\n  snapshots: {{mode: {mode}, keep: 3, min_free_mib: 16}}\n");
        place.configure("config.yaml", &config)?;
        place.day(1)?;
        Ok(Self { place, disk })
    }

    /// Ends everything that runs from the disk, and starts anew from these mounts.
    fn reboot(self, mounts: Mounts) -> Result<Self> {
        let Self { place, disk } = self;
        let Place { executor, root, repository } = place;
        drop(executor);
        drop(root);
        let root = Root::new(disk.root(mounts).repository(&repository))?;
        // As the daemon's unit does before it starts it.
        root.push_file(&Packages::executor()?, PROGRAM, "755")?;
        root.exec_ok(&[PROGRAM, "arrive"])?;
        let executor = ExecutorIn::start(&root, &Packages::executor()?)?;
        Ok(Self { place: Place { executor, root, repository }, disk })
    }

    /// The names of all of ours on the disk.
    fn ours(&self) -> Result<Vec<String>> {
        let names = self.disk.shell(&format!("ls {OURS} 2>/dev/null || true"))?;
        Ok(names.lines().map(str::to_owned).collect())
    }
}

fn to_snapshot(job: JobId, force: bool) -> Operation {
    Operation::Rollback(Rollback { job, force, mode: RollbackMode::Snapshot })
}

fn report(seen: &Seen) -> Result<&SnapshotReport> {
    seen.way_back()
        .and_then(|way| way.snapshot.as_ref())
        .with_context(|| format!("no snapshot is told of: {}", seen.log()))
}

/// What going back would take back, and that it takes back these files, each with what has become of it.
fn listed(host: &Host, job: JobId, expected: &[(&str, FileChange)]) -> Result<Plan> {
    let plan = host.place.executor.plan(to_snapshot(job, false))?;
    let back = plan.takes_back.as_ref().context("nothing is listed")?;
    let files: Vec<(&str, FileChange)> = back
        .files
        .iter()
        .map(|file| (file.path.as_str(), file.change))
        .filter(|(path, _)| !path.starts_with("/var/"))
        .collect();
    ensure!(files == expected, "{files:#?}\n{back:#?}");
    ensure!(back.total == back.files.len() as u64, "{back:#?}");
    Ok(plan)
}

fn go_back(host: &Host, job: JobId, plan: &Plan) -> Result<JobId> {
    let back = host.place.executor.change(
        to_snapshot(job, true),
        ChangeOptions::default(),
        Some(plan.hash.clone()),
    )?;
    let seen = host.place.ends(back, Outcome::Applied)?;
    let ended = seen.ended().context("no end")?;
    ensure!(ended.status == JobStatus::Completed, "{ended:#?}");
    let report = seen.went_back().context("nothing is told of going back")?;
    ensure!(report.reason.contains("next reboot") && report.left.is_empty(), "{report:#?}");
    ensure!(host.place.root.path().join("run/reboot-required").exists(), "no reboot is asked for");
    Ok(back)
}

/// Changes of somebody else after the job: a file each that came, was written and went.
fn meddle(host: &Host) -> Result<()> {
    host.place.root.shell(
        "echo mine >/etc/mine; echo more >>/etc/hosts; rm /etc/issue.net; mkdir -p /srv/site; echo x >/srv/site/index.html; \
         echo log >>/var/log/something",
    )?;
    Ok(())
}

const MEDDLED: &[(&str, FileChange)] = &[
    ("/etc/hosts", FileChange::Changed),
    ("/etc/issue.net", FileChange::Removed),
    ("/etc/mine", FileChange::Added),
    ("/srv/site/", FileChange::Added),
];

fn a_snapshot_is_gone_back_to_at_the_next_boot() -> Result<()> {
    let host = Host::new("@", AT, "auto")?;
    // A subvolume within, as systemd makes them.
    host.disk.shell("btrfs -q subvolume create /mnt/top/@/var/lib/machines >/dev/null")?;
    let place = &host.place;
    let before = place.state()?;
    let (job, seen) = place.must(place::apply(&[])?, Outcome::Applied)?;
    let made = report(&seen)?;
    ensure!(made.state == SnapshotState::Made && made.kind == Some(SnapshotKind::Btrfs), "{made:#?}");
    ensure!(
        made.names == [format!(".linux-patch-snapshots/{job}/0")] && made.file_systems == ["/"],
        "{made:#?}"
    );
    let tree = format!("{OURS}/{job}/0");
    ensure!(
        host.disk.shell(&format!("btrfs property get {tree} ro"))?.trim() == "ro=true",
        "it can be written"
    );
    let changed = place.state()?;
    ensure!(before.diff(&changed).iter().any(|line| line.contains("lp-app")), "nothing has changed");

    meddle(&host)?;
    let changed = place.state()?;
    let plan = listed(&host, job, MEDDLED)?;
    let back = plan.takes_back.as_ref().context("nothing is listed")?;
    ensure!(plan.changes.iter().any(|change| change.name.as_str() == "lp-app"), "{:#?}", plan.changes);
    for kept in ["/var/lib/linux_patch_executor", "/etc/linux_patch_api", "/var/lib/machines"] {
        ensure!(back.kept.iter().any(|path| path == kept), "{:#?}", back.kept);
    }
    let returned = go_back(&host, job, &plan)?;
    // Nothing has happened to what runs, and nothing more is done to it.
    changed.assert_same(&place.state()?)?;
    ensure!(place.root.read_text("/etc/mine")? == "mine\n", "a file went under the running system");
    for operation in [place::remove("lp-conf")?, place::rollback(job)] {
        let code = place.refused(operation, ChangeOptions::default())?;
        ensure!(code == ErrorCode::JobConflict, "{code}");
    }
    // Written until the reboot: it must not be lost.
    place
        .root
        .shell("mkdir -p /var/log/linux_patch_api; echo audited >/var/log/linux_patch_api/audit.log")?;

    let host = host.reboot(AT)?;
    let place = &host.place;
    before.assert_same(&place.state()?)?;
    let root = place.root.path();
    ensure!(
        !root.join("etc/mine").exists() && !root.join("srv/site").exists(),
        "what was listed is still there"
    );
    ensure!(root.join("etc/issue.net").exists(), "what had gone is not there again");
    let differs = host.disk.shell(&format!(
        "test -e {tree}/etc/passwd; diff -r --no-dereference -q {tree} /mnt/top/@ | grep -v -e linux_patch -e /var/lib/machines -e lp-test \
         -e taken-back -e sources.list -e machine-id -e policy-rc.d -e 'socket' -e 'fifo' || true"
    ))?;
    ensure!(differs.is_empty(), "{differs}");
    ensure!(place.root.read_text("/var/log/linux_patch_api/audit.log")? == "audited\n", "the trail is lost");
    place.root.shell("echo 1 >/var/lib/machines/data")?;
    ensure!(place.executor.seen(returned)?.ended().is_some(), "the end of going back is lost");
    ensure!(place.executor.seen(job)?.ended().is_some(), "the job is lost");
    // What ran before is kept as a snapshot is, and changes go on.
    ensure!(host.ours()? == [job.to_string(), returned.to_string()], "{:?}", host.ours()?);
    ensure!(
        host.disk.shell(&format!("cat {OURS}/{returned}/0/etc/mine"))? == "mine\n",
        "what ran before is gone"
    );
    // The version that was taken back is held off on the host that comes, too.
    let code = place.refused(place::update("lp-app")?, ChangeOptions::default())?;
    ensure!(code == ErrorCode::PkgVersionConflict, "{code}");
    place.let_in()?;
    place.must(place::remove("lp-conf")?, Outcome::Applied)?;
    place.executor.assert_no_panic()
}

/// As some distributions boot: by the default subvolume.
fn a_default_subvolume_goes_back_and_back_again() -> Result<()> {
    const MOUNTS: Mounts = &[("/", "noatime")];
    let disk = Disk::new("2G", "@")?;
    disk.shell("btrfs subvolume set-default /mnt/top/@")?;
    let mut host = Host::on(disk, MOUNTS, "required")?;
    let before = host.place.state()?;
    let mut ours = Vec::new();
    for round in 0..2 {
        let (job, _) = host.place.must(place::apply(&[])?, Outcome::Applied)?;
        host.place.root.shell("echo mine >/etc/mine")?;
        let plan = listed(&host, job, &[("/etc/mine", FileChange::Added)])?;
        let returned = go_back(&host, job, &plan)?;
        host = host.reboot(MOUNTS)?;
        before.assert_same(&host.place.state()?).with_context(|| format!("round {round}"))?;
        ensure!(!host.place.root.path().join("etc/mine").exists(), "/ did not go back");
        ensure!(host.place.executor.seen(returned)?.ended().is_some(), "the end of going back is lost");
        host.place.let_in()?;
        ours.extend([job.to_string(), returned.to_string()]);
        ensure!(host.ours()? == ours, "{:?}", host.ours()?);
    }
    Ok(())
}

/// A snapshot is made, and the refusal to go back to it says why and changes nothing.
fn left_to_a_person(host: &Host, words: &str) -> Result<JobId> {
    let (job, seen) = host.place.must(place::apply(&[])?, Outcome::Applied)?;
    ensure!(report(&seen)?.state == SnapshotState::Made, "{:#?}", report(&seen)?);
    let ours = host.ours()?;
    let error = host.place.executor.plan(to_snapshot(job, true)).err();
    let error = error.map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(error.contains(words) && error.contains("docs/snapshots.md"), "{error}");
    ensure!(host.ours()? == ours, "{:?}", host.ours()?);
    host.place.must(place::remove("lp-conf")?, Outcome::Applied)?;
    Ok(job)
}

fn what_one_exchange_does_not_do() -> Result<()> {
    // A root without a name.
    left_to_a_person(&Host::new("", &[("/", "subvolid=5")], "auto")?, "/ is the top of its file system")?;
    // A part of the system on another subvolume.
    let disk = Disk::new("2G", "@")?;
    disk.shell("cd /mnt/top; btrfs -q subvolume create @var >/dev/null; cp -a @/var/. @var/; rm -rf @/var; mkdir @/var")?;
    let host = Host::on(disk, &[("/", "subvol=@"), ("/var", "subvol=@var")], "required")?;
    left_to_a_person(&host, "2 subvolumes (/, /var)")?;
    // Somebody's data on a subvolume within: it would stay with what goes.
    let host = Host::new("@", AT, "auto")?;
    host.disk.shell(
        "btrfs -q subvolume create /mnt/top/@/srv/data >/dev/null; echo 1 >/mnt/top/@/srv/data/file",
    )?;
    let job = left_to_a_person(&host, "would stay behind: /srv/data")?;
    // Another subvolume is what boots.
    host.disk.shell("rm /mnt/top/@/srv/data/file")?;
    host.place
        .root
        .shell("cp /etc/fstab /run/fstab; echo '/dev/vda / btrfs subvolid=256 0 1' >>/etc/fstab")?;
    let error = host.place.executor.plan(to_snapshot(job, true)).err();
    let error = error.map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(error.contains("/etc/fstab: it is mounted by its number (subvolid=256)"), "{error}");
    host.place.root.shell("cat /run/fstab >/etc/fstab")?;
    host.place.executor.plan(to_snapshot(job, true))?;

    // A part of the system that is in no snapshot.
    let host = Host::new("@", AT, "required")?;
    host.disk.shell(
        "cd /mnt/top/@/var; mv lib lib.old; btrfs -q subvolume create lib >/dev/null; cp -a lib.old/. lib/; rm -r lib.old",
    )?;
    let error = host.place.executor.run(place::install(&["lp-plain"])?)?;
    let ended = error.ended().context("no end")?;
    let told = ended.error.as_ref().map(ToString::to_string).unwrap_or_default();
    ensure!(told.contains("/var/lib is a subvolume of its own"), "{told}");
    Ok(())
}

/// By a boot entry that was not known of: what boots after that may be the snapshot all the same.
fn a_host_that_booted_what_it_ran_from() -> Result<()> {
    let host = Host::new("@", AT, "auto")?;
    let before = host.place.state()?;
    let (job, _) = host.place.must(place::apply(&[])?, Outcome::Applied)?;
    let changed = host.place.state()?;
    let plan = listed(&host, job, &[])?;
    go_back(&host, job, &plan)?;
    let number = host.place.root.shell("grep -o 'subvolid=[0-9]*' /proc/self/mountinfo | head -n 1")?;
    let number: &'static str = Box::leak(number.trim().to_owned().into_boxed_str());
    let mounts: Mounts = Box::leak(Box::new([("/", number)]));
    let host = host.reboot(mounts)?;
    changed.assert_same(&host.place.state()?)?;
    let code = host.place.refused(place::remove("lp-conf")?, ChangeOptions::default())?;
    ensure!(code == ErrorCode::JobConflict, "{code}");
    let host = host.reboot(AT)?;
    before.assert_same(&host.place.state()?)?;
    host.place.must(place::remove("lp-conf")?, Outcome::Applied).map(drop)
}

fn called_off_as_documented() -> Result<()> {
    for mounts in [AT, &[("/", "noatime")]] {
        let disk = Disk::new("2G", "@")?;
        disk.shell("btrfs subvolume set-default /mnt/top/@; btrfs -q subvolume create /mnt/top/@/var/lib/machines >/dev/null")?;
        let host = Host::on(disk, mounts, "auto")?;
        let (job, _) = host.place.must(place::apply(&[])?, Outcome::Applied)?;
        let changed = host.place.state()?;
        let plan = listed(&host, job, &[])?;
        let returned = go_back(&host, job, &plan)?;
        // Whatever else is mounted by now, the guard stands.
        host.place.root.shell("mount --bind -o ro /etc /etc")?;
        let code = host.place.refused(place::install(&["lp-plain"])?, ChangeOptions::default())?;
        ensure!(code == ErrorCode::JobConflict, "{code}");
        host.place.root.shell("umount /etc")?;
        host.disk.shell(&format!(
            "cd /mnt/top; mv @ @gone; mv .linux-patch-snapshots/{returned}/0 @; btrfs subvolume set-default @; \
             btrfs -q subvolume delete @gone/var/lib/machines @gone >/dev/null"
        ))?;
        let host = host.reboot(mounts)?;
        changed.assert_same(&host.place.state()?)?;
        host.place.must(place::install(&["lp-plain"])?, Outcome::Applied)?;
    }
    Ok(())
}

fn what_cannot_be_fetched_is_kept() -> Result<()> {
    let host = Host::new("@", AT, "auto")?;
    let (job, _) = host.place.must(place::apply(&[])?, Outcome::Applied)?;
    let plan = listed(&host, job, &[])?;
    let returned = go_back(&host, job, &plan)?;
    host.place
        .root
        .shell("mkdir -p /var/log/linux_patch_api; echo audited >/var/log/linux_patch_api/audit.log")?;
    // What comes cannot copy logs.
    let script =
        "#!/bin/sh\ncase \"$*\" in *var/log/linux_patch_api*) exit 1;; esac\nexec /bin/cp.real \"$@\"\n";
    host.disk
        .shell(&format!("cd /mnt/top/@/bin/; mv cp cp.real; printf '%s' '{script}' >cp; chmod 755 cp"))?;
    let host = host.reboot(AT)?;
    // The root side's own has come, and what has not is kept whatever the limits are.
    ensure!(host.place.executor.seen(returned)?.ended().is_some(), "the end of going back is lost");
    host.place.root.shell("mv /bin/cp.real /bin/cp")?;
    host.place
        .configure("config.yaml", "rollback:\n  snapshots: {mode: auto, keep: 1, min_free_mib: 16}\n")?;
    grow_old(&host, returned)?;
    host.place.must(place::remove("lp-conf")?, Outcome::Applied)?;
    let kept = |host: &Host| {
        host.disk.shell(&format!("cat {OURS}/{returned}/0/var/log/linux_patch_api/audit.log || true"))
    };
    ensure!(kept(&host)? == "audited\n", "what was not fetched is gone");
    host.place.root.shell("rm /var/lib/linux_patch_executor/snapshots/arrival-failed.json")?;
    host.place.must(place::install(&["lp-plain"])?, Outcome::Applied)?;
    ensure!(kept(&host)?.is_empty(), "it is kept although nobody wants it any more");
    Ok(())
}

fn what_was_not_listed_is_not_taken_back() -> Result<()> {
    let host = Host::new("@", AT, "auto")?;
    let place = &host.place;
    let (job, _) = place.must(place::apply(&["lp-app"])?, Outcome::Applied)?;
    let plan = listed(&host, job, &[])?;
    // Without a hash it is not even begun.
    let error = place.executor.change(to_snapshot(job, true), ChangeOptions::default(), None).err();
    let refusal = error.as_ref().and_then(|error| error.downcast_ref::<Refusal>());
    ensure!(refusal.is_some_and(|refusal| refusal.code == ErrorCode::InvalidRequest), "{error:?}");
    // A log goes on, which makes no other list.
    place.root.shell("echo more >>/var/log/something; echo x >/var/log/other")?;
    ensure!(listed(&host, job, &[])?.hash == plan.hash, "a log has made another list");
    meddle(&host)?;
    let back =
        place.executor.change(to_snapshot(job, true), ChangeOptions::default(), Some(plan.hash.clone()))?;
    let ended = place.executor.ended(back)?;
    ensure!(
        ended.outcome == Some(Outcome::Unchanged)
            && ended.error.as_ref().is_some_and(|error| error.code == ErrorCode::PlanDrift),
        "{ended:#?}"
    );
    // A package that came since is named, too, and the SSH server is not taken away.
    let (_, _) = place.must(place::install(&["lp-plain"])?, Outcome::Applied)?;
    let plan = listed(&host, job, MEDDLED)?;
    ensure!(plan.changes.iter().any(|change| change.name.as_str() == "lp-plain"), "{:#?}", plan.changes);
    // root's ceiling may forbid it, and a freeze does.
    place.configure("ceiling.yaml", "operations: [apply_patches, rollback]\n")?;
    let refused = place
        .executor
        .change(to_snapshot(job, true), ChangeOptions::default(), Some(plan.hash.clone()))
        .err();
    let refusal = refused.as_ref().and_then(|error| error.downcast_ref::<Refusal>());
    ensure!(refusal.is_some_and(|refusal| refusal.code == ErrorCode::AuthzForbidden), "{refused:?}");
    place.root.shell("rm /etc/linux_patch_api/ceiling.yaml")?;
    // A job without a snapshot.
    place.configure("config.yaml", "rollback:\n  snapshots: {mode: off}\n")?;
    let (bare, seen) = place.must(place::remove("lp-plain")?, Outcome::Applied)?;
    ensure!(seen.way_back().is_some_and(|way| way.snapshot.is_none()), "{:#?}", seen.way_back());
    let error = place
        .executor
        .plan(to_snapshot(bare, false))
        .err()
        .map(|error| format!("{error:#}"))
        .unwrap_or_default();
    ensure!(error.contains("there is no snapshot"), "{error}");
    Ok(())
}

fn a_job_says_why_it_has_no_snapshot() -> Result<()> {
    let place = Place::on_day1(&["lp-app", "lp-conf"])?;
    place.configure("config.yaml", "rollback:\n  snapshots: {mode: auto}\n")?;
    let (_, seen) = place.must(place::apply(&["lp-app"])?, Outcome::Applied)?;
    let told = report(&seen)?;
    ensure!(told.state == SnapshotState::NotAvailable, "{told:#?}");
    ensure!(told.reason.as_ref().is_some_and(|reason| reason.contains("/ is on overlay")), "{told:#?}");
    place.configure("config.yaml", "rollback:\n  snapshots: {mode: required}\n")?;
    let code = place.refused(place::remove("lp-conf")?, ChangeOptions::default())?;
    ensure!(code == ErrorCode::RollbackUnavailable, "{code}");
    place.configure("config.yaml", "rollback:\n  snapshots: {mod: auto}\n")?;
    let code = place.refused(place::remove("lp-conf")?, ChangeOptions::default())?;
    ensure!(code == ErrorCode::ConfigInvalid, "{code}");

    // No room, no tool.
    let host = Host::new("@", AT, "auto")?;
    let reason = |mib: u32| -> Result<String> {
        host.place.configure(
            "config.yaml",
            &format!("rollback:\n  snapshots: {{mode: auto, min_free_mib: {mib}}}\n"),
        )?;
        let seen = host.place.executor.run(place::install(&["lp-plain"])?)?;
        let told = report(&seen)?.reason.clone().unwrap_or_default();
        host.place.must(place::remove("lp-plain")?, Outcome::Applied)?;
        Ok(told)
    };
    let told = reason(1_000_000)?;
    ensure!(told.contains("MiB free"), "{told}");
    host.place.root.shell("rm /usr/bin/btrfs")?;
    let told = reason(1)?;
    ensure!(told.contains("btrfs-progs"), "{told}");
    ensure!(host.ours()?.is_empty(), "{:?}", host.ours()?);
    Ok(())
}

/// Dates the record of a snapshot long ago.
fn grow_old(host: &Host, job: JobId) -> Result<()> {
    host.place.root.shell(&format!(
        "cd /var/lib/linux_patch_executor/snapshots; python3 -SE - {job} <<'E'\nimport json, sys\n\
         path = sys.argv[1] + '.json'\nrecord = json.load(open(path))\nrecord['at'] = '2020-01-01T00:00:00Z'\n\
         json.dump(record, open(path, 'w'))\nE"
    ))?;
    Ok(())
}

fn removed_by_number_and_age() -> Result<()> {
    let host = Host::new("@", AT, "auto")?;
    // Of somebody else: by its name like one of ours, but not on record.
    let stranger = "018f0000-0000-7000-8000-000000000001";
    host.disk.shell(&format!(
        "mkdir -p {OURS}/{stranger}; btrfs -q subvolume snapshot -r /mnt/top/@ {OURS}/{stranger}/0 >/dev/null"
    ))?;
    let mut jobs = Vec::new();
    for _ in 0..3 {
        jobs.push(host.place.must(place::install(&["lp-plain"])?, Outcome::Applied)?.0);
        jobs.push(host.place.must(place::remove("lp-plain")?, Outcome::Applied)?.0);
    }
    let kept = |jobs: &[JobId]| -> Result<()> {
        let mut expected: Vec<String> =
            jobs.iter().map(ToString::to_string).chain([stranger.to_owned()]).collect();
        expected.sort();
        ensure!(host.ours()? == expected, "{:?} is not {expected:?}", host.ours()?);
        Ok(())
    };
    kept(jobs.get(3..).context("jobs")?)?;
    // The days pass for all but the newest.
    for job in jobs.get(3..5).context("jobs")? {
        grow_old(&host, *job)?;
    }
    // One that waits to be confirmed is needed, and so is no other.
    let options = ChangeOptions { confirm_within: Some(600), ..ChangeOptions::default() };
    let waits = host.place.executor.change(place::install(&["lp-plain"])?, options, None)?;
    host.place.executor.follow_until(waits, |seen| {
        seen.events.iter().any(|event| matches!(event.kind, patch_types::EventKind::Confirm { .. }))
    })?;
    host.place
        .configure("config.yaml", "rollback:\n  snapshots: {mode: auto, keep: 1, min_free_mib: 16}\n")?;
    let confirmed = host
        .place
        .executor
        .ask(JobId(uuid::Uuid::now_v7()), patch_types::executor::RequestBody::Confirm { job: waits });
    confirmed?;
    host.place.ends(waits, Outcome::Applied)?;
    let last = host.place.must(place::remove("lp-plain")?, Outcome::Applied)?.0;
    kept(&[last])?;
    let records = host.place.root.shell("ls /var/lib/linux_patch_executor/snapshots")?;
    ensure!(records.trim() == format!("{last}.json"), "{records}");
    Ok(())
}

/// Everything dies between the record and the snapshot, and between the snapshot and the record.
fn broken_off_leaves_nothing() -> Result<()> {
    for when in ["before", "after"] {
        let host = Host::new("@", AT, "required")?;
        let place = &host.place;
        let before = place.state()?;
        // Stops where a snapshot is made.
        let script = "#!/bin/sh\ncase \"$2\" in snapshot) ;; *) exec /usr/bin/btrfs.real \"$@\";; esac\n\
                      [ \"$(cat /run/when)\" = before ] || /usr/bin/btrfs.real \"$@\"\n\
                      : >/run/stopped; exec sleep 1000\n";
        place.root.shell("mv /usr/bin/btrfs /usr/bin/btrfs.real")?;
        place.root.push(script, "/usr/bin/btrfs", "755")?;
        place.root.push(when, "/run/when", "644")?;
        let job = place.executor.change(place::apply(&[])?, ChangeOptions::default(), None)?;
        let stopped = place.root.path().join("run/stopped");
        wait::until("the tool to be run", LIMIT, || Ok(stopped.exists().then_some(())))?;
        place.executor.kill_everything()?;
        place.root.shell("mv /usr/bin/btrfs.real /usr/bin/btrfs")?;
        let records = place.root.shell("ls /var/lib/linux_patch_executor/snapshots")?;
        ensure!(records.trim() == format!("{job}.json"), "it was not on record: {records}");
        ensure!(host.ours()? == [job.to_string()], "{:?}", host.ours()?);
        place.executor.recover()?;
        place.ends(job, Outcome::Unchanged)?;
        ensure!(host.ours()?.is_empty(), "{when}: {:?}", host.ours()?);
        let records = place.root.shell("ls /var/lib/linux_patch_executor/snapshots")?;
        ensure!(records.trim().is_empty(), "{records}");
        before.assert_same(&place.state()?)?;
        place.must(place::apply(&[])?, Outcome::Applied)?;
    }
    Ok(())
}

/// Everything dies when the file system's tool is run for the Nth time, on the way back: every N with
/// `LINUX_PATCH_EXHAUSTIVE=1`.
fn a_return_that_was_broken_off() -> Result<()> {
    let is_exhaustive = std::env::var_os("LINUX_PATCH_EXHAUSTIVE").is_some_and(|value| value == "1");
    let calls: Vec<u32> = if is_exhaustive { (1..).take(60).collect() } else { vec![6, 9, 12] };
    for call in calls {
        if !broken_off_at(call).with_context(|| format!("at call {call} of the tool"))? {
            ensure!(is_exhaustive, "it is never run {call} times");
            return Ok(());
        }
    }
    Ok(())
}

/// Whether the tool is run so often.
fn broken_off_at(call: u32) -> Result<bool> {
    let host = Host::new("@", AT, "auto")?;
    let place = &host.place;
    let before = place.state()?;
    let (job, _) = place.must(place::apply(&[])?, Outcome::Applied)?;
    place.root.shell("echo mine >/etc/mine")?;
    let plan = listed(&host, job, &[("/etc/mine", FileChange::Added)])?;
    let script = format!(
        "#!/bin/sh\necho >>/run/count\n[ \"$(wc -l </run/count)\" = {call} ] || exec /run/btrfs.real \"$@\"\n\
         /run/btrfs.real \"$@\"; : >/run/stopped; exec sleep 1000\n"
    );
    // A bind mount: the files themselves are what is listed.
    place.root.push(script, "/run/btrfs", "755")?;
    place.root.shell("cp -a /usr/bin/btrfs /run/btrfs.real; mount --bind /run/btrfs /usr/bin/btrfs")?;
    let back =
        place.executor.change(to_snapshot(job, true), ChangeOptions::default(), Some(plan.hash.clone()))?;
    let stopped = place.root.path().join("run/stopped");
    wait::until("the tool to be run", LIMIT, || {
        Ok((stopped.exists() || place.executor.seen(back)?.ended().is_some()).then_some(()))
    })?;
    let was_stopped = stopped.exists();
    if was_stopped {
        place.executor.kill_everything()?;
    }
    place.root.shell("umount /usr/bin/btrfs")?;
    place.executor.recover()?;
    let seen = place.executor.follow(back)?;
    let ended = seen.ended().context("no end")?;
    // While it was planned nothing was begun; afterwards it is brought to its end.
    if ended.outcome == Some(Outcome::Unchanged) {
        ensure!(was_stopped, "{ended:#?}");
        ensure!(host.ours()? == [job.to_string()], "{:?}", host.ours()?);
        ensure!(place.root.read_text("/etc/mine")? == "mine\n", "it went back");
        go_back(&host, job, &plan)?;
        return Ok(true);
    }
    ensure!(ended.outcome == Some(Outcome::Applied), "{ended:#?}");
    let host = host.reboot(AT)?;
    before.assert_same(&host.place.state()?)?;
    ensure!(!host.place.root.path().join("etc/mine").exists(), "it did not go back");
    ensure!(host.place.executor.seen(back)?.ended().is_some(), "the end is lost");
    ensure!(host.ours()? == [job.to_string(), back.to_string()], "{:?}", host.ours()?);
    Ok(was_stopped)
}

/// Everything dies when the copy is there and nothing is exchanged; then somebody writes what was on no list.
fn what_is_taken_up_again_is_listed_again() -> Result<()> {
    let host = Host::new("@", AT, "auto")?;
    let place = &host.place;
    let (job, _) = place.must(place::apply(&[])?, Outcome::Applied)?;
    let plan = listed(&host, job, &[])?;
    let script = "#!/bin/sh\ncase \"$*\" in\n\"subvolume snapshot -r\"*) ;;\n\"subvolume snapshot \"*)\n\
                  /run/btrfs.real \"$@\"; : >/run/stopped; exec sleep 1000;;\nesac\nexec /run/btrfs.real \"$@\"\n";
    place.root.push(script, "/run/btrfs", "755")?;
    place.root.shell("cp -a /usr/bin/btrfs /run/btrfs.real; mount --bind /run/btrfs /usr/bin/btrfs")?;
    let back =
        place.executor.change(to_snapshot(job, true), ChangeOptions::default(), Some(plan.hash.clone()))?;
    let stopped = place.root.path().join("run/stopped");
    wait::until("the copy to be made", LIMIT, || Ok(stopped.exists().then_some(())))?;
    place.executor.kill_everything()?;
    place.root.shell("umount /usr/bin/btrfs; echo mine >/etc/mine")?;
    ensure!(host.ours()? == [job.to_string(), back.to_string()], "{:?}", host.ours()?);
    place.executor.recover()?;
    let seen = place.ends(back, Outcome::Unchanged)?;
    let error = seen.ended().and_then(|ended| ended.error.clone()).context("no error")?;
    ensure!(error.code == ErrorCode::PlanDrift, "{error:#?}");
    // Nothing of it is left, and nothing waits for a reboot.
    ensure!(host.ours()? == [job.to_string()], "{:?}", host.ours()?);
    let plan = listed(&host, job, &[("/etc/mine", FileChange::Added)])?;
    go_back(&host, job, &plan)?;
    let host = host.reboot(AT)?;
    ensure!(!host.place.root.path().join("etc/mine").exists(), "it did not go back");
    Ok(())
}

fn snapper_makes_it() -> Result<()> {
    let host = Host::new("@", AT, "auto")?;
    let place = &host.place;
    disk::configure_snapper(&place.root.path(), &place.root)?;
    let (job, seen) = place.must(place::apply(&[])?, Outcome::Applied)?;
    let made = report(&seen)?;
    ensure!(made.kind == Some(SnapshotKind::Snapper) && made.names == ["root 1"], "{made:#?}");
    let list =
        place.root.shell("snapper --no-dbus --jsonout -c root list --columns number,cleanup,userdata")?;
    ensure!(
        list.contains(&format!("\"linux-patch-job\": \"{job}\"")) && list.contains("\"cleanup\": \"number\""),
        "{list}"
    );
    ensure!(host.ours()?.is_empty(), "{:?}", host.ours()?);
    // As snapper makes it, its directory is a subvolume within.
    let refused = |host: &Host, job: JobId| {
        let error = host.place.executor.plan(to_snapshot(job, false)).err();
        error.map(|error| format!("{error:#}")).unwrap_or_default()
    };
    let error = refused(&host, job);
    ensure!(
        error.contains("would stay behind: /.snapshots") && error.contains("snapper -c root undochange 1..0"),
        "{error}"
    );
    place.must(place::remove("lp-app")?, Outcome::Applied)?;

    // As installers lay it out, it is one of its own.
    const WITH: Mounts = &[("/", "subvol=@"), ("/.snapshots", "subvol=@snapshots")];
    place.root.shell("snapper --no-dbus -c root delete 1-2; btrfs -q subvolume delete /.snapshots >/dev/null; mkdir /.snapshots")?;
    host.disk
        .shell("btrfs -q subvolume create /mnt/top/@snapshots >/dev/null; chmod 750 /mnt/top/@snapshots")?;
    let host = host.reboot(WITH)?;
    let before = host.place.state()?;
    let (job, seen) = host.place.must(place::install(&["lp-plain"])?, Outcome::Applied)?;
    ensure!(report(&seen)?.names == ["root 1"], "{:#?}", report(&seen)?);
    meddle(&host)?;
    let plan = listed(&host, job, MEDDLED)?;
    go_back(&host, job, &plan)?;
    let host = host.reboot(WITH)?;
    before.assert_same(&host.place.state()?)?;
    ensure!(!host.place.root.path().join("etc/mine").exists(), "it did not go back");
    // snapper's snapshots are where it looks for them; each is told apart by more than its number, and it removes one of ours
    // as any other.
    host.place.executor.plan(to_snapshot(job, false))?;
    host.place.root.shell("snapper --no-dbus -c root delete 1")?;
    let error = refused(&host, job);
    ensure!(error.contains("not there any more"), "{error}");
    host.place.let_in()?;
    host.place.must(place::remove("lp-conf")?, Outcome::Applied)?;
    let records = host.place.root.shell("ls /var/lib/linux_patch_executor/snapshots")?;
    ensure!(!records.contains(&job.to_string()), "the record of what snapper removed stays: {records}");
    Ok(())
}

/// There is no device mapper to try it on: tools that only note what they are told, and answer as LVM's do.
const LVM: &str = "#!/bin/sh
echo \"${0##*/} $*\" >>/run/lvm.log
name() { while [ $# -gt 0 ]; do [ \"$1\" != --name ] || echo \"$2\"; shift; done; }
case \"${0##*/} $*\" in
*data_percent*) echo '{\"report\":[{\"lv\":[{\"data_percent\":\"'\"$(cat /run/full)\"'\",\"metadata_percent\":\"5.00\"}]}]}';;
lvs*)
  printf '{\"report\":[{\"lv\":[{\"vg_name\":\"vg\",\"lv_name\":\"root\",\"pool_lv\":\"pool\",\"lv_tags\":\"\"}'
  for one in $(ls /run/lvm); do printf ',{\"vg_name\":\"vg\",\"lv_name\":\"%s\",\"pool_lv\":\"pool\",\"lv_tags\":\"linux_patch\"}' \"$one\"; done
  echo ']}]}';;
lvcreate*) : >\"/run/lvm/$(name \"$@\")\";;
lvremove*) rm \"/run/lvm/${2#vg/}\";;
esac
";

fn thin_volumes_by_the_tools_of_lvm() -> Result<()> {
    let disk = Disk::ext4("2G")?;
    let place = Place::with(disk.root(&[("/", "noatime")]), INSTALLED, &Packages::executor()?)?;
    place.day(1)?;
    place.configure("config.yaml", "rollback:\n  snapshots: {mode: auto, keep: 1}\n")?;
    let seen = place.executor.run(place::install(&["lp-plain"])?)?;
    let told = report(&seen)?.reason.clone().unwrap_or_default();
    ensure!(told.contains("/ is on ext4"), "{told}");

    place.root.shell("mkdir /run/lvm; echo 10.00 >/run/full")?;
    for tool in ["lvs", "lvcreate", "lvremove"] {
        place.root.push(LVM, &format!("/usr/sbin/{tool}"), "755")?;
    }
    let (first, seen) = place.must(place::remove("lp-plain")?, Outcome::Applied)?;
    let made = report(&seen)?;
    let name = format!("vg/linux-patch-{first}-0");
    ensure!(made.kind == Some(SnapshotKind::Lvm) && made.names == [name.clone()], "{made:#?}");
    let log = place.root.read_text("/run/lvm.log")?;
    let create = format!(
        "lvcreate --snapshot --permission r --addtag linux_patch --name linux-patch-{first}-0 vg/root"
    );
    ensure!(log.contains("vg_name,lv_name,pool_lv,lv_tags /dev/loop") && log.contains(&create), "{log}");
    // What it does not do by itself it says how to do.
    let error = place
        .executor
        .plan(to_snapshot(first, true))
        .err()
        .map(|error| format!("{error:#}"))
        .unwrap_or_default();
    ensure!(error.contains(&format!("lvconvert --merge {name}")), "{error}");
    let (second, _) = place.must(place::install(&["lp-plain"])?, Outcome::Applied)?;
    ensure!(
        place.root.shell("ls /run/lvm")?.trim() == format!("linux-patch-{second}-0"),
        "{}",
        place.root.shell("ls /run/lvm")?
    );
    place.root.shell("echo 95.00 >/run/full")?;
    let seen = place.executor.run(place::remove("lp-plain")?)?;
    let told = report(&seen)?.reason.clone().unwrap_or_default();
    ensure!(told.contains("the pool vg/pool of / is 95 % full"), "{told}");
    Ok(())
}
