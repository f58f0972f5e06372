//! The most that this host lets anybody do through the agent, whoever asks. It is root's file, which neither the daemon
//! nor a manager can change.
//!
//! Going back by itself after a failure and finishing what was left unfinished are not bound by it: they only bring a
//! host into order.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use patch_backends::apt::{Inventory, versions};
use patch_types::{Action, ErrorCode, ErrorDetail, Operation, Plan, PlannedChange, plan::Origin};
use serde::{Deserialize, Deserializer};
use serde_saphyr::options::MergeKeyPolicy;

/// The file, below the root.
pub(crate) const FILE: &str = "etc/linux_patch_api/ceiling.yaml";

/// The freeze file unless another one is named.
const FREEZE: &str = "/etc/linux_patch_api/freeze";

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// How much of a freeze file's text is told, in bytes.
const MAX_REASON: u64 = 500;

/// The kinds of operations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Install,
    Update,
    Remove,
    Hold,
    ApplyPatches,
    Refresh,
    Rollback,
    Reboot,
    ForcedReboot,
}

impl Kind {
    fn of(operation: &Operation) -> Self {
        match operation {
            Operation::Install(_) => Self::Install,
            Operation::Update(_) => Self::Update,
            Operation::Remove(_) => Self::Remove,
            Operation::Hold(_) => Self::Hold,
            Operation::ApplyPatches(_) => Self::ApplyPatches,
            Operation::Refresh => Self::Refresh,
            Operation::Rollback(_) => Self::Rollback,
            Operation::Reboot(reboot) if reboot.force => Self::ForcedReboot,
            Operation::Reboot(_) => Self::Reboot,
        }
    }
}

/// An archive that new versions may come from: each field that is given must be equal.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Fields")]
struct Allowed(Fields);

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Fields {
    origin: Option<String>,
    label: Option<String>,
    suite: Option<String>,
    codename: Option<String>,
    component: Option<String>,
    site: Option<String>,
}

impl Fields {
    fn pairs<'a>(&'a self, origin: &'a Origin) -> [(&'a Option<String>, &'a str); 6] {
        [
            (&self.origin, &origin.origin),
            (&self.label, &origin.label),
            (&self.suite, &origin.suite),
            (&self.codename, &origin.codename),
            (&self.component, &origin.component),
            (&self.site, &origin.site),
        ]
    }
}

impl TryFrom<Fields> for Allowed {
    type Error = &'static str;

    fn try_from(fields: Fields) -> Result<Self, Self::Error> {
        if fields == Fields::default() {
            return Err("an origin needs at least one of origin, label, suite, codename, component, site");
        }
        Ok(Self(fields))
    }
}

impl Allowed {
    fn admits(&self, origin: &Origin) -> bool {
        self.0.pairs(origin).into_iter().all(|(wanted, is)| wanted.as_ref().is_none_or(|wanted| wanted == is))
    }
}

/// A pattern for names of packages: `*` stands for any characters, `?` for one.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
struct Pattern(String);

impl TryFrom<String> for Pattern {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let known = |b: u8| {
            b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.' | b'*' | b'?')
        };
        if text.is_empty() || text.len() > 256 || !text.bytes().all(known) {
            return Err(
                "a pattern has lower-case letters, digits, '+', '-', '.', '*' and '?', and at least one",
            );
        }
        Ok(Self(text))
    }
}

impl Pattern {
    fn matches(&self, name: &str) -> bool {
        let (pattern, name) = (self.0.as_bytes(), name.as_bytes());
        let (mut p, mut n) = (0, 0);
        // Where to go on if what follows the last star does not fit.
        let mut retry: Option<(usize, usize)> = None;
        while n < name.len() {
            match pattern.get(p) {
                Some(b'*') => {
                    retry = Some((p + 1, n));
                    p += 1;
                }
                Some(b) if *b == b'?' || name.get(n) == Some(b) => {
                    p += 1;
                    n += 1;
                }
                _ => match retry {
                    Some((after, from)) => {
                        (p, n) = (after, from + 1);
                        retry = Some((after, n));
                    }
                    None => return false,
                },
            }
        }
        pattern.get(p..).unwrap_or_default().iter().all(|b| *b == b'*')
    }
}

/// An absolute path that does not climb.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
struct AbsolutePath(String);

impl TryFrom<String> for AbsolutePath {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if !text.starts_with('/') || text.contains('\0') || text.split('/').any(|part| part == "..") {
            return Err("a path must be absolute and without `..`");
        }
        Ok(Self(text))
    }
}

