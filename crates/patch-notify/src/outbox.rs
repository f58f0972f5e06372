//! Reports on disk until everybody who is to be told has been.
//!
//! Each report is a file of its id, which says beside the report who has been told, and for whom it was tried how often.
//! Before a message is sent, that it is tried, and as part of which digest, is on disk, and so is a draft of what the file
//! will say after a yes, which then only has to be renamed: a full disk keeps a message from being sent, not from being
//! noted. Who dies between the server's yes and the renaming sends once more, with the same id, by which the receiver can
//! tell. What was delivered or given up becomes an empty file after a while, which stays for as long as there is something
//! that a report could be made from again.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use patch_types::notifications::{Notifications, ReportMode};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::{
    error::{NotifyError, Reason},
    report::{Message, Report},
    secret::Secrets,
};

/// The largest file, in bytes. A report is shortened so that it fits.
const MOST: u64 = 4 << 20;

/// For how long it is tried to deliver a report.
const TRIED: SignedDuration = SignedDuration::from_hours(7 * 24);

/// For how long a report is kept; then only that there was one.
const KEPT: SignedDuration = SignedDuration::from_hours(30 * 24);

/// How many reports are kept; the oldest go first.
const MOST_REPORTS: usize = 1000;

/// How many reports a digest has, and how long they may be together, in bytes.
const MOST_TOGETHER: (usize, usize) = (50, 4 << 20);

/// How many messages a channel may refuse one after another until the others wait for the next delivery.
const MOST_REFUSED: usize = 5;

/// After that long nothing further is sent; the next delivery goes on. With the longest time that one message may take it
/// stays below what the service may take.
const LONGEST: Duration = Duration::from_secs(240);

/// The shortest wait after a failure; each further one doubles it.
const FIRST_WAIT: SignedDuration = SignedDuration::from_mins(2);

/// The longest wait for a message that is refused.
const LONGEST_WAIT: SignedDuration = SignedDuration::from_hours(6);

/// The longest wait for a channel that cannot be reached.
const LONGEST_CHANNEL_WAIT: SignedDuration = SignedDuration::from_hours(1);

/// Where it is kept which channels are waited for.
const CHANNELS: &str = "channels";

/// A report and who has been told.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Entry {
    report: Report,
    queued: Timestamp,
    #[serde(default)]
    told: BTreeSet<String>,
    #[serde(default)]
    tries: BTreeMap<String, Tries>,
}

/// How often something was tried.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Tries {
    attempts: u32,
    /// Not before then; null as soon as its channel can be used.
    #[serde(default)]
    next_try: Option<Timestamp>,
    /// The id of the digest that it is part of. It stays so, whatever is sent later.
    #[serde(default)]
    digest: Option<Uuid>,
}

impl Tries {
    fn is_due(&self, now: Timestamp) -> bool {
        // A clock that was set back must not hold it for ever.
        self.next_try.is_none_or(|next| next <= now || next.duration_since(now) > LONGEST_WAIT)
    }
}

fn next_try(attempts: u32, longest: SignedDuration, now: Timestamp) -> Option<Timestamp> {
    let doubled = 1_i32.checked_shl(attempts.saturating_sub(1)).filter(|factor| *factor > 0);
    let wait = doubled.and_then(|factor| FIRST_WAIT.checked_mul(factor)).unwrap_or(longest);
    now.checked_add(wait.min(longest)).ok()
}

/// The directory of the reports, which is root's alone.
#[derive(Debug)]
pub struct Outbox {
    directory: PathBuf,
    since: Timestamp,
    _lock: File,
}

/// What one delivery came to.
#[derive(Debug, Default)]
pub struct Delivered {
    /// How many messages were sent.
    pub sent: usize,
    /// What could not be sent or noted, by whom it was meant for: `mail`, or `webhook 1` for the first.
    pub failed: Vec<(String, NotifyError)>,
    /// How many reports were not tried, because they or their channel failed lately or the time was over; by channel, so
    /// that one report may count twice.
    pub waiting: usize,
}

type Send<'a> = Box<dyn Fn(&Message) -> Result<(), NotifyError> + 'a>;

/// Somebody who is told.
struct Channel<'a> {
    /// For people.
    name: String,
    /// By which it is remembered that it was told: of what it sends to, so that a webhook may change its place in the list.
    key: String,
    mode: ReportMode,
    send: Send<'a>,
}

