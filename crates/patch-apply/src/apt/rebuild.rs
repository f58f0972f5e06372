//! An archive made of the installed files, for a package whose own archive is nowhere to be had.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, DirBuilder, File, Metadata, Permissions},
    io::{self, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown, symlink},
    },
    path::{Path, PathBuf},
};

use patch_backends::apt::{Installed, deb822, info};

use super::{
    archives::make,
    argv, deb,
    files::{Below, md5_of, open_regular, pump},
    snapshot::{self, Diversions},
};
use crate::run;

/// What stands in the place of a configuration file whose shipped version is not known.
const PLACEHOLDER: &str = "# This configuration file had been changed or deleted when its package was made into an\n\
                           # archive again, so that its original is not in there. Install the package from its\n\
                           # repository to get that.\n";

/// What hosts are often made without; nothing needs it to run.
const DOCUMENTATION: [&str; 5] =
    ["/usr/share/doc/", "/usr/share/man/", "/usr/share/info/", "/usr/share/locale/", "/usr/share/lintian/"];

/// Fields of dpkg's database that do not come from an archive.
const NOT_OF_ARCHIVES: [&str; 5] =
    ["Status", "Conffiles", "Config-Version", "Triggers-Pending", "Triggers-Awaited"];

/// An archive that was made.
#[derive(Debug)]
pub struct Rebuilt {
    /// Where it lies.
    pub archive: PathBuf,
    /// In which respect it is not what was installed: one sentence.
    pub reason: String,
}

/// Makes an archive of an installed package in `scratch`, the directory of this change alone. Configuration files that
/// were edited or deleted are not put in: what stands in their place makes dpkg take the administrator's for edited,
/// and keep it, now and later. Documentation and translations that are missing are left out, as are files that dpkg was
/// told to leave out of this host.
///
/// # Errors
/// A sentence that says why there is no archive: a file is missing or cannot be packed, or a tool failed.
pub fn rebuild(root: &Path, package: Installed<'_>, scratch: &Path) -> Result<Rebuilt, String> {
    let tree = scratch.join("tree");
    let archive = scratch.join("rebuilt.deb");
    let made = Tree::new(root, package, &tree).and_then(|mut made| made.fill()).and_then(|reason| {
        let argv = argv::build_archive(&tree, &archive, scratch)
            .ok_or_else(|| format!("{} is not UTF-8", scratch.display()))?;
        run::read(&argv, |output| pump(&mut &mut *output, |_| Ok(()))).map_err(|error| error.to_string())?;
        Ok(reason)
    });
    let removed = fs::remove_dir_all(&tree);
    let reason = made?;
    removed.map_err(|error| format!("{} cannot be removed: {error}", tree.display()))?;
    Ok(Rebuilt { archive, reason })
}

struct Tree<'a> {
    root: &'a Path,
    package: Installed<'a>,
    tree: &'a Path,
    below: Below,
    diversions: Diversions,
    /// dpkg's hashes of the configuration files.
    conffiles: BTreeMap<Vec<u8>, String>,
    sums: HashMap<Vec<u8>, String>,
    /// Copies of files with several names, by device and inode.
    linked: HashMap<(u64, u64), PathBuf>,
    differ: Vec<String>,
    replaced: usize,
    filter: Filter,
    left_out: usize,
    /// Directories that are missing with the documentation in them.
    emptied: Vec<Vec<u8>>,
    /// Files and links that are in the tree.
    packed: usize,
}

impl<'a> Tree<'a> {
    fn new(root: &'a Path, package: Installed<'a>, tree: &'a Path) -> Result<Self, String> {
        let failed = |error: io::Error| format!("it cannot be made of its files: {error}");
        make(tree).map_err(failed)?;
        fs::set_permissions(tree, Permissions::from_mode(0o755)).map_err(failed)?;
        let sums = fs::read(info::path(root, package, "md5sums")).unwrap_or_default();
        let sums = deb::sums(&sums)
            .into_iter()
            .map(|(sum, path)| ([b"/".as_slice(), &path].concat(), sum))
            .collect();
        Ok(Self {
            root,
            package,
            tree,
            below: Below::new(root).map_err(failed)?,
            diversions: Diversions::read(root).map_err(failed)?,
            conffiles: BTreeMap::new(),
            sums,
            linked: HashMap::new(),
            differ: Vec::new(),
            replaced: 0,
            filter: Filter::read(root),
            left_out: 0,
            emptied: Vec::new(),
            packed: 0,
        })
    }