/// A key without a value limits to nothing rather than not at all.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Vec<T>>, D::Error> {
    Vec::deserialize(deserializer).map(Some)
}

/// What the file says.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Limits {
    #[serde(deserialize_with = "given")]
    operations: Option<Vec<Kind>>,
    #[serde(deserialize_with = "given")]
    origins: Option<Vec<Allowed>>,
    protected: Vec<Pattern>,
    freeze_file: Option<AbsolutePath>,
}

/// What may be done at most.
#[derive(Debug)]
pub(crate) struct Ceiling {
    root: PathBuf,
    limits: Limits,
}

impl Ceiling {
    /// Reads the file below a root. Without one there is no limit but the freeze file.
    ///
    /// # Errors
    /// When it cannot be relied upon: then nothing is to be changed.
    pub(crate) fn load(root: &Path) -> Result<Self, ErrorDetail> {
        let limits = match read(&root.join(FILE)) {
            Ok(None) => Limits::default(),
            Ok(Some(text)) => parse(&text).map_err(|why| invalid(&why))?,
            Err(why) => return Err(invalid(&format!("/{FILE}: {why}"))),
        };
        Ok(Self { root: root.to_owned(), limits })
    }

    /// Whether an operation of this kind may be begun now.
    ///
    /// # Errors
    /// `AUTHZ_FORBIDDEN` with the reason.
    pub(crate) fn admits(&self, operation: &Operation) -> Result<(), ErrorDetail> {
        let kind = Kind::of(operation);
        if self.limits.operations.as_ref().is_some_and(|allowed| !allowed.contains(&kind)) {
            let message = format!(
                "this host does not allow {} through the agent; nothing was changed. What it allows stands under \
                 operations in /{FILE}, which only root can change",
                if kind == Kind::ForcedReboot { "forced_reboot" } else { operation.kind() }
            );
            return Err(ErrorDetail::new(ErrorCode::AuthzForbidden, message)
                .with("operation", operation.kind())
                .with("limit", "operations"));
        }
        if kind == Kind::Rollback {
            return Ok(());
        }
        self.frozen().map_or(Ok(()), |reason| {
            let path = self.freeze_file();
            let message = format!(
                "this host is frozen{}; nothing was changed. Only repairing and going back are done until root removes {path}",
                if reason.is_empty() { String::new() } else { format!(": {reason}") }
            );
            Err(ErrorDetail::new(ErrorCode::AuthzForbidden, message)
                .with("limit", "freeze_file")
                .with("path", path)
                .with("reason", reason))
        })
    }

    /// Whether a plan stays below the ceiling. Not for going back, which brings only what was there before.
    ///
    /// # Errors
    /// `AUTHZ_FORBIDDEN` with the first change that does not.
    pub(crate) fn check(&self, plan: &Plan, inventory: &Inventory) -> Result<(), ErrorDetail> {
        plan.changes.iter().try_for_each(|change| {
            self.check_origin(change)?;
            self.check_protected(change, inventory)
        })
    }

    fn check_origin(&self, change: &PlannedChange) -> Result<(), ErrorDetail> {
        let brings = matches!(
            change.action,
            Action::Install | Action::Upgrade | Action::Downgrade | Action::Reinstall
        );
        let Some(allowed) = self.limits.origins.as_ref().filter(|_| brings) else { return Ok(()) };
        let from = match &change.origin {
            Some(origin) if allowed.iter().any(|a| a.admits(origin)) => return Ok(()),
            Some(origin) => format!(
                "comes from origin {:?}, label {:?}, suite {:?}, component {:?}, site {:?}",
                origin.origin, origin.label, origin.suite, origin.component, origin.site
            ),
            None => "comes from no archive that an index names".to_owned(),
        };
        let name = &change.name;
        let version = change.new_version.as_ref().map(|v| format!(" {v}")).unwrap_or_default();
        let message = format!(
            "{name}{version} {from}, which this host does not allow; nothing was changed. The allowed archives stand under \
             origins in /{FILE}, which only root can change"
        );
        Err(ErrorDetail::new(ErrorCode::AuthzForbidden, message)
            .with("package", name.as_str())
            .with("limit", "origins"))
    }

