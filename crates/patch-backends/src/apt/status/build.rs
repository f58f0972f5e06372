//! From stanzas to the database.

use std::{collections::HashMap, fs, io, path::Path};

use patch_types::{PackageName, api::PackageStatus};

use super::{Database, Entry, Span, TEXTS, Text, UPDATES, Want};
use crate::{ReadError, apt::deb822};

/// Collects stanzas into a database.
pub(super) struct Builder {
    store: String,
    entries: Vec<Entry>,
    known: HashMap<Vec<u8>, Span>,
    skipped: usize,
    everything: bool,
}

impl Builder {
    /// A builder with room for so many bytes of text and so many packages; `everything` or only what the list needs.
    pub(super) fn new(bytes: usize, packages: usize, everything: bool) -> Self {
        Self {
            store: String::with_capacity(bytes),
            entries: Vec::with_capacity(packages),
            known: HashMap::new(),
            skipped: 0,
            everything,
        }
    }

    fn keep(&mut self, value: &[u8], repeats: bool) -> Span {
        if repeats && let Some(span) = self.known.get(value) {
            return *span;
        }
        let start = self.store.len();
        match std::str::from_utf8(value) {
            Ok(text) => self.store.push_str(text),
            Err(_) => self.store.push_str(&String::from_utf8_lossy(value)),
        }
        // Beyond 4 GiB nothing more is kept; no status file is nearly as large.
        let span = match (u32::try_from(start), u32::try_from(self.store.len() - start)) {
            (Ok(start), Ok(len)) => Span { start, len },
            _ => Span::default(),
        };
        if repeats {
            self.known.insert(value.to_vec(), span);
        }
        span
    }

    /// Adds a package, if the stanza is one.
    pub(super) fn add(&mut self, stanza: deb822::Stanza<'_>) {
        if let Some(entry) = self.entry(stanza) {
            self.entries.push(entry);
        }
    }

    /// A stanza of an update replaces the one of the same package; when it can exist only once, of whatever
    /// architecture.
    pub(super) fn replace(&mut self, stanza: deb822::Stanza<'_>) {
        let (Some(name), architecture) =
            (stanza.get("Package"), stanza.get("Architecture").unwrap_or_default())
        else {
            self.skipped += 1;
            return;
        };
        let same = stanza.get("Multi-Arch") == Some(b"same");
        let store = std::mem::take(&mut self.store);
        let text = |e: &Entry, which: Text| {
            let span = e.texts[which as usize];
            store
                .as_bytes()
                .get(span.start as usize..span.start as usize + span.len as usize)
                .unwrap_or_default()
        };
        let mut replaced = None;
        self.entries.retain(|e| {
            let stays = text(e, Text::Name) != name
                || (text(e, Text::Architecture) != architecture && (same || e.multi_arch_same));
            if !stays {
                replaced = Some((e.texts[Text::Section as usize], e.texts[Text::Priority as usize]));
            }
            stays
        });
        self.store = store;
        let Some(mut entry) = self.entry(stanza) else { return };
        if let Some((section, priority)) = replaced {
            // What a stanza does not classify keeps its class, for dpkg.
            for (which, old) in [(Text::Section, section), (Text::Priority, priority)] {
                if entry.texts[which as usize].len == 0 {
                    entry.texts[which as usize] = old;
                }
            }
        }
        self.entries.push(entry);
    }

    fn entry(&mut self, stanza: deb822::Stanza<'_>) -> Option<Entry> {
        let mut entry = Entry {
            texts: [Span::default(); TEXTS],
            installed_kib: 0,
            want: Want::Unknown,
            status: PackageStatus::NotInstalled,
            reinstall_required: false,
            essential: false,
            protected: false,
            multi_arch_same: false,
        };
        let mut config_version: &[u8] = b"";
        for (field, value) in stanza.fields() {
            match field {
                b"Status" => status(value, &mut entry),
                b"Description" => {
                    let end = memchr::memchr(b'\n', value).unwrap_or(value.len());
                    entry.texts[Text::Synopsis as usize] = self.keep(&value[..end], false);
                    if self.everything {
                        entry.texts[Text::LongDescription as usize] = self.keep(&value[end..], false);
                    }
                }
                b"Installed-Size" => entry.installed_kib = deb822::number(value).unwrap_or(0),
                b"Essential" => entry.essential = value == b"yes",
                b"Protected" | b"Important" => entry.protected |= value == b"yes",
                b"Multi-Arch" => entry.multi_arch_same = value == b"same",
                b"Config-Version" => config_version = value,
                _ => {
                    if let Some(which) = Text::of_field(field)
                        && (self.everything || which.in_list())
                    {
                        entry.texts[which as usize] = self.keep(value, which.repeats());
                    }
                }
            }
        }
        let name = entry.texts[Text::Name as usize];
        let name =
            self.store.get(name.start as usize..name.start as usize + name.len as usize).unwrap_or_default();
        if name.contains(':') || name.parse::<PackageName>().is_err() {
            self.skipped += 1;
            return None;
        }
        if entry.status == PackageStatus::NotInstalled {
            // Only a remembered wish: there is nothing of the package.
            return None;
        }
        if entry.texts[Text::Version as usize].len == 0 {
            entry.texts[Text::Version as usize] = self.keep(config_version, false);
        }
        Some(entry)
    }

