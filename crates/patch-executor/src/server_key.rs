//! Hands the server's private key to the daemon, which serves with it and may not read its file.
//!
//! The daemon names no path: the file is the one that root's own configuration names. It is opened step by step from the
//! root, and only what nobody but root can have put there is followed or read, so that whoever asks can be given no other
//! file than root meant. The key is written nowhere, and wiped when it is sent.

use std::{
    collections::VecDeque,
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read as _, Write},
    os::{fd::OwnedFd, unix::ffi::OsStringExt as _},
    path::{Component, Path},
};

use patch_types::{ErrorCode, ErrorDetail, executor::MAX_KEY};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat, statat};
use zeroize::Zeroizing;

use crate::settings::Settings;

/// How many symbolic links are followed.
const MAX_LINKS: u32 = 16;

/// The key's PEM text.
///
/// # Errors
/// `CONFIG_INVALID` when the file cannot be read, is not root's alone to write, or holds no private key.
pub(crate) fn read(root: &Path) -> Result<Zeroizing<Vec<u8>>, ErrorDetail> {
    let path = Settings::load(root)?.server_key;
    read_at(root, &path, nix::unistd::geteuid().as_raw()).map_err(|problem| {
        ErrorDetail::new(
            ErrorCode::ConfigInvalid,
            format!("the server's key {} is not handed over: {problem}", path.display()),
        )
    })
}

/// Sends it as a frame.
///
/// # Errors
/// Those of writing.
pub(crate) fn send(socket: &mut impl Write, key: &[u8]) -> io::Result<()> {
    let length = u32::try_from(key.len()).map_err(io::Error::other)?;
    socket.write_all(&length.to_be_bytes())?;
    socket.write_all(key)
}

fn read_at(root: &Path, path: &Path, me: u32) -> Result<Zeroizing<Vec<u8>>, String> {
    let mut file = open(root, path, me)?;
    // Of its full size from the start: what grows leaves copies behind.
    let mut buffer = Zeroizing::new(vec![0; MAX_KEY + 1]);
    let mut length = 0;
    loop {
        let room = buffer.get_mut(length..).unwrap_or_default();
        match file.read(room) {
            Ok(0) => break,
            Ok(read) => length += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(format!("it cannot be read: {error}")),
        }
    }
    if length > MAX_KEY {
        return Err(format!("it is longer than {} KiB", MAX_KEY >> 10));
    }
    let key = buffer.get(..length).unwrap_or_default();
    // Whatever the configuration names by mistake, nothing but a key leaves.
    let is_key = key
        .split(|b| *b == b'\n')
        .any(|line| line.starts_with(b"-----BEGIN ") && line.trim_ascii_end().ends_with(b"PRIVATE KEY-----"));
    if is_key { Ok(Zeroizing::new(key.to_vec())) } else { Err("it holds no private key in PEM".to_owned()) }
}

/// Opens a file below `root`, where each directory and link on the way is root's alone to change.
fn open(root: &Path, path: &Path, me: u32) -> Result<File, String> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| format!("{} cannot be opened: {error}", root.display()))?;
    let mut above: Vec<OwnedFd> = Vec::new();
    let mut rest = steps(path);
    let mut links = 0;
    while let Some(step) = rest.pop_front() {
        if step == ".." {
            above.pop();
            continue;
        }
        let here = above.last().unwrap_or(&top);
        let told = |error| format!("{} cannot be examined: {error}", step.display());
        let stat = statat(here, &step, AtFlags::SYMLINK_NOFOLLOW).map_err(told)?;
        trusted(&stat, me).map_err(|problem| format!("{} {problem}", step.display()))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                links += 1;
                if links > MAX_LINKS {
                    return Err("too many symbolic links lead to it".to_owned());
                }
                let target = readlinkat(here, &step, Vec::new()).map_err(told)?;
                let target = OsString::from_vec(target.into_bytes());
                if Path::new(&target).is_absolute() {
                    above.clear();
                }
                let mut next = steps(Path::new(&target));
                next.append(&mut rest);
                rest = next;
            }
            FileType::Directory => {
                let next = openat(here, &step, directory, Mode::empty()).map_err(told)?;
                above.push(next);
            }
            FileType::RegularFile if rest.is_empty() => {
                // Not blocking, in case it became a pipe meanwhile.
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file = openat(here, &step, flags, Mode::empty()).map_err(told)?;
                let stat = fstat(&file).map_err(told)?;
                trusted(&stat, me).map_err(|problem| format!("{} {problem}", step.display()))?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                    break;
                }
                return Ok(File::from(file));
            }
            _ => break,
        }
    }
    Err("it is not a regular file".to_owned())
}

