//! What was there before, and putting it back.
//!
//! The note of it is on disk before the first file is changed, so that every moment can be gone back from. It keeps what was
//! there before the first time; what is written later counts as ours.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use patch_audit::Hash;
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::{
    below::Below,
    place::{Found, Places},
};

/// Where the note and the contents are, below the root.
pub(crate) const DIR: &str = "var/lib/linux_patch_executor/provision/unattended";

/// The same for the package's own removal, which has nothing that reads JSON: a line a file, of its path, what is to be there (`-`
/// for nothing, else mode, owner, group and SHA-256), and the SHA-256 of everything of ours.
const LIST: &str = "undo.list";

/// The present form of the note.
const VERSION: u32 = 1;

/// A file as it was, its content by its SHA-256.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Before {
    sha256: String,
    mode: u32,
    uid: u32,
    gid: u32,
}

/// One file of which we take care.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    /// What was there; none if nothing was.
    before: Option<Before>,
    /// The SHA-256 of everything that we ever meant to write there.
    ours: BTreeSet<String>,
}

/// The note.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Note {
    version: u32,
    files: BTreeMap<String, Kept>,
    /// The directories that were made for them, those above first.
    made: Vec<PathBuf>,
}

impl Default for Note {
    fn default() -> Self {
        Self { version: VERSION, files: BTreeMap::new(), made: Vec::new() }
    }
}

/// What undoing does to one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Undo {
    pub(super) path: PathBuf,
    /// What is there now.
    pub(super) now: Option<Found>,
    /// What was there before.
    pub(super) before: Option<Found>,
    /// Whether somebody has changed it since.
    pub(super) edited: bool,
}

pub(super) fn sha256(content: &[u8]) -> String {
    Hash::of(content).to_string()
}

fn blob(sha256: &str) -> PathBuf {
    Path::new(DIR).join(sha256)
}

/// A file of root's own, in the way of everything that is kept here.
fn own(content: Vec<u8>) -> Found {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    Found { content, mode: 0o600, uid, gid }
}

/// Makes the directory and gives the right to change what is kept in it, until it is dropped.
///
/// # Errors
/// Those of making and locking it.
pub(super) fn lock(files: &Below, places: &Places) -> anyhow::Result<File> {
    let path = Path::new(DIR).join("lock");
    if places.look(&path)?.is_none() {
        places.put(&path, &own(Vec::new())).context("run this as root")?;
    }
    let file = files.file(&path).context("cannot lock what was there before")?;
    flock(&file, FlockOperation::LockExclusive).context("cannot lock what was there before")?;
    Ok(file)
}

impl Note {
    fn path() -> PathBuf {
        Path::new(DIR).join("state.json")
    }

    /// The note of former times; an empty one if there is none.
    ///
    /// # Errors
    /// When it cannot be read or is not understood: then nothing may be changed.
    pub(super) fn read(places: &Places) -> anyhow::Result<Self> {
        let Some(found) = places.look(&Self::path())? else { return Ok(Self::default()) };
        let note: Self = serde_json::from_slice(&found.content)
            .with_context(|| format!("/{} is damaged", Self::path().display()))?;
        ensure!(note.version == VERSION, "/{} is of another version of this program", Self::path().display());
        Ok(note)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.files.is_empty()
    }

    /// Whether what is found there is of our writing.
    pub(super) fn is_ours(&self, path: &str, found: &Found) -> bool {
        self.files.get(path).is_some_and(|kept| kept.ours.contains(&sha256(&found.content)))
    }

    /// Whether we have ever written there.
    pub(super) fn knows(&self, path: &str) -> bool {
        self.files.contains_key(path)
    }

