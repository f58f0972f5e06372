//! `provision unattended`: has the distribution's own tools install security fixes by themselves, shows what that changes,
//! reads it back, says what it is worth, and takes it back on request.

mod backup;
pub(crate) mod check;
pub(crate) mod content;
mod diff;

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use patch_backends::system::parse_os_release;
use serde_json::json;

use self::{
    backup::{Note, sha256},
    check::{InForce, Promise, is_installed},
    content::{Address, Distribution, MailReport, TimeOfDay, UPGRADES, Wanted, Wish},
};
use crate::{
    apt_conf::{AptConf, Setting},
    below::Below,
    exit::Exit,
    log,
    place::{Found, PlaceError, Places},
    policy,
    screen::Screen,
    tools::Ask,
};

/// Of what is written where the agent patches.
const AGENTS: &str = "policy.mode is agent, so the agent patches this host and unattended-upgrades is kept off: what is set up here \
                      installs nothing until that mode is switched off or the agent does not succeed. `linux-patch-host policy \
                      status` says more";

/// What is to be set up, and how.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Unattended {
    /// Install ordinary updates as well, not security fixes alone
    #[arg(long)]
    with_updates: bool,
    /// Have apt's jobs run once a calendar day, by the distribution's own timers. A fix can then take two days
    #[arg(long)]
    as_source: bool,
    /// Send a mail about runs, to an address or a user of this host
    #[arg(long, value_name = "ADDRESS")]
    mail_to: Option<Address>,
    /// When a mail is sent
    #[arg(long, value_name = "WHEN", default_value = "on-change")]
    mail_report: MailReport,
    /// When the host would reboot if somebody switched automatic reboots on; they are off
    #[arg(long, value_name = "HH:MM", default_value_t = TimeOfDay::default())]
    reboot_time: TimeOfDay,
    /// Only show what would be changed
    #[arg(long, short = 'n')]
    dry_run: bool,
    /// Bring back what was there before the first time
    #[arg(long, conflicts_with_all = ["with_updates", "as_source", "mail_to"])]
    undo: bool,
    /// Also where somebody has changed a file since, or a list of excluded packages is lost. Copies are kept
    #[arg(long)]
    force: bool,
}

/// A file, as it is and as it is to be. They are different.
#[derive(Debug)]
struct Change {
    path: PathBuf,
    now: Option<Found>,
    new: Option<Found>,
}

impl Change {
    fn diff(&self) -> String {
        let text = |found: &Option<Found>| {
            found.as_ref().map(|found| String::from_utf8_lossy(&found.content).into_owned())
        };
        let name = self.name();
        let diff = diff::unified(&name, text(&self.now).as_deref(), text(&self.new).as_deref());
        match (&self.now, &self.new) {
            (Some(now), Some(new)) if diff.is_empty() => format!(
                "{name}: mode {:o}, owner {}:{} become mode {:o}, owner {}:{}\n",
                now.mode, now.uid, now.gid, new.mode, new.uid, new.gid
            ),
            _ => diff,
        }
    }

    fn name(&self) -> String {
        format!("/{}", self.path.display())
    }

    fn sentence(&self) -> String {
        let told = |found: &Option<Found>| {
            found
                .as_ref()
                .map_or_else(|| "nothing".to_owned(), |found| format!("SHA-256 {}", sha256(&found.content)))
        };
        let verb = if self.new.is_some() { "writes" } else { "removes" };
        format!("{verb} {} ({}, before that {})", self.name(), told(&self.new), told(&self.now))
    }

    fn make(&self, places: &Places) -> Result<Vec<PathBuf>, PlaceError> {
        match &self.new {
            Some(new) => places.put(&self.path, new),
            None => places.remove(&self.path).map(|()| Vec::new()),
        }
    }
}

/// A system that is set up.
struct Site<'a> {
    files: &'a Below,
    places: Places,
    tools: &'a dyn Ask,
}