    /// The database, in order.
    pub(super) fn finish(self, declared: Option<&str>, pending_updates: usize) -> Database {
        let Self { mut store, mut entries, known: _, skipped, .. } = self;
        store.shrink_to_fit();
        entries.shrink_to_fit();
        let mut database = Database {
            store,
            entries: Vec::new(),
            native: String::new(),
            stamp: None,
            skipped,
            pending_updates,
        };
        entries.sort_by(|a, b| {
            let key = |e| (database.text(e, Text::Name), database.text(e, Text::Architecture));
            key(a).cmp(&key(b))
        });
        database.entries = entries;
        database.native = native(&database, declared);
        database
    }
}

/// dpkg is a native package. Without it (a root that is being made) the declared architecture or the commonest one.
fn native(database: &Database, declared: Option<&str>) -> String {
    if let Some(dpkg) = database.named("dpkg").find(|p| p.is_present() && p.architecture() != "all") {
        return dpkg.architecture().to_owned();
    }
    if let Some(declared) = declared.filter(|d| !d.trim().is_empty()) {
        return declared.trim().to_owned();
    }
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for package in database.iter().filter(|p| !matches!(p.architecture(), "all" | "")) {
        match counts.iter_mut().find(|(a, _)| *a == package.architecture()) {
            Some((_, n)) => *n += 1,
            None => counts.push((package.architecture(), 1)),
        }
    }
    counts.into_iter().max_by_key(|(_, n)| *n).map(|(a, _)| a.to_owned()).unwrap_or_default()
}

fn status(value: &[u8], entry: &mut Entry) {
    let mut words = value.split(u8::is_ascii_whitespace).filter(|w| !w.is_empty());
    entry.want = match words.next() {
        Some(b"install") => Want::Install,
        Some(b"hold") => Want::Hold,
        Some(b"deinstall") => Want::Deinstall,
        Some(b"purge") => Want::Purge,
        _ => Want::Unknown,
    };
    entry.reinstall_required = matches!(words.next(), Some(b"reinstreq" | b"hold-reinstreq"));
    entry.status = match words.next() {
        Some(b"not-installed") | None => PackageStatus::NotInstalled,
        Some(b"config-files") => PackageStatus::ConfigFiles,
        Some(b"half-installed") => PackageStatus::HalfInstalled,
        Some(b"unpacked") => PackageStatus::Unpacked,
        // `postinst-failed` is what dpkg called it long ago and still accepts.
        Some(b"half-configured" | b"postinst-failed") => PackageStatus::HalfConfigured,
        Some(b"triggers-awaited") => PackageStatus::TriggersAwaited,
        Some(b"triggers-pending") => PackageStatus::TriggersPending,
        Some(b"installed") => PackageStatus::Installed,
        // A word that no dpkg writes is shown as something to look at, not hidden.
        Some(_) => PackageStatus::HalfInstalled,
    };
}

/// The unmerged changes in the order in which dpkg made them. Other names (`tmp.i`) are dpkg's scratch files.
pub(super) fn read_updates(root: &Path) -> Result<Vec<Vec<u8>>, ReadError> {
    let directory = root.join(UPDATES);
    let entries = match fs::read_dir(&directory) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(ReadError::new(&directory, e)),
    };
    let mut names: Vec<_> = entries
        .filter_map(|e| e.ok()?.file_name().into_string().ok())
        .filter(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
        .collect();
    names.sort();
    let mut updates = Vec::new();
    for path in names.into_iter().map(|n| directory.join(n)) {
        match fs::read(&path) {
            Ok(update) => updates.push(update),
            // A running dpkg has merged it meanwhile.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(ReadError::new(&path, e)),
        }
    }
    Ok(updates)
}