/// What goes into one message.
#[derive(Debug, PartialEq, Eq)]
struct Group {
    members: Vec<usize>,
    digest: Option<Uuid>,
}

impl Outbox {
    /// Opens the directory, and makes it if need be. Nobody else works in it meanwhile.
    ///
    /// # Errors
    /// When it cannot be made, or belongs to somebody else, or others may write there.
    pub fn open(directory: &Path, now: Timestamp) -> Result<Self, NotifyError> {
        let shown = directory.display();
        let failed = |error: &io::Error| {
            let advice = "look at the directory as root, and whether the disk is full";
            NotifyError::new(Reason::Storage, format!("reports cannot be kept in {shown}: {error}"), advice)
        };
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(|error| failed(&error))?;
        let meta = fs::symlink_metadata(directory).map_err(|error| failed(&error))?;
        if !meta.is_dir() || meta.uid() != rustix::process::geteuid().as_raw() || meta.mode() & 0o022 != 0 {
            return Err(failed(&io::Error::other("it is not a directory of root's alone")));
        }
        let mut options = OpenOptions::new();
        let nofollow = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
        options.write(true).create(true).truncate(false).mode(0o600).custom_flags(nofollow);
        let lock = options.open(directory.join("lock")).map_err(|error| failed(&error))?;
        lock.lock().map_err(|error| failed(&error))?;
        let since = since(&directory.join("since"), now).map_err(|error| failed(&error))?;
        let outbox = Self { directory: directory.to_owned(), since, _lock: lock };
        // Of one that died: it is not known whether what they say came true.
        outbox.ids(".draft").into_iter().for_each(|id| outbox.drop_draft(id));
        Ok(outbox)
    }

    /// When the directory was first opened: what ended before that is nobody's news.
    #[must_use]
    pub fn since(&self) -> Timestamp {
        self.since
    }

    /// Whether there is, or was, a report of this id.
    #[must_use]
    pub fn knows(&self, id: Uuid) -> bool {
        // What cannot be looked at is not told twice.
        [self.path(id, "json"), self.path(id, "told")].iter().any(|path| path.try_exists().unwrap_or(true))
    }