/// Runs the command.
///
/// # Errors
/// When something is refused or fails; the message says what was changed by then, if anything was.
pub(crate) fn unattended(
    files: &Below,
    tools: &dyn Ask,
    screen: &mut Screen,
    options: &Unattended,
) -> anyhow::Result<Exit> {
    let site = Site { files, places: Places::new(files.root()), tools };
    if options.undo {
        return site.undo(screen, options);
    }
    let release = files.read("etc/os-release").or_else(|_| files.read("usr/lib/os-release"));
    let release =
        parse_os_release(&String::from_utf8_lossy(&release.context("cannot read /etc/os-release")?));
    let wish = Wish {
        distribution: Distribution::of(&release)?,
        with_updates: options.with_updates,
        once_a_day: options.as_source,
        mail_to: options.mail_to.clone(),
        mail_report: options.mail_report,
        reboot_time: options.reboot_time,
    };
    site.provision(screen, options, &wish)
}

/// A file of ours as it is written: root's, or whoever's the system below a directory is.
fn ours(root: &Path, text: String) -> Found {
    let (uid, gid) = match root == Path::new("/") {
        true => (0, 0),
        false => (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()),
    };
    Found { content: text.into_bytes(), mode: 0o644, uid, gid }
}

impl Site<'_> {
    fn provision(&self, screen: &mut Screen, options: &Unattended, wish: &Wish) -> anyhow::Result<Exit> {
        let lock = if options.dry_run { None } else { Some(backup::lock(self.files, &self.places)?) };
        let mut note = match Note::read(&self.places) {
            // Whoever only looks need not be root; then nothing counts as ours.
            Err(_) if options.dry_run => Note::default(),
            other => other?,
        };
        let mut changes = Vec::new();
        let mut same = Vec::new();
        for wanted in wish.files() {
            match self.change(&note, wanted)? {
                Ok(change) => changes.push(change),
                Err(path) => same.push(path),
            }
        }
        let lost = lost(&changes, &note, wish);
        let blacklisted = lost.iter().any(|name| name.starts_with("Unattended-Upgrade::Package-Blacklist"));
        let lost = if lost.is_empty() {
            None
        } else {
            Some(format!(
                "/{UPGRADES} also sets {}; that will be lost. Put it into a file of its own, such as \
                 /etc/apt/apt.conf.d/51unattended-upgrades-local",
                lost.join(", ")
            ))
        };
        if options.dry_run {
            return self.show(screen, &changes, lost.as_deref());
        }
        if let Some(lost) = lost.as_deref().filter(|_| blacklisted && !options.force) {
            anyhow::bail!("{lost}. Nothing was changed; --force goes on without it");
        }
        let mut copies = Vec::new();
        for change in &changes {
            let path = change.path.to_string_lossy();
            let new = change.new.as_ref().map(|new| String::from_utf8_lossy(&new.content));
            if let Some(copy) = note.keep(&self.places, &path, change.now.as_ref(), new.as_deref())? {
                copies.push(format!(
                    "{} had been edited; the edited file is kept as /{}",
                    change.name(),
                    copy.display()
                ));
            }
        }
        if !changes.is_empty() {
            note.write(&self.places)?;
        }
        let made = self.make(&changes, "provision unattended")?;
        if !made.is_empty() {
            note.made(made);
            note.write(&self.places)?;
        }
        drop(lock);
        copies.extend(lost.filter(|_| !changes.is_empty()));
        self.report(screen, wish, &changes, &same, copies)
    }

    /// What has to be done to one file; its path if nothing.
    fn change(&self, note: &Note, wanted: Wanted) -> anyhow::Result<Result<Change, String>> {
        let now = self.places.look(Path::new(wanted.path))?;
        let new = wanted.content.map(|text| ours(self.files.root(), text));
        // What is not to be there and is not ours is somebody else's.
        let is_theirs = new.is_none() && now.as_ref().is_some_and(|now| !note.is_ours(wanted.path, now));
        if now == new || is_theirs {
            return Ok(Err(format!("/{}", wanted.path)));
        }
        Ok(Ok(Change { path: wanted.path.into(), now, new }))
    }

    /// Makes the changes, each on record before it is made. Gives the directories that were made.
    fn make(&self, changes: &[Change], command: &str) -> anyhow::Result<Vec<PathBuf>> {
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        let sentences: Vec<_> =
            changes.iter().map(|change| format!("{command} {}", change.sentence())).collect();
        log::record(self.files, &sentences)?;
        let mut made = Vec::new();
        for (index, change) in changes.iter().enumerate() {
            let before = || match index {
                0 => "nothing was changed".to_owned(),
                _ => format!("{index} of {} files were changed; `--undo` brings them back", changes.len()),
            };
            made.extend(change.make(&self.places).with_context(before)?);
        }
        let is_unit = |change: &Change| change.path.starts_with("etc/systemd");
        if changes.iter().any(is_unit) && self.files.is_there("run/systemd/system") {
            match self.tools.ask("systemctl", &["daemon-reload"]) {
                Ok(_) | Err(crate::tools::ToolError::Foreign(_) | crate::tools::ToolError::Absent(_)) => {}
                Err(error) => {
                    return Err(error).context("the files are written, but systemd does not know of it yet");
                }
            }
        }
        Ok(made)
    }

    fn show(&self, screen: &mut Screen, changes: &[Change], lost: Option<&str>) -> anyhow::Result<Exit> {
        let diff: String = changes.iter().map(Change::diff).collect();
        if screen.is_json() {
            let names: Vec<_> = changes.iter().map(Change::name).collect();
            screen.json(&json!({"dry_run": true, "would_change": names, "diff": diff, "lost": lost}))?;
            return Ok(Exit::Done);
        }
        if diff.is_empty() {
            screen.remark("Nothing would be changed.");
        } else {
            screen.text(&diff);
        }
        if let Some(lost) = lost {
            screen.remark(lost);
        }
        if policy::is_agents(self.files) {
            screen.remark(AGENTS);
        }
        Ok(Exit::Done)
    }

    fn report(
        &self,
        screen: &mut Screen,
        wish: &Wish,
        changes: &[Change],
        same: &[String],
        mut remarks: Vec<String>,
    ) -> anyhow::Result<Exit> {
        let in_force = InForce::look(self.files, self.tools);
        let differences = in_force.differences(wish, self.files);
        let promise = in_force.promise(self.files);
        if let Err(error) = &in_force.apt {
            remarks.push(format!("apt's own view was not looked at: {error}; the files were read instead"));
        }
        if wish.mail_to.is_some()
            && !["usr/bin/mail", "usr/bin/mailx", "usr/sbin/sendmail"].iter().any(|p| self.files.is_there(p))
        {
            remarks.push("No mail will be sent: there is neither mail(1) nor sendmail(8); install msmtp-mta and bsd-mailx, for one".to_owned());
        }
        if policy::is_agents(self.files) {
            remarks.push(AGENTS.to_owned());
        }
        if !is_installed(self.files, "needrestart") {
            remarks.push(
                "needrestart is not installed: nothing tells which services still run old code".to_owned(),
            );
        }
        let is_good = differences.is_empty() && !matches!(promise, Promise::Never(_));
        let exit = if is_good { Exit::Done } else { Exit::Failed };
        let names = |is_new: bool| -> Vec<String> {
            changes.iter().filter(|change| change.new.is_some() == is_new).map(Change::name).collect()
        };
        if screen.is_json() {
            let worst = match &promise {
                Promise::Within(case) => {
                    json!({
                        "minutes": case.total().as_mins(), "until_lists": case.lists.as_mins(),
                        "until_installed": case.upgrade.as_mins(),
                    })
                }
                Promise::Never(reasons) => json!({"never": reasons}),
                Promise::Unknown(reason) => json!({"unknown": reason}),
            };
            screen.json(&json!({
                "written": names(true), "removed": names(false), "unchanged": same, "differences": differences,
                "remarks": remarks, "worst_case": worst,
            }))?;
            return Ok(exit);
        }
        for (verb, names) in [("written", names(true)), ("removed", names(false))] {
            names.iter().for_each(|name| screen.text(&format!("{verb} {name}")));
        }
        if changes.is_empty() {
            screen.remark("Everything was written already.");
        }
        remarks.iter().for_each(|remark| screen.remark(remark));
        differences.iter().for_each(|difference| screen.text(&format!("not in force: {difference}")));
        promise.sentences(&in_force).iter().for_each(|sentence| screen.text(sentence));
        Ok(exit)
    }

    fn undo(&self, screen: &mut Screen, options: &Unattended) -> anyhow::Result<Exit> {
        let lock = if options.dry_run { None } else { Some(backup::lock(self.files, &self.places)?) };
        let note = Note::read(&self.places)?;
        if note.is_empty() {
            screen.remark("There is nothing to undo: this host was not set up by this program.");
            return Ok(Exit::Done);
        }
        let undo = note.undo(&self.places)?;
        let edited: Vec<_> = undo.iter().filter(|undo| undo.edited).collect();
        if !options.force {
            let names: Vec<_> = edited.iter().map(|undo| format!("/{}", undo.path.display())).collect();
            ensure!(
                names.is_empty(),
                "{} was changed since by somebody else; nothing was undone. Look at it, or use --force, which keeps a copy",
                names.join(", ")
            );
        }
        let changes: Vec<_> = undo
            .iter()
            .filter(|undo| undo.now != undo.before)
            .map(|undo| Change { path: undo.path.clone(), now: undo.now.clone(), new: undo.before.clone() })
            .collect();
        if options.dry_run {
            return self.show(screen, &changes, None);
        }
        let mut copies = Vec::new();
        let mut kept = Vec::new();
        for undo in &edited {
            if let Some(now) = &undo.now {
                let copy = Note::keep_edited(&self.places, now)?;
                copies.push(format!("the edited /{} is kept as /{}", undo.path.display(), copy.display()));
                kept.push(sha256(&now.content));
            }
        }
        self.make(&changes, "provision unattended --undo")?;
        note.forget(&self.places, &kept)?;
        drop(lock);
        let names: Vec<_> = changes.iter().map(Change::name).collect();
        if screen.is_json() {
            screen.json(&json!({"restored": names, "remarks": copies}))?;
            return Ok(Exit::Done);
        }
        for change in &changes {
            let verb = if change.new.is_some() { "brought back" } else { "removed" };
            screen.text(&format!("{verb} {}", change.name()));
        }
        copies.iter().for_each(|remark| screen.remark(remark));
        Ok(Exit::Done)
    }
}

