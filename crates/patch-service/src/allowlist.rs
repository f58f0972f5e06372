//! Which addresses may connect: a file with `allowed_ips:`, read again whenever it changes.
//!
//! Everyone who is not on it is denied; so is everyone when there is no file. A file that cannot be understood changes
//! nothing, and is reported. Reading the list takes no lock.

use std::{
    collections::{BTreeSet, VecDeque},
    io,
    net::{IpAddr, Ipv4Addr, ToSocketAddrs as _},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use ipnet::Ipv4Net;
use jiff::Timestamp;
use serde::Deserialize;
use serde_saphyr::Spanned;
use tokio::{
    sync::{Semaphore, mpsc, oneshot, watch},
    task::JoinSet,
};

use crate::{
    config::{ConfigError, parse_yaml},
    event::{DoorEvent, DoorObserver},
    watch::{FileState, FileWatcher},
};

/// How often names are resolved again.
const RESOLVE_EVERY: Duration = Duration::from_secs(60);
/// How long a start waits for the resolver.
const RESOLVE_WITHIN: Duration = Duration::from_secs(2);
/// How many names are looked up at a time. The resolver blocks a thread for each, for half a minute if it is dead, and
/// those threads are needed for other things.
const LOOKUPS: usize = 3;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Entry {
    Network(Ipv4Net),
    Name { name: String, addresses: BTreeSet<Ipv4Addr> },
}

/// Who may connect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AllowList {
    entries: Vec<Entry>,
    // First and last address of each range, ascending and disjoint.
    ranges: Vec<(u32, u32)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    allowed_ips: Option<Vec<Spanned<String>>>,
}

impl AllowList {
    /// The list that denies everyone.
    #[must_use]
    pub fn deny_all() -> Self {
        Self::default()
    }

    /// Reads a list; `file` is its name in messages. Names have no addresses until they are resolved.
    ///
    /// # Errors
    /// With line and reason, when anything in it cannot be understood.
    pub fn parse(text: &str, file: &str) -> Result<Self, ConfigError> {
        let parsed: File = parse_yaml(text, file)?;
        let entries = parsed.allowed_ips.ok_or_else(|| ConfigError {
            file: file.to_owned(),
            line: None,
            column: None,
            message: "`allowed_ips` has no value; write `allowed_ips: []` to deny everyone".to_owned(),
        })?;
        let entries: Result<Vec<_>, _> = entries
            .iter()
            .map(|entry| {
                parse_entry(entry.value.trim()).map_err(|message| ConfigError {
                    file: file.to_owned(),
                    line: Some(entry.referenced.line()),
                    column: Some(entry.referenced.column()),
                    message,
                })
            })
            .collect();
        Ok(Self::from_entries(entries?))
    }

    fn from_entries(entries: Vec<Entry>) -> Self {
        let networks: Vec<Ipv4Net> = entries
            .iter()
            .flat_map(|entry| match entry {
                Entry::Network(network) => vec![*network],
                Entry::Name { addresses, .. } => addresses.iter().map(|a| Ipv4Net::from(*a)).collect(),
            })
            .collect();
        let mut ranges: Vec<(u32, u32)> = Ipv4Net::aggregate(&networks)
            .iter()
            .map(|network| (network.network().to_bits(), network.broadcast().to_bits()))
            .collect();
        ranges.sort_unstable();
        Self { entries, ranges }
    }

    /// Whether a peer may connect. An IPv4-mapped IPv6 address counts as IPv4; IPv6 is refused.
    #[must_use]
    pub fn permits(&self, address: IpAddr) -> bool {
        let IpAddr::V4(address) = address.to_canonical() else { return false };
        let bits = address.to_bits();
        let after = self.ranges.partition_point(|(first, _)| *first <= bits);
        after.checked_sub(1).and_then(|i| self.ranges.get(i)).is_some_and(|(_, last)| bits <= *last)
    }

