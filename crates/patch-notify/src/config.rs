//! `notifications:` of `config.yaml`, for programs that take nothing else from it.

use std::{
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::Path,
};

use patch_types::notifications::Notifications;
use serde::Deserialize;
use serde_saphyr::options::MergeKeyPolicy;

use crate::error::{NotifyError, Reason};

/// The file, below the root.
pub const CONFIG: &str = "etc/linux_patch_api/config.yaml";

/// The most that it may hold, in bytes.
const MOST: u64 = 1 << 20;

/// The section that counts here; others are passed over.
#[derive(Debug, Deserialize)]
struct Sections {
    notifications: Option<Notifications>,
}

/// Who is told, by the file below a root. An absent file or section means nobody.
///
/// # Errors
/// When the file cannot be read, others than root may write it, or it says something that is not acceptable.
pub fn load(root: &Path) -> Result<Notifications, NotifyError> {
    let path = root.join(CONFIG);
    let file = match patch_files::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Notifications::default()),
        Err(error) => return Err(refused(&path, &format!("it cannot be read: {error}"))),
    };
    let meta = file.metadata().map_err(|error| refused(&path, &error.to_string()))?;
    let me = rustix::process::geteuid().as_raw();
    if (meta.uid() != 0 && meta.uid() != me) || meta.mode() & 0o022 != 0 {
        return Err(refused(
            &path,
            "it is not a file that root alone may write: chown root it, and chmod go-w it",
        ));
    }
    let mut text = String::new();
    file.take(MOST).read_to_string(&mut text).map_err(|error| refused(&path, &error.to_string()))?;
    parse(&text, &path)
}

fn parse(text: &str, path: &Path) -> Result<Notifications, NotifyError> {
    let says_nothing =
        text.lines().map(str::trim).all(|line| line.is_empty() || line.starts_with('#') || line == "---");
    if says_nothing {
        return Ok(Notifications::default());
    }
    let options = serde_saphyr::options! {
        merge_keys: MergeKeyPolicy::Error,
        reject_unsupported_tags: true,
        strict_booleans: true,
    };
    let sections: Sections = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let error = error.without_snippet();
        let line = error.location().map(|at| format!("line {}: ", at.line())).unwrap_or_default();
        let said = error.to_string();
        let first = said.lines().next().unwrap_or_default();
        refused(path, &format!("{line}{}", first.split(" at line ").next().unwrap_or(first)))
    })?;
    let settings = sections.notifications.unwrap_or_default();
    let problems: Vec<String> =
        settings.problems().into_iter().map(|(key, problem)| format!("{key}: {problem}")).collect();
    if problems.is_empty() { Ok(settings) } else { Err(refused(path, &problems.join("; "))) }
}

fn refused(path: &Path, problem: &str) -> NotifyError {
    NotifyError::new(
        Reason::Settings,
        format!("{} is not acceptable: {problem}", path.display()),
        "correct it; `linux-patch-api check-config` says whether it is",
    )
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn the_section_is_read_and_the_rest_passed_over() {
        let path = Path::new("c.yaml");
        let sample = include_str!("../../../packaging/config/config.yaml");
        assert!(parse(sample, path).unwrap().is_empty());
        assert!(parse("# nothing\n", path).unwrap().is_empty());
        let text = "server: {port: 1}\nnotifications:\n  digest_minutes: 30\n  mail:\n    preset: m365\n    from: a@b.example\n    \
            to: [c@d.example]\n    password_file: /etc/linux_patch_api/mail.password\n    report: on-change\n  webhooks:\n    \
            - https://h.example/x\n    - {url: \"https://i.example/\", secret_credential: hook}\n";
        let settings = parse(text, path).unwrap();
        assert_eq!((settings.webhooks.len(), settings.digest_minutes), (2, 30));
        assert_eq!(settings.webhooks[1].secret_credential.as_deref(), Some("hook"));
        assert_eq!(settings.mail.unwrap().server(), "smtp.office365.com");
        for (text, words) in [
            (
                "notifications:\n  mail: {preset: m365, from: a@b, to: [c@d], password: s3cret}\n",
                "password_file",
            ),
            ("notifications:\n  mail: {preset: s3cret, from: a@b, to: [c@d]}\n", "sendgrid"),
            ("notifications: {webhooks: [\"http://far.example/s3cret\"]}\n", "webhooks[0]"),
            ("notifications: [\n", "c.yaml"),
        ] {
            let error = parse(text, path).unwrap_err().to_string();
            assert!(error.contains(words) && !error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn a_file_that_others_may_write_is_refused() {
        let root = tempfile::tempdir().unwrap();
        assert!(load(root.path()).unwrap().is_empty(), "absent");
        let path = root.path().join(CONFIG);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "notifications: {digest_minutes: 5}\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert_eq!(load(root.path()).unwrap().digest_minutes, 5);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
        assert!(load(root.path()).unwrap_err().to_string().contains("chmod go-w"));
        fs::remove_file(&path).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).unwrap();
        assert!(load(root.path()).unwrap_err().to_string().contains("named pipe"), "nobody waits for it");
    }
}
