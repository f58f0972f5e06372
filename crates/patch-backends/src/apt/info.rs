//! What dpkg keeps beside its database, in `/var/lib/dpkg/info/`: file lists and maintainer scripts; and the
//! configuration files that the administrator has changed.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::{Path, PathBuf},
};

use std::os::unix::fs::OpenOptionsExt as _;

use md5::{Digest, Md5};
use memchr::memmem;
use patch_types::plan::ChangedConffile;

use super::status::Installed;
use crate::{ReadError, below};

/// dpkg's directory of files about packages, below the root.
pub const INFO: &str = "var/lib/dpkg/info";

/// The path of one of dpkg's files about a package, such as `list` or `postinst`.
#[must_use]
pub fn path(root: &Path, package: Installed<'_>, kind: &str) -> PathBuf {
    let qualifier =
        if package.multi_arch_same() { format!(":{}", package.architecture()) } else { String::new() };
    root.join(INFO).join(format!("{}{qualifier}.{kind}", package.name()))
}

fn read_lossy(path: &Path) -> Result<Option<String>, ReadError> {
    match fs::read(path) {
        Ok(text) => Ok(Some(String::from_utf8_lossy(&text).into_owned())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(ReadError::new(path, e)),
    }
}

/// The paths that a package installed, directories included, in the order of its archive. None for a package of which
/// dpkg keeps no list.
///
/// # Errors
/// When the list exists and cannot be read.
pub fn files(root: &Path, package: Installed<'_>) -> Result<Vec<String>, ReadError> {
    let list = read_lossy(&path(root, package, "list"))?.unwrap_or_default();
    Ok(list.lines().filter(|l| l.starts_with('/') && *l != "/.").map(str::to_owned).collect())
}

/// The systemd services that a package ships, by name, such as `ssh.service`. Templates (`x@.service`) are left out:
/// nothing runs under their own name.
#[must_use]
pub fn units(root: &Path, package: Installed<'_>) -> Vec<String> {
    let mut units: Vec<String> = files(root, package)
        .unwrap_or_default()
        .iter()
        .filter_map(|f| {
            let unit = f.strip_prefix("/usr").unwrap_or(f).strip_prefix("/lib/systemd/system/")?;
            (unit.ends_with(".service") && !unit.contains(['/', '@'])).then(|| unit.to_owned())
        })
        .collect();
    units.sort();
    units.dedup();
    units
}

/// Whether a package's change is known to ask for a reboot: it is a kernel, or its maintainer script says
/// `reboot-required` (the file by which Debian's and Ubuntu's packages ask for one).
#[must_use]
pub fn asks_for_reboot(root: &Path, package: Installed<'_>) -> bool {
    is_kernel(package.name())
        || fs::read(path(root, package, "postinst"))
            .is_ok_and(|script| memmem::find(&script, b"reboot-required").is_some())
}

/// Whether the name is that of a package with a kernel in it: `linux-image-` and a version.
#[must_use]
pub fn is_kernel(name: &str) -> bool {
    kernel_release(name).is_some()
}

/// The release of the kernel in a package of that name (`6.1.0-28-amd64` for `linux-image-6.1.0-28-amd64`).
#[must_use]
pub fn kernel_release(name: &str) -> Option<&str> {
    let release = name.strip_prefix("linux-image-")?;
    let release = release.strip_prefix("unsigned-").unwrap_or(release);
    (release.starts_with(|c: char| c.is_ascii_digit())
        && !release.ends_with("-dbg")
        && !release.ends_with("-dbgsym"))
    .then_some(release)
}

/// The configuration files of a package that differ from what it shipped or have been deleted. Files that this process
/// may not read are left out, as are those that the package ships no longer.
#[must_use]
pub fn changed_conffiles(root: &Path, package: Installed<'_>) -> Vec<ChangedConffile> {
    let Some(name) = package.package_name() else { return Vec::new() };
    package
        .conffiles()
        .into_iter()
        .filter(|c| !c.obsolete && is_md5(&c.md5))
        .filter(|c| match md5_of(&below(root, &c.path)) {
            Ok(md5) => !md5.eq_ignore_ascii_case(&c.md5),
            Err(e) => e.kind() == io::ErrorKind::NotFound,
        })
        .map(|c| ChangedConffile { package: name.clone(), path: c.path })
        .collect()
}

/// dpkg writes `newconffile` for a file that it has not unpacked yet.
fn is_md5(text: &str) -> bool {
    text.len() == 32 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The largest configuration file that is compared, in bytes. A larger one counts as changed.
const MAX_CONFFILE: u64 = 64 * 1024 * 1024;

/// MD5 of a regular file in hexadecimal. It is dpkg's measure of "unchanged", not a proof of anything.
fn md5_of(path: &Path) -> io::Result<String> {
    // The directory may be another user's: opening a named pipe must not wait, and what is looked at must be what is
    // read.
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    let file = File::options().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    if metadata.len() > MAX_CONFFILE {
        return Ok("larger than is compared".to_owned());
    }
    let mut file = file.take(MAX_CONFFILE);
    let mut hash = Md5::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::apt::Database;

    /// MD5 of "shipped\n".
    const SHIPPED: &str = "fd3d1512c1f4af5f65da9313a20a3bbb";

    /// MD5 of as many zeros as are read at most.
    const ZEROS: &str = "7f614da9329cd3aebf59b91aadc30bf0";

    fn database(conffiles: &[(&str, &str)]) -> Database {
        let list: String = conffiles.iter().map(|(path, md5)| format!(" {path} {md5}\n")).collect();
        let text = format!(
            "Package: aa\nStatus: install ok installed\nArchitecture: all\nVersion: 1\nConffiles:\n{list}"
        );
        Database::parse(text.as_bytes())
    }

    #[test]
    fn configuration_is_changed_if_it_differs_or_is_gone() {
        let root = tempfile::tempdir().unwrap();
        let etc = root.path().join("etc");
        fs::create_dir_all(etc.join("directory")).unwrap();
        fs::write(etc.join("same"), "shipped\n").unwrap();
        fs::write(etc.join("edited"), "edited\n").unwrap();
        // Larger than is compared, whatever its beginning is; it takes no room.
        File::create(etc.join("large")).unwrap().set_len(MAX_CONFFILE + 1).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            etc.join("pipe"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        let database = database(&[
            ("/etc/same", SHIPPED),
            ("/etc/edited", SHIPPED),
            ("/etc/gone", SHIPPED),
            ("/etc/large", ZEROS),
            // What cannot be compared is not said to be changed.
            ("/etc/directory", SHIPPED),
            ("/etc/pipe", SHIPPED),
            ("/etc/new", "newconffile"),
            ("/etc/edited", &format!("{SHIPPED} obsolete")),
            ("/../../etc/edited", SHIPPED),
        ]);
        let package = database.find("aa", None).unwrap();
        let changed: Vec<String> =
            changed_conffiles(root.path(), package).into_iter().map(|file| file.path).collect();
        assert_eq!(changed, ["/etc/edited", "/etc/gone", "/etc/large", "/../../etc/edited"]);
    }

    #[test]
    fn a_list_that_cannot_be_read_is_not_an_empty_one() {
        let root = tempfile::tempdir().unwrap();
        let database = database(&[]);
        let package = database.find("aa", None).unwrap();
        assert!(files(root.path(), package).unwrap().is_empty(), "dpkg keeps none");
        let list = root.path().join(INFO).join("aa.list");
        fs::create_dir_all(&list).unwrap();
        assert_eq!(files(root.path(), package).unwrap_err().path, list);
        fs::remove_dir(&list).unwrap();
        fs::write(&list, "/.\n/usr\n/lib/systemd/system/b.service\n/usr/lib/systemd/system/a.service\n/lib/systemd/system/x@.service\n/usr/lib/systemd/system/a.service\n/lib/systemd/system/c.service.d/x.conf\n").unwrap();
        assert_eq!(files(root.path(), package).unwrap().len(), 6);
        assert_eq!(units(root.path(), package), ["a.service", "b.service"]);
    }
}