    fn check_protected(&self, change: &PlannedChange, inventory: &Inventory) -> Result<(), ErrorDetail> {
        let name = change.name.name();
        let installed = inventory.database.get(&change.name.with_architecture(&change.architecture));
        let is_older = change.new_version.as_ref().is_some_and(|new| {
            installed
                .filter(|package| package.is_present())
                .is_some_and(|package| versions::compare(new.as_str(), package.version_text()).is_lt())
        });
        let what = if change.action.is_removal() {
            "removed"
        } else if is_older || change.action == Action::Downgrade {
            "downgraded"
        } else {
            return Ok(());
        };
        let Some(pattern) = self.limits.protected.iter().find(|pattern| pattern.matches(name)) else {
            return Ok(());
        };
        let message = format!(
            "{name} would be {what}, and this host protects it; nothing was changed. {:?} stands under protected in \
             /{FILE}, which only root can change",
            pattern.0
        );
        Err(ErrorDetail::new(ErrorCode::AuthzForbidden, message)
            .with("package", name)
            .with("limit", "protected"))
    }

    fn freeze_file(&self) -> &str {
        self.limits.freeze_file.as_ref().map_or(FREEZE, |path| &path.0)
    }

    /// Why the host is frozen, if it is; empty if nobody says.
    fn frozen(&self) -> Option<String> {
        let path = self.root.join(self.freeze_file().trim_start_matches('/'));
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => Some(format!("{} cannot be looked at: {error}", path.display())),
            Ok(_) => Some(reason(&path).unwrap_or_default()),
        }
    }
}

/// The text of a freeze file on one line, if it is root's own.
fn reason(path: &Path) -> Option<String> {
    let mut text = Vec::new();
    // A final link is not followed: another one's directory may be named.
    let file = open(path, rustix::fs::OFlags::NOFOLLOW).ok()?;
    let metadata = file.metadata().ok()?;
    if !metadata.is_file() || metadata.uid() != nix::unistd::geteuid().as_raw() {
        return None;
    }
    file.take(MAX_REASON).read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    Some(plain.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// A pipe in place of a file must not hold anybody up.
fn open(path: &Path, flags: rustix::fs::OFlags) -> io::Result<File> {
    let flags = flags | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::CLOEXEC;
    let flags = i32::try_from(flags.bits()).map_err(io::Error::other)?;
    File::options().read(true).custom_flags(flags).open(path)
}

/// The file's text; `None` if there is none. Otherwise why it cannot be relied upon.
fn read(path: &Path) -> Result<Option<String>, String> {
    let file = match open(path, rustix::fs::OFlags::empty()) {
        Ok(file) => file,
        // A link that leads nowhere was meant to be a limit.
        Err(error) if error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(path).is_err() => {
            return Ok(None);
        }
        Err(error) => return Err(format!("it cannot be read: {error}")),
    };
    let metadata = file.metadata().map_err(|error| format!("it cannot be looked at: {error}"))?;
    if !metadata.is_file() {
        return Err("it is not a file".to_owned());
    }
    if metadata.uid() != nix::unistd::geteuid().as_raw() || metadata.mode() & 0o022 != 0 {
        return Err(
            "it must belong to root and be writable by nobody else (chown root:root, chmod 644)".to_owned()
        );
    }
    let mut text = String::new();
    match file.take(MAX_FILE + 1).read_to_string(&mut text) {
        Ok(n) if n as u64 > MAX_FILE => Err(format!("it is larger than {MAX_FILE} bytes")),
        Ok(_) => Ok(Some(text)),
        Err(error) => Err(format!("it cannot be read: {error}")),
    }
}

pub(crate) fn parse(text: &str) -> Result<Limits, String> {
    let only_comments = text.lines().map(str::trim).all(|l| l.is_empty() || l.starts_with('#') || l == "---");
    if only_comments {
        return Ok(Limits::default());
    }
    let options = serde_saphyr::options! {
        merge_keys: MergeKeyPolicy::Error,
        reject_unsupported_tags: true,
        strict_booleans: true,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|error: serde_saphyr::Error| {
        let bare = error.without_snippet();
        let place = bare.location().map_or(String::new(), |at| format!(":{}:{}", at.line(), at.column()));
        let said = bare.to_string();
        let first = said.lines().next().unwrap_or_default();
        format!("/{FILE}{place}: {}", first.split(" at line ").next().unwrap_or(first))
    })
}

fn invalid(why: &str) -> ErrorDetail {
    let message = format!(
        "the ceiling of this host is not valid, so nothing is changed: {why}. Correct the file, or remove it if there is to \
         be no ceiling"
    );
    ErrorDetail::new(ErrorCode::ConfigInvalid, message).with("file", format!("/{FILE}"))
}

#[cfg(test)]
#[path = "ceiling_tests.rs"]
mod tests;
