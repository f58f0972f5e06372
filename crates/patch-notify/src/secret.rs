//! Passwords and secrets: from files of root's alone, or from systemd's credentials.

use std::{
    fs::{File, OpenOptions},
    io::Read,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use patch_types::notifications::is_credential;
use zeroize::Zeroizing;

use crate::error::{NotifyError, Reason};

/// The longest secret, in bytes.
const MOST: u64 = 4096;

/// Where secrets are found.
#[derive(Debug, Clone, Default)]
pub struct Secrets {
    credentials: Option<PathBuf>,
}

impl Secrets {
    /// As systemd says in the environment of a service, in `CREDENTIALS_DIRECTORY`.
    #[must_use]
    pub fn of_environment() -> Self {
        Self { credentials: std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from) }
    }

    /// With credentials in a directory.
    #[must_use]
    pub fn in_directory(directory: &Path) -> Self {
        Self { credentials: Some(directory.to_owned()) }
    }

    /// The secret in a file or a credential; none if neither is named.
    pub(crate) fn read(
        &self,
        what: &str,
        file: Option<&Path>,
        credential: Option<&str>,
    ) -> Result<Option<Zeroizing<String>>, NotifyError> {
        match (file, credential) {
            (Some(path), _) => secret_file(what, path).map(Some),
            (None, Some(name)) => self.credential(what, name).map(Some),
            (None, None) => Ok(None),
        }
    }

    fn credential(&self, what: &str, name: &str) -> Result<Zeroizing<String>, NotifyError> {
        let no_such = |problem: String| {
            // What stands there may be the secret itself, so it is not repeated.
            let advice = "give it to the service, such as by LoadCredential=NAME:/etc/linux_patch_api/FILE";
            NotifyError::new(
                Reason::Secret,
                format!("the credential that {what}_credential names cannot be read: {problem}"),
                advice,
            )
        };
        let directory = self.credentials.as_ref().filter(|directory| directory.is_absolute());
        let Some(directory) = directory.filter(|_| is_credential(name)) else {
            return Err(no_such("this program was started without credentials".to_owned()));
        };
        let file = open(&directory.join(name)).map_err(|error| no_such(error.to_string()))?;
        text(what, file).map_err(no_such)
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    // A named pipe would be waited for, and a link may be somebody else's.
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOFOLLOW;
    OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)
}

fn secret_file(what: &str, path: &Path) -> Result<Zeroizing<String>, NotifyError> {
    // What stands there may be the secret itself, so it is not repeated.
    let refused = |problem: String, advice: String| {
        let message = format!("the file that {what}_file names is not used: {problem}");
        NotifyError::new(Reason::Secret, message, advice)
    };
    let file = open(path).map_err(|error| {
        refused(error.to_string(), format!("write the {what} into it, as root: (umask 077; cat >FILE)"))
    })?;
    let meta =
        file.metadata().map_err(|error| refused(error.to_string(), "look at it as root".to_owned()))?;
    let me = rustix::process::geteuid().as_raw();
    if !meta.is_file() {
        return Err(refused("it is not a file".to_owned(), "replace it by one".to_owned()));
    }
    if meta.uid() != 0 && meta.uid() != me {
        return Err(refused("it belongs to somebody else than root".to_owned(), "chown root it".to_owned()));
    }
    if meta.mode() & 0o077 != 0 {
        let problem = format!("others than its owner may read it (mode {:o})", meta.mode() & 0o7777);
        return Err(refused(problem, format!("chmod 600 it, and change the {what}: it was readable")));
    }
    text(what, file)
        .map_err(|problem| refused(problem, format!("write the {what} into it, and nothing else")))
}

/// The one line of a file.
fn text(what: &str, file: File) -> Result<Zeroizing<String>, String> {
    let mut text = Zeroizing::new(String::new());
    let read = file.take(MOST + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
    if read as u64 > MOST {
        return Err(format!("it is longer than {MOST} bytes"));
    }
    let line = text.strip_suffix('\n').unwrap_or(&text);
    let line = line.strip_suffix('\r').unwrap_or(line);
    if line.is_empty() {
        return Err("it is empty".to_owned());
    }
    if line.chars().any(char::is_control) {
        return Err(format!("it has more than one line, or characters that no {what} has"));
    }
    Ok(Zeroizing::new(line.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, Permissions},
        os::unix::fs::{PermissionsExt, symlink},
    };

    use super::*;

    #[test]
    fn only_what_is_roots_alone_is_used() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("p");
        let read = || Secrets::default().read("password", Some(&path), None);
        let error = read().unwrap_err().to_string();
        assert!(error.contains("umask 077") && error.contains("password_file"), "{error}");
        assert!(!error.contains(path.to_str().unwrap()), "it may be the secret itself: {error}");
        fs::write(&path, "s3cret\n").unwrap();
        for (mode, words) in [(0o644, "chmod 600"), (0o640, "chmod 600"), (0o604, "chmod 600")] {
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            let error = read().unwrap_err();
            assert_eq!(error.reason, Reason::Secret);
            assert!(error.to_string().contains(words) && !error.to_string().contains("s3cret"), "{error}");
        }
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert_eq!(read().unwrap().unwrap().as_str(), "s3cret");
        for (text, words) in
            [("", "empty"), ("\n", "empty"), ("a\nb\n", "more than one line"), ("a\0", "no password has")]
        {
            fs::write(&path, text).unwrap();
            assert!(read().unwrap_err().to_string().contains(words), "{text:?}");
        }
        fs::write(&path, "x".repeat(5000)).unwrap();
        assert!(read().unwrap_err().to_string().contains("longer"));
        if rustix::process::geteuid().is_root() {
            fs::write(&path, "s3cret").unwrap();
            std::os::unix::fs::chown(&path, Some(1), None).unwrap();
            assert!(read().unwrap_err().to_string().contains("chown root"));
        }
        fs::rename(&path, dir.path().join("other")).unwrap();
        symlink(dir.path().join("other"), &path).unwrap();
        assert_eq!(read().unwrap_err().reason, Reason::Secret, "a link is not followed");
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(read().is_err());
    }

    #[test]
    fn credentials_are_read_by_name() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("smtp"), "s3cret").unwrap();
        let secrets = Secrets::in_directory(dir.path());
        let read = |name: &str| secrets.read("password", None, Some(name));
        assert_eq!(read("smtp").unwrap().unwrap().as_str(), "s3cret");
        assert!(read("none").unwrap_err().to_string().contains("LoadCredential="));
        for name in ["../s3cret", "s3cret"] {
            let error = read(name).unwrap_err().to_string();
            assert!(error.contains("password_credential") && !error.contains("s3cret"), "{error}");
        }
        assert!(Secrets::default().read("password", None, Some("smtp")).is_err());
        assert!(secrets.read("password", None, None).unwrap().is_none());
    }
}