    fn fill(&mut self) -> Result<String, String> {
        let stanza = self.stanza()?;
        let stanza = deb822::Stanza::new(&stanza);
        self.conffiles = snapshot::conffile_lines(stanza.get("Conffiles").unwrap_or_default())
            .into_iter()
            .filter(|line| !line.obsolete)
            .map(|line| (line.path, line.md5))
            .collect();
        let list = fs::read(info::path(self.root, self.package, "list"))
            .map_err(|error| format!("dpkg's list of its files cannot be read: {error}"))?;
        let paths: Vec<&[u8]> =
            list.split(|b| *b == b'\n').filter(|p| p.starts_with(b"/") && *p != b"/.").collect();
        let parents: BTreeSet<&[u8]> = paths
            .iter()
            .filter_map(|p| Some(Path::new(std::ffi::OsStr::from_bytes(p)).parent()?.as_os_str().as_bytes()))
            .collect();
        let mut missing = Vec::new();
        for path in &paths {
            match self.add(path, parents.contains(path)) {
                Ok(()) => {}
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) =>
                {
                    if !self.leave_out(path, parents.contains(path)).map_err(|error| error.to_string())? {
                        missing.push(String::from_utf8_lossy(path).into_owned());
                    }
                }
                Err(error) => {
                    return Err(format!("{} cannot be packed: {error}", String::from_utf8_lossy(path)));
                }
            }
        }
        if !missing.is_empty() {
            return Err(format!("files of it are missing: {}", some_of(&missing)));
        }
        if self.packed == 0 {
            // dpkg drops a package of which nothing is left but directories that others have, too.
            for path in &self.emptied {
                let relative = path.strip_prefix(b"/").unwrap_or(path);
                DirBuilder::new()
                    .mode(0o755)
                    .recursive(true)
                    .create(self.tree.join(Path::new(std::ffi::OsStr::from_bytes(relative))))
                    .map_err(|error| format!("it cannot be made of its files: {error}"))?;
            }
        }
        self.control(&stanza).map_err(|error| format!("its control files cannot be made: {error}"))?;
        let mut reason = "its archive was not to be had and was made of the installed files".to_owned();
        if !self.differ.is_empty() {
            reason
                .push_str(&format!(", some of which differ from what it shipped: {}", some_of(&self.differ)));
        }
        if self.replaced > 0 {
            reason.push_str(&format!("; {} edited configuration files are not in it", self.replaced));
        }
        if self.left_out > 0 {
            reason.push_str(&format!("; {} files that this host does without are not in it", self.left_out));
        }
        Ok(reason)
    }

    /// Whether a missing path may stay out. What dpkg was told to exclude is in the archive all the same, empty, so that
    /// dpkg goes on listing it; it will not unpack it.
    fn leave_out(&mut self, path: &[u8], is_parent: bool) -> io::Result<bool> {
        let excluded = self.filter.excludes(path);
        let documentation = || {
            // The directory itself is a part of the tree.
            let path = [path, b"/".as_slice()].concat();
            DOCUMENTATION.iter().any(|tree| path.starts_with(tree.as_bytes()))
        };
        if !excluded && !documentation() {
            return Ok(false);
        }
        if excluded {
            let relative = path.strip_prefix(b"/").unwrap_or(path);
            let target = self.tree.join(Path::new(std::ffi::OsStr::from_bytes(relative)));
            let directory = if is_parent { Some(target.as_path()) } else { target.parent() };
            if let Some(directory) = directory {
                DirBuilder::new().mode(0o755).recursive(true).create(directory)?;
            }
            if !is_parent {
                File::options().write(true).create_new(true).mode(0o644).open(&target)?;
            }
        }
        if is_parent {
            self.emptied.push(path.to_vec());
        } else {
            self.left_out += 1;
        }
        Ok(true)
    }

    fn stanza(&self) -> Result<Vec<u8>, String> {
        let key = super::archives::key_of(self.package);
        snapshot::stanzas(self.root, &BTreeSet::from([key.clone()]))
            .map_err(|error| format!("dpkg's database cannot be read: {error}"))?
            .remove(&key)
            .ok_or_else(|| "dpkg's database does not have it".to_owned())
    }

    /// Puts one path of dpkg's list into the tree.
    fn add(&mut self, path: &[u8], is_parent: bool) -> io::Result<()> {
        let real = self.diversions.on_disk(path, self.package.name()).to_vec();
        let relative = path.strip_prefix(b"/").unwrap_or(path);
        let target = self.tree.join(Path::new(std::ffi::OsStr::from_bytes(relative)));
        if let Some(recorded) = self.conffiles.get(path).cloned() {
            return self.add_conffile(&real, &target, &recorded);
        }
        let source = self.below.find(&real)?;
        let metadata = fs::symlink_metadata(&source)?;
        if metadata.is_dir() || (metadata.is_symlink() && is_parent) {
            // A link in the place of a directory is the host's layout, not the package's.
            let (mode, uid, gid) = if metadata.is_dir() {
                (metadata.mode() & 0o7777, metadata.uid(), metadata.gid())
            } else {
                (0o755, 0, 0)
            };
            DirBuilder::new().mode(0o700).create(&target)?;
            chown(&target, Some(uid), Some(gid))?;
            return fs::set_permissions(&target, Permissions::from_mode(mode));
        }
        if metadata.is_symlink() {
            self.packed += 1;
            symlink(fs::read_link(&source)?, &target)?;
            return lchown(&target, Some(metadata.uid()), Some(metadata.gid()));
        }
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no file, directory or link"));
        }
        if let Some(sum) = self.sums.get(path)
            && md5_of(open_regular(&source)?)? != *sum
        {
            self.differ.push(String::from_utf8_lossy(path).into_owned());
        }
        self.copy(&source, &metadata, &target)
    }

    /// Only an untouched one is known to be what the package ships.
    fn add_conffile(&mut self, real: &[u8], target: &Path, recorded: &str) -> io::Result<()> {
        if let Ok(source) = self.below.find(real)
            && let Ok(metadata) = fs::symlink_metadata(&source)
            && metadata.is_file()
            && md5_of(open_regular(&source)?)?.eq_ignore_ascii_case(recorded)
        {
            return self.copy(&source, &metadata, target);
        }
        self.replaced += 1;
        // Its directory may have been deleted with it.
        if let Some(parent) = target.parent()
            && !parent.is_dir()
        {
            DirBuilder::new().mode(0o755).recursive(true).create(parent)?;
        }
        let mut file = File::options().write(true).create_new(true).mode(0o644).open(target)?;
        file.write_all(PLACEHOLDER.as_bytes())?;
        writeln!(file, "# {} {}", self.package.name(), self.package.version_text())
    }

    fn copy(&mut self, source: &Path, metadata: &Metadata, target: &Path) -> io::Result<()> {
        self.packed += 1;
        let id = (metadata.dev(), metadata.ino());
        if let Some(copy) = self.linked.get(&id).filter(|_| metadata.nlink() > 1) {
            return fs::hard_link(copy, target);
        }
        // A link costs nothing and is removed again; its bytes are only read.
        if fs::hard_link(source, target).is_err() {
            let mut from = open_regular(source)?;
            let mut to = File::options().write(true).create_new(true).mode(0o600).open(target)?;
            io::copy(&mut from, &mut to)?;
            chown(target, Some(metadata.uid()), Some(metadata.gid()))?;
            to.set_permissions(Permissions::from_mode(metadata.mode() & 0o7777))?;
            to.set_modified(metadata.modified()?)?;
        }
        if metadata.nlink() > 1 {
            self.linked.insert(id, target.to_owned());
        }
        Ok(())
    }

    /// The directory `DEBIAN`: what dpkg keeps of the archive's control files, and `control` from the database.
    fn control(&self, stanza: &deb822::Stanza<'_>) -> io::Result<()> {
        let directory = self.tree.join("DEBIAN");
        DirBuilder::new().mode(0o755).create(&directory)?;
        fs::set_permissions(&directory, Permissions::from_mode(0o755))?;
        let mut control = Vec::new();
        for (name, value) in stanza.fields() {
            if NOT_OF_ARCHIVES.iter().any(|not| name.eq_ignore_ascii_case(not.as_bytes())) {
                continue;
            }
            control.extend_from_slice(name);
            control.extend_from_slice(b": ");
            control.extend_from_slice(value);
            control.push(b'\n');
        }
        fs::write(directory.join("control"), control)?;
        let list = info::path(self.root, self.package, "list");
        let Some(prefix) = list.file_name().and_then(|n| n.as_bytes().strip_suffix(b"list")) else {
            return Ok(());
        };
        for entry in fs::read_dir(self.root.join(info::INFO))? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(kind) = name.as_bytes().strip_prefix(prefix) else { continue };
            // A dot would be another package's: `python3.11.list` begins with `python3.`, too.
            if kind.is_empty() || kind.contains(&b'.') || kind == b"list" || kind == b"control" {
                continue;
            }
            if entry.file_type()?.is_file() {
                let target = directory.join(std::ffi::OsStr::from_bytes(kind));
                fs::copy(entry.path(), &target)?;
                chown(&target, Some(0), Some(0)).or_else(|error| match error.kind() {
                    io::ErrorKind::PermissionDenied => Ok(()),
                    _ => Err(error),
                })?;
            }
        }
        Ok(())
    }
}