/// What the present file of unattended-upgrades' settings sets that is neither ours nor the package's own default.
fn lost(changes: &[Change], note: &Note, wish: &Wish) -> Vec<String> {
    let theirs = changes
        .iter()
        .find(|change| change.path == Path::new(UPGRADES))
        .and_then(|change| change.now.as_ref());
    let Some(found) = theirs.filter(|found| !note.is_ours(UPGRADES, found)) else { return Vec::new() };
    let mut conf = AptConf::default();
    conf.add(UPGRADES, &String::from_utf8_lossy(&found.content));
    let settings = wish.settings();
    let is_replaced = |theirs: &Setting| {
        let name = theirs.name.trim_end_matches("::");
        settings.iter().filter(|setting| setting.name.eq_ignore_ascii_case(name)).any(|setting| {
            !setting.is_list || setting.values.iter().any(|value| covers(value, &theirs.value))
        })
    };
    let mut lost: Vec<String> = conf
        .all()
        .iter()
        .filter(|setting| !is_replaced(setting))
        .map(|setting| format!("{} \"{}\"", setting.name, setting.value))
        .collect();
    lost.dedup();
    lost
}

/// Whether what may be installed by an entry of a list may be by another one too: a pattern that asks for more allows less.
fn covers(ours: &str, theirs: &str) -> bool {
    let terms =
        |entry: &str| -> Vec<String> { entry.split(',').map(|term| term.trim().to_owned()).collect() };
    let theirs = terms(theirs);
    terms(ours).iter().all(|term| theirs.contains(term))
}

#[cfg(test)]
mod tests;