    /// Keeps a report until it is delivered; one that is very long is shortened. Says whether it is new: one whose id is
    /// known already changes nothing.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn queue(&self, report: &Report, now: Timestamp) -> Result<bool, NotifyError> {
        if self.knows(report.id) {
            return Ok(false);
        }
        let report = report.clone().shortened();
        self.write(&Entry { report, queued: now, told: BTreeSet::new(), tries: BTreeMap::new() })?;
        Ok(true)
    }

    /// Sends what is due to everybody who is to be told and has not been: each report by itself, or, in a digest, all of
    /// them together once the oldest has waited for so long. What was refused is tried again later and later; a channel that
    /// cannot be reached or logged in to is left alone for a while.
    ///
    /// # Errors
    /// When the reports cannot be listed. What cannot be sent or noted is part of the result.
    pub fn deliver(
        &self,
        settings: &Notifications,
        secrets: &Secrets,
        now: Timestamp,
    ) -> Result<Delivered, NotifyError> {
        let began = Instant::now();
        let mut entries = self.entries()?;
        let mut waits = self.waits();
        let mut delivered = Delivered::default();
        for channel in channels(settings, secrets) {
            let mut refused = 0;
            let mut is_open = waits.get(&channel.key).is_none_or(|wait| wait.is_due(now));
            for group in groups(&entries, &channel, settings.digest_minutes, now) {
                if !is_open || refused == MOST_REFUSED || began.elapsed() > LONGEST {
                    delivered.waiting += group.members.len();
                    continue;
                }
                let error = match self.attempt(&mut entries, &group, &channel, now) {
                    Ok(sent) => {
                        refused = 0;
                        delivered.sent += 1;
                        if waits.remove(&channel.key).is_some() {
                            self.keep_waits(&waits, &mut delivered);
                        }
                        match sent {
                            None => continue,
                            Some(error) => error,
                        }
                    }
                    Err(error) => error,
                };
                match error.reason {
                    Reason::Storage => {}
                    Reason::Rejected => refused += 1,
                    _ => {
                        is_open = false;
                        let attempts =
                            waits.get(&channel.key).map_or(0, |wait| wait.attempts).saturating_add(1);
                        let next_try = next_try(attempts, LONGEST_CHANNEL_WAIT, now);
                        waits.insert(channel.key.clone(), Tries { attempts, next_try, digest: None });
                        self.keep_waits(&waits, &mut delivered);
                    }
                }
                delivered.failed.push((channel.name.clone(), error));
            }
        }
        Ok(delivered)
    }

    /// Removes what is old. Of a report that could be made once more, by its id, it stays known that there was one.
    pub fn forget(&self, may_return: &dyn Fn(Uuid) -> bool, now: Timestamp) {
        let entries = self.entries().unwrap_or_default();
        let too_many = entries.len().saturating_sub(MOST_REPORTS);
        // What cannot be removed now is removed next time.
        for (_, entry) in
            entries.iter().enumerate().filter(|(i, entry)| *i < too_many || age(entry, now) > KEPT)
        {
            let (id, told) = (entry.report.id, self.path(entry.report.id, "told"));
            // A new name needs no room on the disk.
            let renamed = fs::rename(self.path(id, "json"), &told).and_then(|()| self.sync());
            if renamed.is_ok() {
                let _ = OpenOptions::new().write(true).truncate(true).open(&told);
            }
        }
        for id in self.ids(".told").into_iter().filter(|id| !may_return(*id)) {
            let _ = fs::remove_file(self.path(id, "told"));
        }
    }

    /// Tries to send one message: notes that it is tried, sends it, and notes that it was sent. An error beside a yes says
    /// that it could not be noted.
    fn attempt(
        &self,
        entries: &mut [Entry],
        group: &Group,
        channel: &Channel<'_>,
        now: Timestamp,
    ) -> Result<Option<NotifyError>, NotifyError> {
        let nothing = || {
            NotifyError::new(Reason::Storage, "there is nothing to send", "this is a fault of the program")
        };
        let reports = group.members.iter().filter_map(|i| entries.get(*i)).map(|entry| entry.report.clone());
        let message = Message::of(reports.collect()).ok_or_else(nothing)?;
        let message = match group.digest {
            Some(id) => message.with_id(id),
            None => message,
        };
        for i in &group.members {
            let Some(entry) = entries.get_mut(*i) else { continue };
            let attempts = entry.tries.get(&channel.key).map_or(0, |tries| tries.attempts).saturating_add(1);
            let next_try = next_try(attempts, LONGEST_WAIT, now);
            let tries = Tries { attempts, next_try, digest: group.digest };
            entry.tries.insert(channel.key.clone(), tries);
            self.write(entry)?;
        }
        let done: Vec<Entry> = group
            .members
            .iter()
            .filter_map(|i| entries.get(*i))
            .map(|entry| {
                let mut done = entry.clone();
                done.tries.remove(&channel.key);
                done.told.insert(channel.key.clone());
                done
            })
            .collect();
        let sent =
            done.iter().try_for_each(|entry| self.draft(entry)).and_then(|()| (channel.send)(&message));
        if let Err(error) = sent {
            done.iter().for_each(|entry| self.drop_draft(entry.report.id));
            if !matches!(error.reason, Reason::Rejected | Reason::Timeout) {
                // It is not this message's fault: it goes as soon as the channel can be used.
                for i in &group.members {
                    let Some(entry) = entries.get_mut(*i) else { continue };
                    if let Some(tries) = entry.tries.get_mut(&channel.key) {
                        tries.next_try = None;
                    }
                    // Otherwise it waits like one that was refused.
                    let _ = self.write(entry);
                }
            }
            return Err(error);
        }
        let mut problem = None;
        for (i, entry) in group.members.iter().zip(done) {
            if let Err(error) =
                fs::rename(self.path(entry.report.id, "draft"), self.path(entry.report.id, "json"))
            {
                problem = Some(self.unwritten(entry.report.id, &error));
            }
            // Whatever the disk says, this run does not send it again.
            if let Some(there) = entries.get_mut(*i) {
                *there = entry;
            }
        }
        Ok(problem.or_else(|| {
            let advice =
                "see whether the disk is well; if the host dies now, the message may be sent once more";
            let said = |error| format!("{} cannot be synced: {error}", self.directory.display());
            self.sync().err().map(|error| NotifyError::new(Reason::Storage, said(error), advice))
        }))
    }

    fn path(&self, id: Uuid, ending: &str) -> PathBuf {
        self.directory.join(format!("{id}.{ending}"))
    }

    fn sync(&self) -> io::Result<()> {
        File::open(&self.directory)?.sync_all()
    }

    fn unwritten(&self, id: Uuid, error: &io::Error) -> NotifyError {
        let message = format!("the report {} cannot be written: {error}", self.path(id, "json").display());
        NotifyError::new(Reason::Storage, message, "see whether the disk is full")
    }

    /// Written new and synced, beside its place.
    fn put(&self, draft: &Path, text: &[u8]) -> io::Result<()> {
        if text.len() as u64 > MOST {
            return Err(io::Error::other("it is too large"));
        }
        match fs::remove_file(draft) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft)?;
        let written = file.write_all(text).and_then(|()| file.sync_all());
        if written.is_err() {
            // On a full disk every byte counts.
            let _ = fs::remove_file(draft);
        }
        written
    }

    fn draft(&self, entry: &Entry) -> Result<(), NotifyError> {
        let id = entry.report.id;
        let text = serde_json::to_vec(entry).map_err(|error| self.unwritten(id, &error.into()))?;
        self.put(&self.path(id, "draft"), &text).map_err(|error| self.unwritten(id, &error))
    }

    fn drop_draft(&self, id: Uuid) {
        // One that stays is written anew or removed by the next who opens the directory.
        let _ = fs::remove_file(self.path(id, "draft"));
    }

    /// Written new, synced and renamed: it is there whole or not at all.
    fn write(&self, entry: &Entry) -> Result<(), NotifyError> {
        let id = entry.report.id;
        self.draft(entry)?;
        fs::rename(self.path(id, "draft"), self.path(id, "json"))
            .and_then(|()| self.sync())
            .map_err(|error| self.unwritten(id, &error))
    }

    /// Which channels are waited for. What cannot be read is not waited for.
    fn waits(&self) -> BTreeMap<String, Tries> {
        let mut text = Vec::new();
        let read =
            File::open(self.directory.join(CHANNELS)).and_then(|file| file.take(MOST).read_to_end(&mut text));
        read.ok().and_then(|_| serde_json::from_slice(&text).ok()).unwrap_or_default()
    }

    fn keep_waits(&self, waits: &BTreeMap<String, Tries>, delivered: &mut Delivered) {
        let draft = self.directory.join(format!("{CHANNELS}.new"));
        let path = self.directory.join(CHANNELS);
        let kept = serde_json::to_vec(waits)
            .map_err(io::Error::from)
            .and_then(|text| self.put(&draft, &text))
            .and_then(|()| fs::rename(&draft, &path));
        if let Err(error) = kept {
            let message = format!("{} cannot be written: {error}", path.display());
            let error = NotifyError::new(Reason::Storage, message, "see whether the disk is full");
            delivered.failed.push(("outbox".to_owned(), error));
        }
    }

    /// The ids of the files with an ending.
    fn ids(&self, ending: &str) -> Vec<Uuid> {
        let listed = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        listed.filter_map(|file| file.file_name().to_str()?.strip_suffix(ending)?.parse().ok()).collect()
    }

    /// All reports, oldest first. A file that is not one of ours is left alone.
    fn entries(&self) -> Result<Vec<Entry>, NotifyError> {
        let listed = fs::read_dir(&self.directory).map_err(|error| {
            let message = format!("{} cannot be listed: {error}", self.directory.display());
            NotifyError::new(Reason::Storage, message, "look at it as root")
        })?;
        let read = |path: &Path| -> Option<Entry> {
            let id: Uuid = path.file_name()?.to_str()?.strip_suffix(".json")?.parse().ok()?;
            let mut text = Vec::new();
            File::open(path).ok()?.take(MOST).read_to_end(&mut text).ok()?;
            serde_json::from_slice::<Entry>(&text).ok().filter(|entry| entry.report.id == id)
        };
        let mut entries: Vec<Entry> = listed.flatten().filter_map(|file| read(&file.path())).collect();
        entries.sort_by_key(|entry| (entry.queued, entry.report.id));
        Ok(entries)
    }
}