    /// The entries as they are reported: a single address, a network, a name with each of its addresses.
    #[must_use]
    pub fn entries(&self) -> BTreeSet<String> {
        self.entries
            .iter()
            .flat_map(|entry| match entry {
                Entry::Network(network) if network.prefix_len() == 32 => vec![network.addr().to_string()],
                Entry::Network(network) => vec![network.to_string()],
                Entry::Name { name, addresses } if addresses.is_empty() => {
                    vec![format!("{name} (unresolved)")]
                }
                Entry::Name { name, addresses } => {
                    addresses.iter().map(|a| format!("{name} ({a})")).collect()
                }
            })
            .collect()
    }

    fn names(&self) -> BTreeSet<String> {
        self.entries
            .iter()
            .filter_map(|entry| match entry {
                Entry::Name { name, .. } => Some(name.clone()),
                Entry::Network(_) => None,
            })
            .collect()
    }

    /// The same list with the addresses that `resolve` knows; names that it does not know keep theirs.
    fn with_addresses(&self, resolve: impl Fn(&str) -> Option<BTreeSet<Ipv4Addr>>) -> Self {
        let entries = self.entries.iter().map(|entry| match entry {
            Entry::Name { name, addresses } => Entry::Name {
                name: name.clone(),
                addresses: resolve(name).unwrap_or_else(|| addresses.clone()),
            },
            Entry::Network(network) => Entry::Network(*network),
        });
        Self::from_entries(entries.collect())
    }

    fn addresses_of(&self, wanted: &str) -> Option<BTreeSet<Ipv4Addr>> {
        self.entries.iter().find_map(|entry| match entry {
            Entry::Name { name, addresses } if name == wanted => Some(addresses.clone()),
            _ => None,
        })
    }
}

fn parse_entry(text: &str) -> Result<Entry, String> {
    if text.is_empty() {
        return Err("an empty entry".to_owned());
    }
    if text.contains(':') {
        return Err(format!(
            "`{text}` is not an IPv4 address: IPv6 peers are always refused, so it would have no effect"
        ));
    }
    if let Ok(address) = text.parse::<Ipv4Addr>() {
        return Ok(Entry::Network(Ipv4Net::from(address)));
    }
    if text.contains('/') {
        let network: Ipv4Net = text
            .parse()
            .map_err(|_| format!("`{text}` is not an IPv4 network; write it like 10.20.0.0/16"))?;
        if network.trunc() != network {
            return Err(format!(
                "`{text}` names a host and a network at once; write {} for the network or {} for the host",
                network.trunc(),
                network.addr()
            ));
        }
        return Ok(Entry::Network(network));
    }
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let label_is_good = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let numeric_end = name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
    if name.len() > 253 || numeric_end || !name.split('.').all(label_is_good) {
        return Err(format!(
            "`{text}` is neither an IPv4 address (10.20.30.40), a network (10.20.0.0/16) nor a host name"
        ));
    }
    Ok(Entry::Name { name, addresses: BTreeSet::new() })
}

/// How it went when the list's file was read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListStatus {
    /// When a file that could be used was last read; none if there was none yet.
    pub good_at: Option<Timestamp>,
    /// Why what is on disk is not in effect, if it is not.
    pub problem: Option<String>,
    /// How often the file was read and put into effect, the first time included.
    pub applied: u64,
    /// How often it was read and could not be used.
    pub refused: u64,
}

/// The list in effect, shared by those who ask it and the one who changes it.
#[derive(Debug, Clone)]
pub struct SharedAllowList {
    list: Arc<ArcSwap<AllowList>>,
    status: Arc<ArcSwap<ListStatus>>,
    changes: watch::Sender<u64>,
}

impl SharedAllowList {
    /// Shares a list.
    #[must_use]
    pub fn new(list: AllowList) -> Self {
        let list = Arc::new(ArcSwap::from_pointee(list));
        Self { list, status: Arc::default(), changes: watch::Sender::new(0) }
    }

    /// The list of this moment.
    #[must_use]
    pub fn load(&self) -> Arc<AllowList> {
        self.list.load_full()
    }

