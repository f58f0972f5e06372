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

/// dpkg's directories below the root, and the names (with a point before: ends of names) under which it writes a file there before that takes the place
/// of the one before. It reads none of them: while nobody holds its lock they are what a killed dpkg left.
const DRAFTS: [(&str, &[&str]); 4] = [
    ("var/lib/dpkg", &["status-new", "available-new", "diversions-new", "statoverride-new"]),
    ("var/lib/dpkg/info", &[".list-new", "format-new"]),
    ("var/lib/dpkg/triggers", &["File.new", "Unincorp.new"]),
    ("var/lib/dpkg/updates", &["tmp.i"]),
];

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
    for (directory, ends) in DRAFTS {
        for entry in fs::read_dir(root.join(directory)).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let is_draft = |end: &&str| {
                if end.starts_with('.') {
                    name.as_encoded_bytes().ends_with(end.as_bytes())
                } else {
                    name == **end
                }
            };
            if ends.iter().any(is_draft) && fs::remove_file(entry.path()).is_ok() {
                removed.push(entry.path().display().to_string());
            }
        }
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use jiff::Timestamp;
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn drafts_of_the_database_go_and_what_it_reads_stays() {
        let root = TempDir::new().unwrap();
        let dpkg = root.path().join("var/lib/dpkg");
        let drafts =
            ["status-new", "info/lp-a.list-new", "triggers/Unincorp.new", "updates/tmp.i", "diversions-new"];
        let kept = [
            "status",
            "info/lp-a.list",
            "triggers/Unincorp",
            "triggers/lp-trigger.new",
            "updates/0001",
            "info/lp-a.made-new",
        ];
        for directory in ["info", "triggers", "updates"] {
            fs::create_dir_all(dpkg.join(directory)).unwrap();
        }
        for name in drafts.iter().chain(&kept) {
            fs::write(dpkg.join(name), "").unwrap();
        }
        let snapshot = Snapshot {
            taken_at: Timestamp::now(),
            packages: BTreeMap::new(),
            affected: Vec::new(),
            active_units: Vec::new(),
            administration: BTreeMap::new(),
        };
        assert_eq!(sweep(root.path(), &snapshot, &[]).len(), drafts.len());
        assert_eq!(drafts.iter().find(|name| dpkg.join(name).exists()), None);
        assert_eq!(kept.iter().find(|name| !dpkg.join(name).exists()), None);
    }
}
