//! What was seen, on disk: one file, written new, synced and renamed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use patch_types::compliance::{FORMAT, MAX_STORE, Observations, STORE};

/// What was seen before; nothing if this is the first time. What is damaged is set aside, and a sentence says so: it is no
/// reason not to look.
///
/// # Errors
/// When it cannot be read now: it may be another time, and must not be overwritten meanwhile.
pub(super) fn load(root: &Path) -> io::Result<(Observations, Option<String>)> {
    let path = root.join(STORE);
    match read(&path) {
        Ok(observations) => Ok((observations, None)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((Observations::default(), None)),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            let aside = PathBuf::from(format!("{}.corrupt", path.display()));
            let kept = match fs::rename(&path, &aside) {
                Ok(()) => format!("kept as {}", aside.display()),
                Err(error) => format!("it cannot be set aside: {error}"),
            };
            tracing::error!(%error, "{} cannot be used, so when fixes were first seen is lost; {kept}", path.display());
            let lost = format!(
                "when fixes were first seen, before the agent was started: {} could not be used ({error}); {kept}",
                path.display()
            );
            Ok((Observations::default(), Some(lost)))
        }
        Err(error) => Err(error),
    }
}

fn read(path: &Path) -> io::Result<Observations> {
    let mut text = Vec::new();
    File::open(path)?.take(MAX_STORE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_STORE {
        return Err(damaged(format!("it is larger than {MAX_STORE} bytes")));
    }
    let observations: Observations =
        serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    if observations.format != FORMAT {
        return Err(damaged(format!("it is of the unknown format {}", observations.format)));
    }
    Ok(observations)
}

fn damaged(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Puts it on disk. When this returns it will survive a loss of power.
pub(super) fn save(root: &Path, observations: &Observations) -> io::Result<()> {
    let path = root.join(STORE);
    let new = path.with_extension("json.new");
    let write = || {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        file.write_all(&serde_json::to_vec(observations)?)?;
        file.sync_all()?;
        fs::rename(&new, &path)
    };
    write().inspect_err(|_| {
        // On a full disk this gives back what the attempt took.
        let _ = fs::remove_file(&new);
    })?;
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}