    /// Puts another list into effect.
    pub fn store(&self, list: AllowList) {
        self.list.store(Arc::new(list));
        self.changes.send_modify(|version| *version += 1);
    }

    /// How it went when its file was read. Of a list without a file: nothing.
    #[must_use]
    pub fn status(&self) -> Arc<ListStatus> {
        self.status.load_full()
    }

    /// To be woken when another list is in effect.
    #[must_use]
    pub fn subscribe(&self) -> ListChanges {
        ListChanges(self.changes.subscribe())
    }
}

/// Wakes when the list has changed.
#[derive(Debug)]
pub struct ListChanges(watch::Receiver<u64>);

impl ListChanges {
    /// Waits for a change since the last call. Safe to cancel.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            // Nobody is left who could change it.
            std::future::pending::<()>().await;
        }
    }
}

/// Keeps a [`SharedAllowList`] as its file says. Ends when dropped; the list then stays as it is.
#[derive(Debug)]
pub struct AllowListWatcher {
    list: SharedAllowList,
    asked: mpsc::Sender<Answer>,
    task: tokio::task::JoinHandle<()>,
}

/// Whoever asked for the file to be read is told what came of it.
type Answer = oneshot::Sender<ListReport>;

/// What a request to read the list's file came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListReport {
    /// What took effect since somebody asked last, by itself or now, the oldest first.
    pub changes: Vec<ListChange>,
    /// How many more took effect before those.
    pub forgotten: usize,
    /// What is wrong with the file, with its name and line.
    pub problem: Option<String>,
    /// Whether everyone is denied because of that: there is no file, and was no usable one before.
    pub denies_all: bool,
}

/// Another list took effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListChange {
    /// When.
    pub at: Timestamp,
    /// Entries that were not there before.
    pub added: Vec<String>,
    /// Entries that are not there any more.
    pub removed: Vec<String>,
}

/// As many changes are kept for whoever asks; of older ones the entries are in the audit trail.
const MAX_UNTOLD: usize = 16;

impl AllowListWatcher {
    /// Reads the file, resolves its names, and goes on watching it. What is wrong is reported, not returned: a
    /// server without a list denies everyone until there is one.
    pub async fn start(path: &Path, observer: Arc<dyn DoorObserver>) -> Self {
        Self::start_with(path, observer, Arc::new(resolve)).await
    }

    async fn start_with(path: &Path, observer: Arc<dyn DoorObserver>, resolver: Arc<Resolver>) -> Self {
        let list = SharedAllowList::new(AllowList::deny_all());
        let (watcher, now) = FileWatcher::start(path);
        let mut keeper = Keeper {
            list: list.clone(),
            observer,
            file: path.display().to_string(),
            path: path.to_owned(),
            lookups: Lookups::new(resolver),
            failing: BTreeSet::new(),
            reported: None,
            untold: VecDeque::new(),
            forgotten: 0,
        };
        keeper.take(now);
        keeper.untold.clear();
        keeper.resolve();
        // Clients that are known by name should not be turned away just because the server has just started.
        let answers = async {
            while let Some(answer) = keeper.lookups.next().await {
                keeper.resolved(answer);
            }
        };
        // What comes later is taken later.
        drop(tokio::time::timeout(RESOLVE_WITHIN, answers).await);
        let (asked, asking) = mpsc::channel(1);
        let task = tokio::spawn(keeper.keep(watcher, asking));
        Self { list, asked, task }
    }

    /// The list in effect.
    #[must_use]
    pub fn list(&self) -> SharedAllowList {
        self.list.clone()
    }

    /// Reads the file again and puts it into effect, and says what came of that. Its names are resolved afterwards; until
    /// then they keep their last addresses. A file that cannot be used has been reported then as well.
    pub async fn reload(&self) -> ListReport {
        let (answer, told) = oneshot::channel();
        // Neither fails while this watcher lives.
        let _ = self.asked.send(answer).await;
        told.await.unwrap_or_else(|_| ListReport {
            problem: Some("the allow list is not watched any more".to_owned()),
            ..ListReport::default()
        })
    }
}