/// The time in a file; `now`, which is then written there, if there is none that can be read.
fn since(path: &Path, now: Timestamp) -> io::Result<Timestamp> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(100).read_to_string(&mut text));
    if let (Ok(_), Ok(since)) = (read, text.trim().parse()) {
        return Ok(since);
    }
    // Whole or not at all: on a full disk an empty one would begin anew.
    let draft = path.with_extension("new");
    fs::write(&draft, format!("{now}\n"))?;
    fs::rename(&draft, path)?;
    Ok(now)
}

fn age(entry: &Entry, now: Timestamp) -> SignedDuration {
    now.duration_since(entry.queued)
}

/// What a channel is to be told now: what was tried least first, so that nothing is held up by what is refused.
fn groups(entries: &[Entry], channel: &Channel<'_>, digest_minutes: u32, now: Timestamp) -> Vec<Group> {
    let mut due = Vec::new();
    let mut begun: BTreeMap<Uuid, Vec<usize>> = BTreeMap::new();
    let mut fresh = Vec::new();
    for (i, entry) in entries.iter().enumerate() {
        if entry.told.contains(&channel.key) || !entry.report.result.is_wanted(channel.mode) {
            continue;
        }
        let tries = entry.tries.get(&channel.key);
        if let Some(digest) = tries.and_then(|tries| tries.digest) {
            begun.entry(digest).or_default().push(i);
        } else if age(entry, now) > TRIED {
            // Given up.
        } else if tries.is_some() || digest_minutes == 0 {
            due.push(Group { members: vec![i], digest: None });
        } else {
            fresh.push(i);
        }
    }
    for (digest, members) in begun {
        let is_given_up = members.iter().filter_map(|i| entries.get(*i)).all(|entry| age(entry, now) > TRIED);
        if !is_given_up {
            due.push(Group { members, digest: Some(digest) });
        }
    }
    due.extend(digests(entries, fresh, digest_minutes, now));
    let tries = |i: &usize| entries.get(*i).and_then(|entry| entry.tries.get(&channel.key));
    due.retain(|group| group.members.iter().filter_map(tries).all(|tries| tries.is_due(now)));
    due.sort_by_key(|group| {
        let attempts = group.members.iter().filter_map(tries).map(|tries| tries.attempts).max();
        (attempts, group.members.first().copied())
    });
    due
}

