//! Configuration files: bytes, owner, mode, attributes, links and absence as they were, unless the administrator edited
//! them since.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use md5::{Digest as _, Md5};
use rustix::fs::{OFlags, XattrFlags};

use super::{GoBackError, Going, Now, was_present};
use crate::apt::{
    snapshot::{Affected, Conffile, Content},
    stage::Stage,
};

/// Behind the path of a file that was edited since the change: what was there before it.
const BESIDE: &str = ".linux-patch-before";

/// Behind the path of a file while it is written.
const DRAFT: &str = ".linux-patch-new";

/// Permission bits.
const MODE: u32 = 0o7777;

/// How a configuration file compares.
pub(super) enum Verdict {
    /// As it was.
    Same,
    /// Edited since the change, which is respected.
    Edited,
    /// Not as it was: how, as the rest of a sentence.
    Differs(String),
}

fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// A regular file, opened without following a link or waiting for a pipe's other end.
fn open(path: &Path, follow: bool) -> io::Result<File> {
    let mut flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    if !follow {
        flags |= OFlags::NOFOLLOW;
    }
    let file = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

fn md5_of(mut file: File) -> io::Result<String> {
    let mut hash = Md5::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex::encode(hash.finalize())),
            n => hash.update(buffer.get(..n).unwrap_or_default()),
        }
    }
}

/// The MD5 of what dpkg would look at: it follows links. None if there is nothing.
fn md5_now(path: &Path) -> io::Result<Option<String>> {
    match open(path, true).and_then(md5_of) {
        Ok(md5) => Ok(Some(md5)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether somebody edited the file since the change ended.
///
/// Told from what is there now, so that it is told alike when an attempt is repeated: what neither the change left, nor
/// was there before, nor comes with the old package, is somebody's work. So is a file that is gone.
fn is_edited(going: &Going<'_>, conffile: &Conffile) -> bool {
    let Some(left) = going.after.and_then(|after| after.conffiles.get(&conffile.path)) else { return false };
    let Ok(now) = md5_now(&going.below(&conffile.path)) else { return false };
    let before = conffile.content.as_ref().map(|c| &c.md5);
    now.as_ref() != left.as_ref()
        && now.as_ref() != before
        && (now.is_none() || now.as_ref() != conffile.recorded_md5.as_ref())
}

fn xattrs(file: &File) -> io::Result<BTreeMap<String, String>> {
    let mut names = vec![0; 64 * 1024];
    let length = match rustix::fs::flistxattr(file, &mut names[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::NOTSUP) => 0,
        Err(errno) => return Err(errno.into()),
    };
    let mut found = BTreeMap::new();
    for name in names.get(..length).unwrap_or_default().split(|b| *b == 0).filter(|n| !n.is_empty()) {
        let mut value = vec![0; 64 * 1024];
        let length = rustix::fs::fgetxattr(file, name, &mut value[..])?;
        let value = value.get(..length).unwrap_or_default();
        found.insert(String::from_utf8_lossy(name).into_owned(), hex::encode(value));
    }
    Ok(found)
}

/// How the file on disk differs from what was recorded; none if it does not.
fn differs(path: &Path, content: &Content) -> io::Result<Option<String>> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(Some("is gone".to_owned())) };
    if let Some(link) = &content.link {
        let same = metadata.is_symlink() && fs::read_link(path)? == Path::new(link);
        return Ok((!same).then(|| format!("is no longer a link to {link}")));
    }
    if !metadata.is_file() {
        return Ok(Some("is no longer a file".to_owned()));
    }
    let owner = (metadata.uid(), metadata.gid());
    if owner != (content.uid, content.gid) {
        return Ok(Some(format!(
            "belongs to {}:{} and did to {}:{}",
            owner.0, owner.1, content.uid, content.gid
        )));
    }
    if metadata.mode() & MODE != content.mode & MODE {
        return Ok(Some(format!("has mode {:o} and had {:o}", metadata.mode() & MODE, content.mode & MODE)));
    }
    let file = open(path, false)?;
    if xattrs(&file)? != content.xattrs {
        return Ok(Some("has other extended attributes".to_owned()));
    }
    let same = md5_of(file)?.eq_ignore_ascii_case(&content.md5);
    Ok((!same).then(|| "has another content".to_owned()))
}

pub(super) fn difference(going: &Going<'_>, conffile: &Conffile) -> Verdict {
    if is_edited(going, conffile) {
        return Verdict::Edited;
    }
    let path = going.below(&conffile.path);
    match &conffile.content {
        None if fs::symlink_metadata(&path).is_ok() => {
            Verdict::Differs("was deleted before and is there".to_owned())
        }
        None => Verdict::Same,
        Some(content) => match differs(&path, content) {
            Ok(None) => Verdict::Same,
            Ok(Some(how)) => Verdict::Differs(how),
            Err(error) => Verdict::Differs(format!("cannot be compared: {error}")),
        },
    }
}

/// Puts the recorded file at `path`, in one step.
fn put(going: &Going<'_>, path: &Path, content: &Content) -> io::Result<()> {
    let draft = beside(path, DRAFT);
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let directory = path.parent().unwrap_or(Path::new("/"));
    let made = (|| {
        if let Some(link) = &content.link {
            std::os::unix::fs::symlink(link, &draft)?;
            std::os::unix::fs::lchown(&draft, Some(content.uid), Some(content.gid))?;
        } else {
            let copy = content.copy.as_deref().ok_or(io::ErrorKind::NotFound)?;
            // The name comes from a file; it names nothing outside of the directory.
            let copy = super::below(going.copies, Path::new(copy));
            let mut from = open(&copy, false)?;
            let mut to = File::options().write(true).create_new(true).mode(0o600).open(&draft)?;
            io::copy(&mut from, &mut to)?;
            let is = md5_of(open(&draft, false)?)?;
            if !is.eq_ignore_ascii_case(&content.md5) {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("its copy {} is not what was recorded", copy.display()),
                ));
            }
            std::os::unix::fs::fchown(&to, Some(content.uid), Some(content.gid))?;
            let present = xattrs(&to)?;
            for name in present.keys().filter(|name| !content.xattrs.contains_key(*name)) {
                rustix::fs::fremovexattr(&to, name.as_str())?;
            }
            for (name, value) in content.xattrs.iter().filter(|(name, v)| present.get(*name) != Some(*v)) {
                let value = hex::decode(value).map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e))?;
                rustix::fs::fsetxattr(&to, name.as_str(), &value, XattrFlags::empty())?;
            }
            // Last: changing the owner clears bits, and an access list among the attributes sets some.
            to.set_permissions(fs::Permissions::from_mode(content.mode & MODE))?;
            to.sync_all()?;
        }
        fs::rename(&draft, path)?;
        File::open(directory)?.sync_all()
    })();
    if made.is_err() {
        // What is half-written is no use to anybody; the error is what counts.
        let _ = fs::remove_file(&draft);
    }
    made
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// What dpkg put beside the file and was not there before.
fn tidy(going: &Going<'_>, conffile: &Conffile) -> io::Result<()> {
    let path = going.below(&conffile.path);
    for suffix in [".dpkg-dist", ".dpkg-old", ".dpkg-new"] {
        let sibling = beside(&path, suffix);
        let name = format!("{}{suffix}", conffile.path);
        if conffile.siblings.iter().any(|s| *s == name || name.ends_with(&format!("/{s}")) || s == suffix) {
            continue;
        }
        // dpkg puts away the administrator's file under this one when it is told to take the package's: an edit since
        // the change could be in it.
        if suffix == ".dpkg-old" && going.after.is_some() {
            let Ok(Some(md5)) = md5_now(&sibling) else { continue };
            let left = going.after.and_then(|after| after.conffiles.get(&conffile.path)).cloned().flatten();
            let before = conffile.content.as_ref().map(|c| c.md5.clone());
            if ![left, before, conffile.recorded_md5.clone()].contains(&Some(md5)) {
                continue;
            }
        }
        remove(&sibling)?;
    }
    Ok(())
}