/// dpkg's options `path-exclude` and `path-include`: the last pattern that fits decides.
#[derive(Debug, Default)]
struct Filter {
    rules: Vec<(bool, Vec<u8>)>,
}

impl Filter {
    /// Reads dpkg's configuration. What cannot be read excludes nothing, so that what is missing counts as missing.
    fn read(root: &Path) -> Self {
        let etc = root.join("etc/dpkg");
        let mut files: Vec<PathBuf> = fs::read_dir(etc.join("dpkg.cfg.d"))
            .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default();
        files.retain(|path| {
            path.file_name().is_some_and(|name| {
                name.as_bytes().iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
            })
        });
        files.sort();
        files.push(etc.join("dpkg.cfg"));
        let texts = files.iter().filter_map(|path| {
            let mut text = Vec::new();
            io::Read::read_to_end(&mut open_regular(path).ok()?, &mut text).ok()?;
            Some(text)
        });
        Self { rules: texts.flat_map(|text| Self::parse(&text)).collect() }
    }

    fn parse(text: &[u8]) -> Vec<(bool, Vec<u8>)> {
        text.split(|b| *b == b'\n')
            .filter_map(|line| {
                let line = line.trim_ascii();
                let at = line.iter().position(|b| *b == b'=' || b.is_ascii_whitespace())?;
                let (name, pattern) = line.split_at(at);
                let pattern = pattern.get(1..)?.trim_ascii().trim_ascii_start();
                let pattern = pattern.strip_prefix(b"=").unwrap_or(pattern).trim_ascii();
                let pattern =
                    pattern.strip_prefix(b"\"").and_then(|p| p.strip_suffix(b"\"")).unwrap_or(pattern);
                match name {
                    b"path-exclude" => Some((true, pattern.to_vec())),
                    b"path-include" => Some((false, pattern.to_vec())),
                    _ => None,
                }
            })
            .collect()
    }