/// New digests, once the oldest report has waited long enough.
fn digests(entries: &[Entry], fresh: Vec<usize>, minutes: u32, now: Timestamp) -> Vec<Group> {
    let waits = SignedDuration::from_mins(minutes.into());
    let is_due = fresh.iter().filter_map(|i| entries.get(*i)).any(|entry| {
        // A clock that was set back must not hold reports for ever.
        let age = age(entry, now);
        age >= waits || age.is_negative()
    });
    let mut found: Vec<Group> = Vec::new();
    let mut length = 0_usize;
    for i in fresh.into_iter().filter(|_| is_due) {
        let added = entries
            .get(i)
            .and_then(|entry| serde_json::to_vec(&entry.report).ok())
            .map_or(0, |text| text.len());
        let (most, longest) = MOST_TOGETHER;
        match found.last_mut() {
            Some(last) if last.members.len() < most && length.saturating_add(added) <= longest => {
                last.members.push(i);
                length += added;
            }
            _ => {
                found.push(Group { members: vec![i], digest: Some(Uuid::now_v7()) });
                length = added;
            }
        }
    }
    // One alone has an id already.
    found.iter_mut().filter(|group| group.members.len() == 1).for_each(|group| group.digest = None);
    found
}

fn channels<'a>(settings: &'a Notifications, secrets: &'a Secrets) -> Vec<Channel<'a>> {
    let mut channels = Vec::new();
    if let Some(mail) = &settings.mail {
        channels.push(Channel {
            name: "mail".to_owned(),
            key: "mail".to_owned(),
            mode: mail.report,
            send: Box::new(|message| crate::send_mail(mail, secrets, message)),
        });
    }
    for (i, webhook) in settings.webhooks.iter().enumerate() {
        let hash = hex::encode(Sha256::digest(webhook.url.as_bytes()));
        channels.push(Channel {
            name: format!("webhook {}", i + 1),
            key: format!("webhook {hash}"),
            mode: webhook.report,
            send: Box::new(|message| crate::send_webhook(webhook, secrets, message)),
        });
    }
    channels
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader},
        net::TcpListener,
        os::unix::fs::PermissionsExt,
        thread::JoinHandle,
    };

    use patch_types::notifications::Webhook;

    use super::*;
    use crate::report::{RunResult, tests::report};

    /// A webhook that answers so many requests with these statuses, and gives their bodies.
    fn webhook(statuses: &'static [u16]) -> (Webhook, JoinHandle<Vec<serde_json::Value>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let thread = std::thread::spawn(move || {
            statuses
                .iter()
                .map(|status| {
                    let (stream, _) = listener.accept().unwrap();
                    let mut reader = BufReader::new(stream);
                    let mut length = 0;
                    loop {
                        let mut line = String::new();
                        reader.read_line(&mut line).unwrap();
                        if line == "\r\n" {
                            break;
                        }
                        if let Some(value) = line.strip_prefix("Content-Length: ") {
                            length = value.trim().parse().unwrap();
                        }
                    }
                    let mut body = vec![0; length];
                    reader.read_exact(&mut body).unwrap();
                    write!(reader.into_inner(), "HTTP/1.1 {status} x\r\n\r\n").unwrap();
                    serde_json::from_slice(&body).unwrap()
                })
                .collect()
        });
        (Webhook::at(&url), thread)
    }

    fn at(minutes: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + minutes * 60).unwrap()
    }

    fn ids(bodies: &[serde_json::Value]) -> Vec<u128> {
        let id = |body: &serde_json::Value| body["id"].as_str().unwrap().parse::<Uuid>().unwrap().as_u128();
        bodies.iter().map(id).collect()
    }

    #[test]
    fn nobody_is_told_twice_and_who_was_not_is_told_later() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("outbox");
        let (good, good_thread) = webhook(&[200, 200]);
        let (slow, slow_thread) = webhook(&[503, 204, 503, 204]);
        let settings = Notifications { webhooks: vec![good, slow], ..Notifications::default() };
        let secrets = Secrets::default();
        let deliver = |minutes: i64| {
            let outbox = Outbox::open(&path, at(0)).unwrap();
            let delivered = outbox.deliver(&settings, &secrets, at(minutes)).unwrap();
            (delivered.sent, delivered.failed)
        };
        {
            let outbox = Outbox::open(&path, at(0)).unwrap();
            assert!(outbox.queue(&report(1, RunResult::Changed, "a"), at(0)).unwrap());
            assert!(outbox.queue(&report(2, RunResult::Changed, "b"), at(1)).unwrap());
            assert!(!outbox.queue(&report(1, RunResult::Failed, "again"), at(2)).unwrap());
        }
        let (sent, failed) = deliver(3);
        assert_eq!((sent, failed.len()), (3, 1), "what is refused does not hold up the next: {failed:?}");
        assert_eq!(failed[0].0, "webhook 2");
        assert!(failed[0].1.to_string().contains("503"), "{}", failed[0].1);
        assert_eq!(deliver(4), (0, Vec::new()), "not yet");
        assert_eq!(deliver(5).1.len(), 1);
        assert_eq!(deliver(8), (0, Vec::new()), "twice as long");
        assert_eq!(deliver(9), (1, Vec::new()));
        assert_eq!(deliver(60), (0, Vec::new()));
        assert_eq!(ids(&good_thread.join().unwrap()), [1, 2]);
        assert_eq!(ids(&slow_thread.join().unwrap()), [1, 2, 1, 1]);
    }

    #[test]
    fn what_can_come_back_stays_known_when_it_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let (hook, thread) = webhook(&[200]);
        let settings = Notifications { webhooks: vec![hook], ..Notifications::default() };
        let secrets = Secrets::default();
        let outbox = Outbox::open(dir.path(), at(0)).unwrap();
        let one = report(1, RunResult::Changed, "a");
        outbox.queue(&one, at(0)).unwrap();
        assert_eq!(outbox.deliver(&settings, &secrets, at(1)).unwrap().sent, 1);
        thread.join().unwrap();
        let later = at(31 * 24 * 60);
        for _ in 0..2 {
            outbox.forget(&|id| id == one.id, later);
            assert!(outbox.entries().unwrap().is_empty());
            assert!(outbox.knows(one.id) && !outbox.queue(&one, later).unwrap());
            let delivered = outbox.deliver(&settings, &secrets, later).unwrap();
            assert_eq!((delivered.sent, delivered.failed.len()), (0, 0));
        }
        assert_eq!(fs::metadata(outbox.path(one.id, "told")).unwrap().len(), 0);
        outbox.forget(&|_| false, later);
        assert!(!outbox.knows(one.id), "nothing is left that it could be made from");
    }

    #[test]
    fn what_cannot_be_noted_is_not_sent_and_holds_nothing_up() {
        let dir = tempfile::tempdir().unwrap();
        let (hook, thread) = webhook(&[200]);
        let settings = Notifications { webhooks: vec![hook], ..Notifications::default() };
        let outbox = Outbox::open(dir.path(), at(0)).unwrap();
        outbox.queue(&report(1, RunResult::Changed, "a"), at(0)).unwrap();
        outbox.queue(&report(2, RunResult::Changed, "b"), at(1)).unwrap();
        // In its place the draft cannot be written.
        fs::create_dir(outbox.path(Uuid::from_u128(1), "draft")).unwrap();
        for (minutes, sent) in [(2, 1), (3, 0)] {
            let delivered = outbox.deliver(&settings, &Secrets::default(), at(minutes)).unwrap();
            assert_eq!((delivered.sent, delivered.failed.len()), (sent, 1), "{delivered:?}");
            assert_eq!(delivered.failed[0].1.reason, Reason::Storage);
        }
        assert_eq!(ids(&thread.join().unwrap()), [2]);
    }

    #[test]
    fn the_draft_is_there_before_the_message_goes_and_one_of_a_dead_run_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(dir.path(), at(0)).unwrap();
        outbox.queue(&report(1, RunResult::Changed, "a"), at(0)).unwrap();
        let draft = outbox.path(Uuid::from_u128(1), "draft");
        let seen = std::cell::Cell::new(false);
        let channel = Channel {
            name: "c".into(),
            key: "c".into(),
            mode: ReportMode::Always,
            send: Box::new(|_| {
                let text = fs::read(&draft).unwrap();
                seen.set(serde_json::from_slice::<Entry>(&text).unwrap().told.contains("c"));
                Ok(())
            }),
        };
        let mut entries = outbox.entries().unwrap();
        let group = Group { members: vec![0], digest: None };
        assert_eq!(outbox.attempt(&mut entries, &group, &channel, at(1)), Ok(None));
        assert!(seen.get() && !draft.exists());
        assert!(outbox.entries().unwrap()[0].told.contains("c"));
        fs::write(&draft, "{").unwrap();
        drop(channel);
        drop(outbox);
        Outbox::open(dir.path(), at(0)).unwrap();
        assert!(!draft.exists());
    }

    #[test]
    fn a_channel_that_cannot_be_reached_is_left_alone_for_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let hook = Webhook::at(&format!("http://127.0.0.1:{port}/"));
        let settings = Notifications { webhooks: vec![hook], ..Notifications::default() };
        let outbox = Outbox::open(dir.path(), at(0)).unwrap();
        outbox.queue(&report(1, RunResult::Changed, "a"), at(0)).unwrap();
        outbox.queue(&report(2, RunResult::Changed, "b"), at(0)).unwrap();
        let deliver = |minutes: i64| {
            let delivered = outbox.deliver(&settings, &Secrets::default(), at(minutes)).unwrap();
            (delivered.failed.len(), delivered.waiting)
        };
        assert_eq!([0, 1, 2, 5, 6].map(deliver), [(1, 1), (0, 2), (1, 1), (0, 2), (1, 1)]);
        let tries = |i: usize| outbox.entries().unwrap()[i].tries.values().next().map(|tries| tries.attempts);
        assert_eq!((tries(0), tries(1)), (Some(2), Some(1)), "each has its turn");
    }

    #[test]
    fn waits_grow_up_to_a_limit() {
        let wait =
            |attempts| next_try(attempts, LONGEST_WAIT, at(0)).unwrap().duration_since(at(0)).as_mins();
        assert_eq!([1, 2, 3, 8, 9, 31, 32, u32::MAX].map(wait), [2, 4, 8, 256, 360, 360, 360, 360]);
        let set_back = Tries { attempts: 1, next_try: Some(at(361)), digest: None };
        assert!(set_back.is_due(at(0)) && !set_back.is_due(at(2)));
    }

    #[test]
    fn a_digest_keeps_its_id_and_its_reports() {
        let dir = tempfile::tempdir().unwrap();
        let (hook, thread) = webhook(&[503, 200, 200]);
        let settings = Notifications { webhooks: vec![hook], digest_minutes: 60, ..Notifications::default() };
        let outbox = Outbox::open(dir.path(), at(0)).unwrap();
        outbox.queue(&report(1, RunResult::Changed, "a"), at(0)).unwrap();
        outbox.queue(&report(2, RunResult::Failed, "b"), at(1)).unwrap();
        let deliver =
            |minutes: i64| outbox.deliver(&settings, &Secrets::default(), at(minutes)).unwrap().sent;
        assert_eq!(deliver(60), 0);
        outbox.queue(&report(3, RunResult::Failed, "c"), at(61)).unwrap();
        assert_eq!((deliver(62), deliver(63), deliver(121)), (1, 0, 1));
        let bodies = thread.join().unwrap();
        assert_eq!(bodies[0]["id"], bodies[1]["id"]);
        let counts = bodies.iter().map(|body| body["data"]["reports"].as_array().unwrap().len());
        assert_eq!(counts.collect::<Vec<_>>(), [2, 2, 1]);
        assert_eq!(bodies[2]["id"], Uuid::from_u128(3).to_string());
    }

    #[test]
    fn a_digest_groups_what_belongs_together() {
        let dir = tempfile::tempdir().unwrap();
        let (one, thread) = webhook(&[200]);
        let settings = Notifications { webhooks: vec![one], digest_minutes: 60, ..Notifications::default() };
        let secrets = Secrets::default();
        let outbox = Outbox::open(dir.path(), at(0)).unwrap();
        outbox.queue(&report(1, RunResult::Changed, "a"), at(0)).unwrap();
        outbox.queue(&report(2, RunResult::Failed, "b"), at(30)).unwrap();
        assert_eq!(outbox.deliver(&settings, &secrets, at(59)).unwrap().sent, 0);
        assert_eq!(outbox.deliver(&settings, &secrets, at(60)).unwrap().sent, 1);
        assert_eq!(outbox.deliver(&settings, &secrets, at(200)).unwrap().sent, 0);
        let bodies = thread.join().unwrap();
        assert_eq!(bodies[0]["data"]["reports"].as_array().unwrap().len(), 2);
        assert_eq!(bodies[0]["type"], "linux-patch.report.failed");
    }

    #[test]
    fn modes_ages_and_strange_files_are_minded() {
        let dir = tempfile::tempdir().unwrap();
        let mut hook = Webhook::at("http://127.0.0.1:1/");
        hook.report = ReportMode::OnlyOnError;
        let settings = Notifications { webhooks: vec![hook], ..Notifications::default() };
        let outbox = Outbox::open(dir.path(), at(0)).unwrap();
        fs::write(dir.path().join("readme.json"), "{}").unwrap();
        fs::write(outbox.path(Uuid::from_u128(9), "json"), "{").unwrap();
        outbox.queue(&report(1, RunResult::Changed, "a"), at(0)).unwrap();
        let delivered = outbox.deliver(&settings, &Secrets::default(), at(1)).unwrap();
        assert!(delivered.failed.is_empty(), "nobody wants to know: {delivered:?}");
        outbox.queue(&report(2, RunResult::Failed, "b"), at(0)).unwrap();
        let delivered = outbox.deliver(&settings, &Secrets::default(), at(1)).unwrap();
        assert_eq!(delivered.failed[0].1.reason, Reason::ConnectionRefused);
        let given_up = outbox.deliver(&settings, &Secrets::default(), at(8 * 24 * 60)).unwrap();
        assert!(given_up.failed.is_empty());
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        drop(outbox);
        assert_eq!(Outbox::open(dir.path(), at(0)).unwrap_err().reason, Reason::Storage);
    }
}