fn one(going: &Going<'_>, conffile: &Conffile) -> io::Result<()> {
    let path = going.below(&conffile.path);
    match difference(going, conffile) {
        Verdict::Same => {}
        Verdict::Edited => {
            if let Some(content) = conffile.content.as_ref().filter(|c| c.copy.is_some()) {
                let before = beside(&path, BESIDE);
                if differs(&before, content)?.is_some() {
                    put(going, &before, content)?;
                }
            }
        }
        Verdict::Differs(_) => match &conffile.content {
            None => remove(&path)?,
            Some(content) => put(going, &path, content)?,
        },
    }
    tidy(going, conffile)
}

fn all(going: &Going<'_>, affected: &Affected, stage: &mut dyn Stage) -> Result<(), GoBackError> {
    for conffile in &affected.conffiles {
        match one(going, conffile) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOSPC.raw_os_error()) => {
                return Err(GoBackError::NoSpace { path: going.below(&conffile.path) });
            }
            // The proof will say that it differs; this says why.
            Err(error) => stage.say(format!("{} could not be put back: {error}", conffile.path)),
        }
    }
    Ok(())
}

/// Puts the configuration files of the scope back. A neighbour's only where it is gone: purging a new package that had
/// taken it over deletes it.
pub(super) fn restore(going: &Going<'_>, stage: &mut dyn Stage) -> Result<(), GoBackError> {
    let now = Now::read(going.root)?;
    for affected in going.targets() {
        let Some(recorded) = going.recorded(&affected.key) else { continue };
        // Those of a package that is not back are the other version's now.
        let back = now.find(&affected.key).is_some_and(|p| p.version_text() == recorded.version);
        if back || !was_present(recorded) {
            all(going, affected, stage)?;
        }
    }
    for affected in going.neighbours() {
        let gone = affected.conffiles.iter().filter(|c| {
            c.content.is_some() && fs::symlink_metadata(going.below(&c.path)).is_err() && !is_edited(going, c)
        });
        if going.recorded(&affected.key).is_some_and(was_present) {
            let conffiles: Vec<Conffile> = gone.cloned().collect();
            all(going, &Affected { conffiles, ..affected.clone() }, stage)?;
        }
    }
    Ok(())
}
