//! What a dpkg that was killed leaves beside the files that it was unpacking.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{
    deb,
    files::{Below, from_text, to_text},
    snapshot::Snapshot,
};

/// Behind the path of a file while dpkg unpacks it: the new one, and the old one in case it has to be put back.
const SUFFIXES: [&[u8]; 2] = [b".dpkg-new", b".dpkg-tmp"];

/// Where dpkg writes the next change of its database before it has a name, below the root. It reads only what has one.
const DRAFT: &str = "var/lib/dpkg/updates/tmp.i";

/// dpkg's directory for the control files of the archive that it works on, below the root.
const CONTROL: &str = "var/lib/dpkg/tmp.ci";

/// Removes it, for the packages of a change: beside their files before, and beside those of the new versions' archives.
/// What was there before the change stays. Only to be called with the package manager's lock held, and when no package of the change is left half-done: dpkg still
/// needs these files then. Gives the paths that were removed.
#[must_use]
pub fn sweep(root: &Path, snapshot: &Snapshot, archives: &[PathBuf]) -> Vec<String> {
    let Ok(mut below) = Below::new(root) else { return Vec::new() };
    let known: Vec<&str> = snapshot
        .affected
        .iter()
        .flat_map(|affected| &affected.conffiles)
        .flat_map(|conffile| &conffile.siblings)
        .map(String::as_str)
        .collect();
    let mut paths: Vec<Vec<u8>> =
        snapshot.affected.iter().flat_map(|affected| &affected.list).map(|path| from_text(path)).collect();
    // An archive that cannot be read has no names to look beside.
    paths.extend(archives.iter().filter_map(|archive| deb::names(archive).ok()).flatten());
    paths.sort();
    paths.dedup();
    let mut removed = Vec::new();
    // Where dpkg unpacks the control files of the archive that it works on.
    for entry in fs::read_dir(root.join(CONTROL)).into_iter().flatten().flatten() {
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        let gone =
            if is_directory { fs::remove_dir_all(entry.path()) } else { fs::remove_file(entry.path()) };
        if gone.is_ok() {
            removed.push(entry.path().display().to_string());
        }
    }
    let draft = root.join(DRAFT);
    if fs::remove_file(&draft).is_ok() {
        removed.push(draft.display().to_string());
    }
    for path in paths.iter().filter(|path| path.len() > 1) {
        for suffix in SUFFIXES {
            let name = [path.as_slice(), suffix].concat();
            let text = to_text(&name);
            let is_known = known.iter().any(|known| text == *known || text.ends_with(&format!("/{known}")));
            let Ok(meta) = below.look(&name) else { continue };
            // What a package itself ships under such a name is no leftover.
            if is_known || paths.binary_search(&name).is_ok() {
                continue;
            }
            // A directory that has anything in it is nobody's draft, and stays.
            let remove = if meta.is_dir() { fs::remove_dir } else { fs::remove_file };
            match below.find(&name).and_then(remove) {
                Ok(()) => removed.push(text),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => eprintln!("patch-executor: cannot remove {text}: {error}"),
            }
        }
    }
    removed
}