    fn excludes(&self, path: &[u8]) -> bool {
        self.rules.iter().rev().find(|(_, pattern)| fits(pattern, path)).is_some_and(|(exclude, _)| *exclude)
    }
}

/// A shell's pattern of `*` (slashes as well) and `?`. One with a class of characters fits nothing: then what is missing
/// counts as missing.
fn fits(pattern: &[u8], text: &[u8]) -> bool {
    if pattern.contains(&b'[') {
        return false;
    }
    let (mut p, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while let Some(byte) = text.get(t) {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(wanted) if *wanted == b'?' || wanted == byte => {
                p += 1;
                t += 1;
            }
            _ => {
                let Some((at, from)) = star else { return false };
                star = Some((at, from + 1));
                p = at + 1;
                t = from + 1;
            }
        }
    }
    pattern.get(p..).unwrap_or_default().iter().all(|b| *b == b'*')
}

/// The first ones of a list that may be long.
fn some_of(paths: &[String]) -> String {
    let first = paths.iter().take(3).map(String::as_str).collect::<Vec<_>>().join(", ");
    match paths.len().saturating_sub(3) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use patch_backends::apt::Database;
    use proptest::prelude::*;

    use super::*;
    use crate::apt::testing::{Host, Package};

    fn rebuild_it(host: &Host, name: &str) -> Result<Rebuilt, String> {
        let database = Database::read(&host.root).unwrap();
        let package = database.named(name).next().unwrap();
        let rebuilt = rebuild(&host.root, package, &host.at("scratch"));
        assert!(!host.at("scratch/tree").exists());
        rebuilt
    }

    fn conf(text: &str) -> [(&'static str, &str); 3] {
        [("etc/aa.conf", text), ("etc/bb.conf", "untouched"), ("usr/share/aa/x", "x")]
    }

    const CONFFILES: &[&str] = &["etc/aa.conf", "etc/bb.conf"];

    #[test]
    fn an_edited_conffile_is_not_taken_for_the_shipped_one() {
        let host = Host::new();
        let install = |version: &str, text: &str| {
            let files = conf(text);
            let package = Package { files: &files, conffiles: CONFFILES, ..Package::default() };
            host.install(&host.deb("aa", version, &package));
        };
        install("1", "shipped 1");
        fs::write(host.root.join("etc/aa.conf"), "edited").unwrap();
        let rebuilt = rebuild_it(&host, "aa").unwrap();
        assert!(rebuilt.reason.contains("1 edited"), "{}", rebuilt.reason);
        install("2", "shipped 2");
        assert_eq!(host.text("etc/aa.conf"), "edited");
        host.install(&rebuilt.archive);
        assert_eq!(host.text("etc/aa.conf"), "edited");
        assert_eq!(host.text("etc/bb.conf"), "untouched");
        assert!(host.text("var/lib/dpkg/status").contains("Version: 1\n"));
        // The version that shipped what is recorded now must not overwrite the edit either, with or without a question.
        install("3", "shipped 3");
        assert_eq!(host.text("etc/aa.conf"), "edited");
        fs::remove_file(host.root.join("etc/aa.conf")).unwrap();
        let rebuilt = rebuild_it(&host, "aa").unwrap();
        host.install(&rebuilt.archive);
        assert!(!host.root.join("etc/aa.conf").exists(), "a deleted file stays deleted");
    }

    #[test]
    fn files_come_back_as_they_were() {
        let host = Host::new();
        let more: fn(&Path) = |tree| {
            let aa = tree.join("usr/share/aa");
            fs::hard_link(aa.join("x"), aa.join("y")).unwrap();
            symlink("x", aa.join("l")).unwrap();
            fs::write(aa.join(std::ffi::OsStr::from_bytes(b"caf\xe9 with space")), "latin").unwrap();
            fs::set_permissions(aa.join("x"), Permissions::from_mode(0o4755)).unwrap();
            fs::create_dir(aa.join("empty")).unwrap();
            fs::set_permissions(aa.join("empty"), Permissions::from_mode(0o1777)).unwrap();
        };
        let files = conf("shipped");
        let package = Package {
            files: &files,
            conffiles: CONFFILES,
            fields: "Depends: bb (>= 1), cc\nSection: misc\n",
            more: Some(more),
            ..Package::default()
        };
        let original = host.deb("aa", "1:2", &package);
        host.install(&original);
        // dpkg's trigger files and the host's layout are not the package's.
        fs::write(host.root.join("var/lib/dpkg/info/aa.bb.postinst"), "#!/bin/sh\n").unwrap();
        fs::rename(host.root.join("usr/share"), host.root.join("usr/real")).unwrap();
        symlink("/usr/real", host.root.join("usr/share")).unwrap();
        let rebuilt = rebuild_it(&host, "aa").unwrap();
        assert!(!rebuilt.reason.contains("differ"), "{}", rebuilt.reason);
        let list = |archive: &Path| {
            let out =
                std::process::Command::new("/usr/bin/dpkg-deb").arg("-c").arg(archive).output().unwrap();
            let mut lines: Vec<String> = String::from_utf8_lossy(&out.stdout)
                .lines()
                .map(|line| {
                    let words: Vec<&str> = line.split_whitespace().collect();
                    format!("{} {} {}", words[0], words[1], words[5..].join(" "))
                })
                .collect();
            lines.sort();
            lines
        };
        assert_eq!(list(&original), list(&rebuilt.archive));
        let (a, b) = (deb::control(&original).unwrap(), deb::control(&rebuilt.archive).unwrap());
        assert_eq!(a, b);
        let field = |archive: &Path| {
            let out =
                std::process::Command::new("/usr/bin/dpkg-deb").arg("-f").arg(archive).output().unwrap();
            let mut lines: Vec<String> =
                String::from_utf8(out.stdout).unwrap().lines().map(str::to_owned).collect();
            lines.sort();
            lines
        };
        assert_eq!(field(&original), field(&rebuilt.archive));
        host.install(&rebuilt.archive);
    }

    #[test]
    fn a_diverted_file_is_packed_from_where_it_lies() {
        let host = Host::new();
        let files = [("usr/bin/tool", "of aa")];
        host.install(&host.deb("aa", "1", &Package { files: &files, ..Package::default() }));
        let bin = host.root.join("usr/bin");
        fs::rename(bin.join("tool"), bin.join("tool.distrib")).unwrap();
        fs::write(bin.join("tool"), "of bb").unwrap();
        fs::write(host.root.join("var/lib/dpkg/diversions"), "/usr/bin/tool\n/usr/bin/tool.distrib\nbb\n")
            .unwrap();
        let rebuilt = rebuild_it(&host, "aa").unwrap();
        assert!(!rebuilt.reason.contains("differ"), "{}", rebuilt.reason);
        let sums = deb::data_sums(&rebuilt.archive).unwrap();
        assert_eq!(sums, BTreeSet::from([(md5_of(&b"of aa"[..]).unwrap(), b"usr/bin/tool".to_vec())]));
    }

    #[test]
    fn changed_files_are_told_and_missing_ones_refused() {
        let host = Host::new();
        let files = conf("shipped");
        host.install(&host.deb("aa", "1", &Package { files: &files, ..Package::default() }));
        fs::write(host.root.join("usr/share/aa/x"), "patched by hand").unwrap();
        assert!(
            rebuild_it(&host, "aa").unwrap().reason.contains("differ from what it shipped: /usr/share/aa/x")
        );
        fs::remove_file(host.root.join("usr/share/aa/x")).unwrap();
        assert!(rebuild_it(&host, "aa").unwrap_err().contains("/usr/share/aa/x"));
        fs::remove_dir_all(host.root.join("usr/share/aa")).unwrap();
        assert!(rebuild_it(&host, "aa").unwrap_err().contains("missing"));
    }
    #[test]
    fn what_the_host_does_without_may_be_missing() {
        let host = Host::new();
        let files = [("usr/bin/aa", "x"), ("usr/share/doc/aa/copyright", "x"), ("opt/aa/extra/big", "x")];
        let archive = host.deb("aa", "1", &Package { files: &files, ..Package::default() });
        host.install(&archive);
        fs::remove_dir_all(host.root.join("usr/share/doc")).unwrap();
        assert!(rebuild_it(&host, "aa").unwrap().reason.contains("; 1 files that this host does without"));
        fs::remove_dir_all(host.root.join("opt/aa")).unwrap();
        assert!(rebuild_it(&host, "aa").unwrap_err().contains("missing"));
        fs::create_dir_all(host.root.join("etc/dpkg/dpkg.cfg.d")).unwrap();
        let rules = "path-exclude=/opt/*\npath-include=/opt/keep/*\npath-exclude /usr/share/doc/*\n";
        fs::write(host.root.join("etc/dpkg/dpkg.cfg.d/excludes"), rules).unwrap();
        let rebuilt = rebuild_it(&host, "aa").unwrap();
        assert!(rebuilt.reason.contains("; 2 files that"), "{}", rebuilt.reason);
        let empty = md5_of(&b""[..]).unwrap();
        let sums = deb::data_sums(&rebuilt.archive).unwrap();
        assert!(sums.contains(&(empty, b"opt/aa/extra/big".to_vec())), "{sums:?}");
    }

    #[test]
    fn a_package_of_nothing_but_documentation_does_not_disappear() {
        let host = Host::new();
        for name in ["aa", "bb"] {
            let path = format!("usr/share/doc/{name}/copyright");
            let files = [(path.as_str(), "x")];
            host.install(&host.deb(name, "1", &Package { files: &files, ..Package::default() }));
        }
        fs::remove_dir_all(host.root.join("usr/share/doc")).unwrap();
        for name in ["aa", "bb"] {
            host.install(&rebuild_it(&host, name).unwrap().archive);
        }
        let database = Database::read(&host.root).unwrap();
        assert!(["aa", "bb"].iter().all(|name| database.named(name).all(Installed::is_present)));
        assert_eq!(database.len(), 2);
    }

    #[test]
    fn the_last_pattern_that_fits_decides() {
        let rules =
            Filter::parse(b"path-exclude=/a/*\npath-include=/a/*/c?p\n# path-exclude=/x\nno-debsig\n");
        let filter = Filter { rules };
        assert!(filter.excludes(b"/a/b/x") && !filter.excludes(b"/a/b/d/cop") && !filter.excludes(b"/x"));
        assert!(fits(b"*/man*", b"/usr/share/man/x") && fits(b"/a*", b"/a") && !fits(b"/a?", b"/a"));
        assert!(!fits(b"/a/[b]", b"/a/b"));
    }

    proptest! {
        #[test]
        fn no_pattern_panics(pattern in prop::collection::vec(any::<u8>(), 0..30), text in "[a-c/]{0,40}") {
            let _ = fits(&pattern, text.as_bytes());
            let _ = Filter::parse(&pattern);
        }
    }
}