impl Drop for AllowListWatcher {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Keeper {
    list: SharedAllowList,
    observer: Arc<dyn DoorObserver>,
    file: String,
    path: PathBuf,
    lookups: Lookups,
    failing: BTreeSet<String>,
    reported: Option<String>,
    /// What took effect since somebody asked last.
    untold: VecDeque<ListChange>,
    /// How many more there were before those.
    forgotten: usize,
}

impl Keeper {
    async fn keep(mut self, mut watcher: FileWatcher, mut asking: mpsc::Receiver<Answer>) {
        // What was read on request, and will come once more as a change.
        let mut taken = None;
        let nudge = watcher.nudge();
        let mut timer = tokio::time::interval(RESOLVE_EVERY);
        timer.tick().await;
        loop {
            let has_names = !self.list.load().names().is_empty();
            tokio::select! {
                state = watcher.changed() => {
                    if taken.take().is_none_or(|taken| taken != state) {
                        self.reported = None;
                        self.take(state);
                        self.resolve();
                    }
                }
                Some(answer) = asking.recv() => {
                    // A question repeated is a question answered: the same fault is reported again.
                    self.reported = None;
                    let state = FileState::read(&self.path);
                    taken = Some(state.clone());
                    // The watcher has to know what was read, or it would take a change back to what it saw last for none.
                    nudge.nudge();
                    self.take(state);
                    self.resolve();
                    // Who asked may be gone.
                    let _ = answer.send(ListReport {
                        changes: self.untold.drain(..).collect(),
                        forgotten: std::mem::take(&mut self.forgotten),
                        problem: self.reported.clone(),
                        denies_all: self.reported.is_some() && self.list.load().entries().is_empty(),
                    });
                }
                Some(answer) = self.lookups.next() => self.resolved(answer),
                _ = timer.tick(), if has_names => {
                    for name in self.lookups.pending.clone() {
                        self.unresolved(name, "the resolver has not answered yet");
                    }
                    self.resolve();
                }
            }
        }
    }

    fn take(&mut self, state: FileState) {
        let parsed = match state {
            FileState::Missing => {
                self.refuse("there is no such file", true);
                self.apply(AllowList::deny_all());
                return;
            }
            FileState::Unreadable(error) => {
                return self.refuse(&format!("cannot be read: {error}"), false);
            }
            FileState::Present(bytes) => match std::str::from_utf8(&bytes) {
                Ok(text) => AllowList::parse(text, &self.file),
                Err(_) => return self.refuse("is not UTF-8 text", false),
            },
        };
        match parsed {
            Ok(list) => {
                self.reported = None;
                let status = self.list.status();
                let (good_at, applied) = (Some(Timestamp::now()), status.applied.saturating_add(1));
                let status = ListStatus { good_at, problem: None, applied, refused: status.refused };
                self.list.status.store(Arc::new(status));
                let before = self.list.load();
                self.apply(list.with_addresses(|name| before.addresses_of(name)));
            }
            Err(error) => self.report(error.to_string(), false),
        }
    }

    fn refuse(&mut self, message: &str, denies_all: bool) {
        self.report(format!("{}: {message}", self.file), denies_all);
    }

    fn report(&mut self, error: String, denies_all: bool) {
        let status = (*self.list.status()).clone();
        let (problem, refused) = (Some(error.clone()), status.refused.saturating_add(1));
        self.list.status.store(Arc::new(ListStatus { problem, refused, ..status }));
        if self.reported.as_ref() != Some(&error) {
            self.reported = Some(error.clone());
            // At the start there is no earlier list that could hold.
            let denies_all = denies_all || self.list.load().entries().is_empty();
            self.observer.observe(DoorEvent::AllowListRefused { error, denies_all });
        }
    }