fn steps(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsStr::new("..").to_owned()),
            _ => None,
        })
        .collect()
}

/// Whether only root, which is `me`, can have put it there. The mode of a link says nothing.
fn trusted(stat: &Stat, me: u32) -> Result<(), &'static str> {
    let is_link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
    if stat.st_uid != 0 && stat.st_uid != me {
        Err("belongs to somebody else than root; chown root it")
    } else if !is_link && stat.st_mode & 0o022 != 0 {
        Err("may be changed by others than root; chmod go-w it")
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::{PermissionsExt as _, symlink},
    };

    use super::*;

    const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----\n";
    const USUAL: &str = "etc/linux_patch_api/certs/server.key.pem";

    fn root() -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc/linux_patch_api/certs")).unwrap();
        // Whatever the umask of whoever runs this.
        for dir in ["etc", "etc/linux_patch_api", "etc/linux_patch_api/certs"] {
            mode(&root.path().join(dir), 0o755);
        }
        put(&root.path().join(USUAL), KEY);
        root
    }

    fn put(path: &Path, text: &str) {
        fs::write(path, text).unwrap();
        mode(path, 0o600);
    }

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    fn refused(root: &Path) -> String {
        let error = read(root).expect_err("it was handed over");
        assert_eq!(error.code, ErrorCode::ConfigInvalid);
        assert!(!error.message.contains("MIGH"), "{error}");
        error.message
    }

    #[test]
    fn the_configured_file_is_handed_over_and_no_other() {
        let root = root();
        assert_eq!(read(root.path()).unwrap().as_slice(), KEY.as_bytes());
        let config = root.path().join("etc/linux_patch_api/config.yaml");
        put(&config, "tls: {server_key: /etc/other.pem}\n");
        assert!(refused(root.path()).contains("/etc/other.pem"));
        put(&root.path().join("etc/other.pem"), &KEY.replace("PRIVATE", "EC PRIVATE"));
        assert!(read(root.path()).is_ok());
        put(&root.path().join("etc/other.pem"), "root:$6$secret:19000:0:99999:7:::\n");
        assert!(refused(root.path()).contains("no private key"));
        put(&root.path().join("etc/other.pem"), &format!("{KEY}{}", "#".repeat(MAX_KEY)));
        assert!(refused(root.path()).contains("64 KiB"));
        mode(&config, 0o666);
        assert!(refused(root.path()).contains("config.yaml"));
    }

    #[test]
    fn links_are_followed_where_root_alone_can_set_them() {
        let root = root();
        let key = root.path().join(USUAL);
        let archive = root.path().join("etc/archive");
        fs::create_dir(&archive).unwrap();
        mode(&archive, 0o755);
        put(&archive.join("key3.pem"), KEY);
        for target in
            ["../../archive/key3.pem", "/etc/archive/key3.pem", "../../../../../../etc/archive/key3.pem"]
        {
            fs::remove_file(&key).unwrap();
            symlink(target, &key).unwrap();
            assert!(read(root.path()).is_ok(), "{target}");
        }
        mode(&archive, 0o777);
        assert!(refused(root.path()).contains("archive may be changed by others"));
        mode(&archive, 0o755);
        mode(&archive.join("key3.pem"), 0o620);
        assert!(refused(root.path()).contains("chmod go-w"));
        fs::remove_file(&key).unwrap();
        symlink("server.key.pem", &key).unwrap();
        assert!(refused(root.path()).contains("too many"));
        fs::remove_file(&key).unwrap();
        symlink("nowhere", &key).unwrap();
        assert!(refused(root.path()).contains("cannot be examined"));
    }

    #[test]
    fn what_is_no_file_of_roots_is_refused() {
        let root = root();
        let key = root.path().join(USUAL);
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(&key, Some(1), None).unwrap();
            assert!(refused(root.path()).contains("chown root"));
        }
        fs::remove_file(&key).unwrap();
        fs::create_dir(&key).unwrap();
        mode(&key, 0o755);
        assert!(refused(root.path()).contains("not a regular file"));
        fs::remove_dir(&key).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &key, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        assert!(refused(root.path()).contains("not a regular file"), "a pipe would never end");
    }

    #[test]
    fn it_is_sent_as_one_frame() {
        let mut sent = Vec::new();
        send(&mut sent, b"key").unwrap();
        assert_eq!(sent, b"\0\0\0\x03key");
    }
}