    /// Notes that a file is going to be `new`, and keeps what is there. What somebody has edited since we wrote it is kept
    /// as well, and its copy's path is given.
    ///
    /// # Errors
    /// When it cannot be kept.
    pub(super) fn keep(
        &mut self,
        places: &Places,
        path: &str,
        now: Option<&Found>,
        new: Option<&str>,
    ) -> anyhow::Result<Option<PathBuf>> {
        let mut copy = None;
        if let Some(found) = now {
            let sha256 = sha256(&found.content);
            let is_known = self.knows(path);
            if !is_known || !self.is_ours(path, found) {
                let name = blob(&sha256);
                places.put(&name, &own(found.content.clone()))?;
                copy = is_known.then_some(name);
            }
        }
        let kept = self.files.entry(path.to_owned()).or_insert_with(|| Kept {
            before: now.map(|found| Before {
                sha256: sha256(&found.content),
                mode: found.mode,
                uid: found.uid,
                gid: found.gid,
            }),
            ours: BTreeSet::new(),
        });
        kept.ours.extend(new.map(|text| sha256(text.as_bytes())));
        Ok(copy)
    }

    /// Notes directories that were made.
    pub(super) fn made(&mut self, made: Vec<PathBuf>) {
        self.made.extend(made.into_iter().filter(|path| !path.starts_with(DIR)));
    }

    /// Brings the note to disk.
    ///
    /// # Errors
    /// Those of the system.
    pub(super) fn write(&self, places: &Places) -> anyhow::Result<()> {
        let text = serde_json::to_vec_pretty(self)?;
        let noted = || "cannot note what was there before";
        places.put(&Self::path(), &own(text)).with_context(noted)?;
        places.put(&Path::new(DIR).join(LIST), &own(self.list().into_bytes())).with_context(noted)?;
        Ok(())
    }

    fn list(&self) -> String {
        let line = |(path, kept): (&String, &Kept)| {
            let before = match &kept.before {
                None => "-".to_owned(),
                Some(Before { sha256, mode, uid, gid }) => format!("{mode:o}:{uid}:{gid}:{sha256}"),
            };
            let ours: Vec<&str> = kept.ours.iter().map(String::as_str).collect();
            format!("/{path} {before} {}\n", ours.join(","))
        };
        self.files.iter().map(line).collect()
    }

    /// What has to be done to have everything as it was.
    ///
    /// # Errors
    /// When a file or what is kept of it cannot be read.
    pub(super) fn undo(&self, places: &Places) -> anyhow::Result<Vec<Undo>> {
        let undo = |(path, kept): (&String, &Kept)| {
            let path = PathBuf::from(path);
            let now = places.look(&path)?;
            let before = match &kept.before {
                None => None,
                Some(before) => {
                    let blob = places.look(&blob(&before.sha256))?;
                    let content = blob.map(|found| found.content).unwrap_or_default();
                    ensure!(
                        sha256(&content) == before.sha256,
                        "what is kept of /{} in /{DIR} is damaged; nothing was undone",
                        path.display()
                    );
                    Some(Found { content, mode: before.mode, uid: before.uid, gid: before.gid })
                }
            };
            let edited = match &now {
                Some(found) => {
                    !kept.ours.contains(&sha256(&found.content))
                        && before.as_ref().is_none_or(|before| before.content != found.content)
                }
                // One that is to be absent in our own view was not there either.
                None => false,
            };
            Ok(Undo { path, now, before, edited })
        };
        self.files.iter().map(undo).collect()
    }

    /// Removes the directories that were made, as far as they are empty, and forgets everything.
    ///
    /// # Errors
    /// When the note cannot be removed.
    pub(super) fn forget(&self, places: &Places, edited: &[String]) -> anyhow::Result<()> {
        self.made.iter().rev().for_each(|path| places.remove_empty(path));
        places.remove(&Self::path())?;
        places.remove(&Path::new(DIR).join(LIST))?;
        let kept = self.files.values().filter_map(|kept| kept.before.as_ref());
        for before in kept.filter(|before| !edited.contains(&before.sha256)) {
            places.remove(&blob(&before.sha256))?;
        }
        Ok(())
    }

    /// Keeps what somebody has edited, before it is undone, and gives the path of the copy.
    ///
    /// # Errors
    /// When it cannot be kept.
    pub(super) fn keep_edited(places: &Places, found: &Found) -> anyhow::Result<PathBuf> {
        let name = blob(&sha256(&found.content));
        places.put(&name, &own(found.content.clone()))?;
        Ok(name)
    }
}