    /// Has every name looked up that is not being looked up already. Meanwhile each keeps its last answer.
    fn resolve(&mut self) {
        let names = self.list.load().names();
        self.failing.retain(|name| names.contains(name));
        for name in names {
            self.lookups.begin(name);
        }
    }

    fn resolved(&mut self, (name, found): LookedUp) {
        match found {
            Ok(addresses) => {
                self.failing.remove(&name);
                let list = self.list.load();
                self.apply(list.with_addresses(|wanted| (wanted == name).then(|| addresses.clone())));
            }
            Err(error) => self.unresolved(name, &error),
        }
    }

    /// Reports a name once, until it is resolved again.
    fn unresolved(&mut self, name: String, error: &str) {
        if self.list.load().names().contains(&name) && self.failing.insert(name.clone()) {
            self.observer.observe(DoorEvent::NameUnresolved { name, error: error.to_owned() });
        }
    }

    fn apply(&mut self, list: AllowList) {
        let before = self.list.load();
        if *before == list {
            return;
        }
        let (old, new) = (before.entries(), list.entries());
        self.list.store(list);
        let added: Vec<_> = new.difference(&old).cloned().collect();
        let removed: Vec<_> = old.difference(&new).cloned().collect();
        if !(added.is_empty() && removed.is_empty()) {
            if self.untold.len() >= MAX_UNTOLD {
                self.untold.pop_front();
                self.forgotten = self.forgotten.saturating_add(1);
            }
            let (at, added_now, removed_now) = (Timestamp::now(), added.clone(), removed.clone());
            self.untold.push_back(ListChange { at, added: added_now, removed: removed_now });
            self.observer.observe(DoorEvent::AllowListChanged { added, removed });
        }
    }
}

/// Asks for the addresses of a name; blocks until there is an answer.
type Resolver = dyn Fn(&str) -> io::Result<BTreeSet<Ipv4Addr>> + Send + Sync;
type LookedUp = (String, Result<BTreeSet<Ipv4Addr>, String>);

/// The names that are being looked up, or wait for their turn.
struct Lookups {
    resolver: Arc<Resolver>,
    turns: Arc<Semaphore>,
    pending: BTreeSet<String>,
    running: JoinSet<LookedUp>,
}

impl Lookups {
    fn new(resolver: Arc<Resolver>) -> Self {
        Self {
            resolver,
            turns: Arc::new(Semaphore::new(LOOKUPS)),
            pending: BTreeSet::new(),
            running: JoinSet::new(),
        }
    }

    fn begin(&mut self, name: String) {
        if !self.pending.insert(name.clone()) {
            return;
        }
        let (resolver, turns) = (Arc::clone(&self.resolver), Arc::clone(&self.turns));
        self.running.spawn(async move {
            let turn = turns.acquire_owned().await;
            let asked = name.clone();
            // The call cannot be broken off, so the turn is the call's, not that of whoever waits for it.
            let found = tokio::task::spawn_blocking(move || {
                let _turn = turn;
                resolver(&asked)
            });
            let found = match found.await {
                Ok(Ok(addresses)) if addresses.is_empty() => Err("it has no IPv4 address".to_owned()),
                Ok(found) => found.map_err(|e| e.to_string()),
                Err(failure) => Err(failure.to_string()),
            };
            (name, found)
        });
    }

    /// The next answer; `None` if none is awaited. Safe to cancel.
    async fn next(&mut self) -> Option<LookedUp> {
        // A lookup never fails to end with an answer, unless the runtime ends.
        let answer = self.running.join_next().await?.ok()?;
        self.pending.remove(&answer.0);
        Some(answer)
    }
}

fn resolve(name: &str) -> io::Result<BTreeSet<Ipv4Addr>> {
    let found = (name, 0).to_socket_addrs()?;
    Ok(found
        .filter_map(|address| match address.ip().to_canonical() {
            IpAddr::V4(v4) => Some(v4),
            IpAddr::V6(_) => None,
        })
        .collect())
}

#[cfg(test)]
#[path = "allowlist_tests.rs"]
mod tests;
