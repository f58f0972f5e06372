//! What a failed run of apt or dpkg means: the tool's own words to one code, with what to do next.
//!
//! Expects the C locale. The order of the rules matters: a full disk or a held lock is behind many other messages, and
//! the sentence "you have held broken packages" is about dependencies, not holds. The words of a maintainer script
//! never decide between network, signature and the like: a script that cannot reach its server is a failing script.

use patch_types::{ErrorCode, ErrorDetail, Operation};

use super::words;

/// What was being done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OperationKind {
    /// Fetching the indexes.
    Refresh,
    /// Installing packages.
    Install,
    /// Updating one package.
    Update,
    /// Removing one package.
    Remove,
    /// Changing a hold.
    Hold,
    /// Applying updates.
    ApplyPatches,
    /// Repairing, or going back.
    Recover,
}

impl From<&Operation> for OperationKind {
    fn from(operation: &Operation) -> Self {
        match operation {
            Operation::Refresh => Self::Refresh,
            Operation::Install(_) => Self::Install,
            Operation::Update(_) => Self::Update,
            Operation::Remove(_) => Self::Remove,
            Operation::Hold(_) => Self::Hold,
            // A reboot runs no package manager.
            Operation::ApplyPatches(_) | Operation::Rollback(_) | Operation::Reboot(_) => Self::ApplyPatches,
        }
    }
}

/// Of so many packages a message says what they miss.
const FEW: usize = 5;

/// Classifies a failed run by its exit code (none if a signal ended it) and its output, stderr included. `details` of
/// the result hold `exit_code`, `packages` (those that the tool names) and, of a failing maintainer script, `script` and
/// `script_status`.
///
/// It is also of use for `apt-get update`, which exits with 0 when it could not fetch something.
#[must_use]
pub fn classify(exit: Option<i32>, output: &str, kind: OperationKind) -> ErrorDetail {
    let output = words::foreign(output);
    let output = output.as_str();
    let words = Words::of(output);
    let scripts = failed_scripts(output);
    let rule = RULES.iter().find(|rule| rule.applies(&words, output));
    let (code, packages, said, next) = match rule {
        Some(rule) => {
            let packages = match rule.packages {
                Packages::Quoted => words.errors.iter().filter_map(|e| named(e)).collect(),
                Packages::Held => listed(output, "The following held packages will be changed:"),
                Packages::Downgraded => listed(output, "The following packages will be DOWNGRADED:"),
                Packages::Removed => listed(output, "The following packages will be REMOVED:"),
                Packages::Unauthenticated => {
                    listed(output, "WARNING: The following packages cannot be authenticated!")
                }
                Packages::Unmet => unmet(output),
                Packages::None => Vec::new(),
            };
            let mut said = words.said(rule.code);
            if rule.packages == Packages::Unmet {
                said.splice(0..0, first_unmet(output));
            }
            (rule.code, packages, said, rule.next)
        }
        None if !scripts.is_empty() => {
            let said = scripts.iter().map(Script::sentence).collect();
            let mut packages = failed_packages(output);
            packages.extend(scripts.iter().map(|s| s.package.clone()).filter(|p| !p.contains('/')));
            let next = "read the script's own words in the job's log, cure their cause and run `dpkg --configure -a`";
            (ErrorCode::PkgManagerError, packages, said, next)
        }
        None => {
            let code = match kind {
                OperationKind::ApplyPatches => ErrorCode::PatchApplyError,
                _ => ErrorCode::PkgManagerError,
            };
            let mut said = words.errors.clone();
            if said.is_empty() {
                said = last_lines(output, 5);
            }
            (code, failed_packages(output), said, "see the job's log for the tool's whole output")
        }
    };
    let mut said = said.join("; ");
    if said.is_empty() {
        said = match exit {
            Some(code) => format!("the package manager said nothing and ended with exit code {code}"),
            None => "the package manager was ended by a signal".to_owned(),
        };
    }
    let mut detail =
        ErrorDetail::new(code, format!("{}. Next: {next}.", words::quoted(&said).trim_end_matches('.')))
            .with("exit_code", exit);
    if !packages.is_empty() {
        let mut distinct: Vec<String> = Vec::new();
        packages.into_iter().for_each(|p| {
            if !distinct.contains(&p) {
                distinct.push(p);
            }
        });
        detail = detail.with("packages", distinct);
    }
    if let Some(script) = scripts.first() {
        detail = detail.with("script", script.script.clone()).with("script_status", script.status.clone());
    }
    detail
}

/// Where the names of the packages concerned stand.
#[derive(PartialEq)]
enum Packages {
    None,
    Quoted,
    Held,
    Downgraded,
    Removed,
    Unauthenticated,
    Unmet,
}

struct Rule {
    code: ErrorCode,
    /// Any of these in apt's or dpkg's own errors (or, if `anywhere`, in any line).
    needles: &'static [&'static str],
    anywhere: bool,
    packages: Packages,
    next: &'static str,
}

impl Rule {
    fn applies(&self, words: &Words, output: &str) -> bool {
        self.needles.iter().any(|needle| {
            if self.anywhere {
                output.contains(needle)
            } else {
                words.all().any(|line| line.contains(needle))
            }
        })
    }
}

const RULES: &[Rule] = &[
    Rule {
        code: ErrorCode::LockTimeout,
        needles: &[
            "Could not get lock",
            "Unable to acquire the dpkg frontend lock",
            "Unable to lock the administration directory",
            "Unable to lock directory",
            "is locked by another process",
            "database is locked",
        ],
        anywhere: false,
        packages: Packages::None,
        next: "wait until the other process has ended and ask again",
    },
    Rule {
        code: ErrorCode::DiskSpace,
        needles: &["No space left on device", "You don't have enough free space", "Disk quota exceeded"],
        anywhere: true,
        packages: Packages::None,
        next: "free some space (`apt-get clean` empties apt's cache) and ask again",
    },
    Rule {
        code: ErrorCode::SignatureError,
        needles: &[
            "Hash Sum mismatch",
            "File has unexpected size",
            "NO_PUBKEY",
            "BADSIG",
            "EXPKEYSIG",
            "REVKEYSIG",
            "is not signed",
            "is no longer signed",
            "does not have a Release file",
            "invalid signature",
            "signatures were invalid",
            "isn't valid yet",
            "is not valid yet",
            "is expired (invalid since",
            "changed its 'Origin' value",
            "changed its 'Label' value",
            "changed its 'Suite' value",
            "changed its 'Codename' value",
        ],
        anywhere: false,
        packages: Packages::None,
        next: "nothing was installed from it; refresh the indexes, and if it stays, check the repository, its key in \
               /etc/apt/keyrings and the host's clock",
    },
    Rule {
        code: ErrorCode::SignatureError,
        needles: &["There were unauthenticated packages", "Some packages could not be authenticated"],
        anywhere: false,
        packages: Packages::Unauthenticated,
        next: "have the repository signed and name its key by `signed-by` in the host's sources",
    },
    Rule {
        code: ErrorCode::NetworkError,
        needles: &[
            "Could not resolve",
            "Temporary failure resolving",
            "Could not connect",
            "Unable to connect",
            "Cannot initiate the connection",
            "Connection failed",
            "Connection timed out",
            "connection timed out",
            "Network is unreachable",
            "No route to host",
            "Error reading from server",
            "Data left in file",
            "Could not handshake",
            "Certificate verification failed",
            "Failed to fetch",
            "Unable to fetch some archives",
            "Some index files failed to download",
        ],
        anywhere: false,
        packages: Packages::None,
        next: "check that the host reaches its repositories (name resolution, proxy, firewall), refresh the indexes and \
               ask again",
    },
    Rule {
        code: ErrorCode::PkgHeld,
        needles: &["Held packages were changed"],
        anywhere: false,
        packages: Packages::Held,
        next: "take it off hold first (PUT /api/v1/packages/NAME with \"hold\": false), or leave it out",
    },
    Rule {
        code: ErrorCode::PkgVersionConflict,
        needles: &["Packages were downgraded and -y was used"],
        anywhere: false,
        packages: Packages::Downgraded,
        next: "allow it with \"allow_downgrade\": true, if the older version is what you want",
    },
    Rule {
        code: ErrorCode::PkgVersionConflict,
        needles: &["Version '", "Release '"],
        anywhere: false,
        packages: Packages::Quoted,
        next: "see which versions there are (GET /api/v1/packages/NAME), or refresh the indexes",
    },
    Rule {
        code: ErrorCode::PkgNotFound,
        needles: &[
            "Unable to locate package",
            "has no installation candidate",
            "Couldn't find any package by",
        ],
        anywhere: false,
        packages: Packages::Quoted,
        next: "check the name, the host's sources and, with POST /api/v1/patches/refresh, whether the indexes are fresh",
    },
    Rule {
        code: ErrorCode::PkgDependencyError,
        needles: &["Packages need to be removed but remove is disabled"],
        anywhere: false,
        packages: Packages::Removed,
        next: "this would remove packages; if they may go, allow it (\"allow_removals\": true)",
    },
    Rule {
        code: ErrorCode::PkgDependencyError,
        needles: &["Essential packages were removed", "Removing essential system-critical packages"],
        anywhere: false,
        packages: Packages::Removed,
        next: "leave the essential package where it is: the host needs it",
    },
    Rule {
        code: ErrorCode::PkgDependencyError,
        needles: &[
            "you have held broken packages",
            "Unmet dependencies",
            "generated breaks",
            "Unable to correct dependencies",
            "Unable to satisfy dependencies",
        ],
        anywhere: false,
        packages: Packages::Unmet,
        next: "add what is missing (another archive, an older version, a removal), or wait until the archives are \
               consistent",
    },
    Rule {
        code: ErrorCode::PkgDependencyError,
        needles: &["dependency problems - leaving unconfigured", "dependency problems prevent"],
        anywhere: true,
        packages: Packages::None,
        next: "repair with `apt-get -f install`, then ask again",
    },
    Rule {
        code: ErrorCode::PkgManagerError,
        needles: &["dpkg was interrupted"],
        anywhere: false,
        packages: Packages::None,
        next: "an earlier run was interrupted: run `dpkg --configure -a`",
    },
    Rule {
        code: ErrorCode::PkgManagerError,
        needles: &["The list of sources could not be read"],
        anywhere: false,
        packages: Packages::None,
        next: "correct the named file below /etc/apt",
    },
];

/// What apt and dpkg themselves complained of, a sentence each.
struct Words {
    errors: Vec<String>,
    warnings: Vec<String>,
}

impl Words {
    fn of(output: &str) -> Self {
        let (mut errors, mut warnings) = (Vec::new(), Vec::new());
        for line in output.lines() {
            if let Some(error) = line.strip_prefix("E: ").or_else(|| line.strip_prefix("dpkg: error: ")) {
                errors.push(error.trim().to_owned());
            } else if let Some(warning) = line.strip_prefix("W: ") {
                warnings.push(warning.trim().to_owned());
            }
        }
        Self { errors, warnings }
    }

    fn all(&self) -> impl Iterator<Item = &str> {
        self.errors.iter().chain(&self.warnings).map(String::as_str)
    }

    /// What to repeat: the errors; where they only say that something failed, the warnings that say what.
    fn said(&self, code: ErrorCode) -> Vec<String> {
        let tells_why = matches!(code, ErrorCode::SignatureError | ErrorCode::NetworkError);
        if self.errors.is_empty() || tells_why {
            self.all().map(str::to_owned).collect()
        } else {
            self.errors.clone()
        }
    }
}

/// A maintainer script that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Script {
    package: String,
    /// `postinst`, `preinst`, …
    script: String,
    /// What dpkg says of its end, such as `error exit status 3`.
    status: String,
}

impl Script {
    fn sentence(&self) -> String {
        format!("the {} script of {} failed: {}", self.script, self.package, self.status)
    }
}

/// dpkg: ` installed NAME package post-installation script subprocess returned error exit status 3`, or, before 1.19,
/// ` subprocess installed post-installation script returned error exit status 3` below a line with the name.
fn failed_scripts(output: &str) -> Vec<Script> {
    const KINDS: [(&str, &str); 5] = [
        ("pre-installation script", "preinst"),
        ("post-installation script", "postinst"),
        ("pre-removal script", "prerm"),
        ("post-removal script", "postrm"),
        ("config script", "config"),
    ];
    let mut package = "";
    let mut scripts = Vec::new();
    for line in output.lines() {
        if let Some((_, rest)) = line.split_once("dpkg: error processing ") {
            let rest =
                rest.strip_prefix("package ").or_else(|| rest.strip_prefix("archive ")).unwrap_or(rest);
            package = rest.split(' ').next().unwrap_or_default();
            continue;
        }
        let Some((before, after)) = line.split_once(" subprocess ") else { continue };
        let Some((kind, script)) = KINDS.iter().find(|(kind, _)| line.contains(kind)) else { continue };
        if !line.starts_with(' ') {
            continue;
        }
        let owner = before.strip_suffix(kind).and_then(|b| b.trim().strip_suffix(" package"));
        let owner = owner.and_then(|b| b.trim().split(' ').next_back()).unwrap_or(package);
        let status = after.trim();
        let status = status.strip_prefix("returned ").unwrap_or(status);
        let found =
            Script { package: owner.to_owned(), script: (*script).to_owned(), status: status.to_owned() };
        if !scripts.contains(&found) {
            scripts.push(found);
        }
    }
    scripts
}

/// The package that an error of apt names.
fn named(error: &str) -> Option<String> {
    if let Some(name) = error.strip_prefix("Unable to locate package ") {
        return Some(name.trim().to_owned());
    }
    let text = match error.split_once(" for '") {
        Some((_, rest)) => rest,
        None => error.strip_prefix("Package '").or_else(|| error.strip_prefix("Package "))?,
    };
    text.split(['\'', ' ']).next().filter(|n| !n.is_empty()).map(str::to_owned)
}

/// The indented lines below a heading.
fn block(output: &str, heading: &str) -> Vec<String> {
    output
        .lines()
        .skip_while(|l| l.trim_end() != heading)
        .skip(1)
        .take_while(|l| l.starts_with([' ', '\t']))
        .map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect()
}

fn listed(output: &str, heading: &str) -> Vec<String> {
    block(output, heading)
        .iter()
        .flat_map(|l| l.split(" (").next().unwrap_or_default().split(' '))
        .map(|n| n.trim_end_matches('*').to_owned())
        .collect()
}

/// What the first few packages miss, and how many more there are.
fn first_unmet(output: &str) -> Vec<String> {
    let lines = block(output, "The following packages have unmet dependencies:");
    let begins: Vec<usize> =
        lines.iter().enumerate().filter(|(_, line)| line.contains(" : ")).map(|(at, _)| at).collect();
    let Some(end) = begins.get(FEW) else { return lines };
    let mut first: Vec<String> = lines.iter().take(*end).cloned().collect();
    first.push(format!("and {} more packages miss something", begins.len() - FEW));
    first
}

fn unmet(output: &str) -> Vec<String> {
    block(output, "The following packages have unmet dependencies:")
        .iter()
        .filter_map(|l| l.split_once(" : "))
        .map(|(name, _)| name.trim().to_owned())
        .collect()
}

/// dpkg's own list at the end of a failed run; archives by their package's name.
fn failed_packages(output: &str) -> Vec<String> {
    block(output, "Errors were encountered while processing:")
        .iter()
        .map(|l| {
            let file = l.rsplit('/').next().unwrap_or(l);
            let Some(archive) = file.strip_suffix(".deb") else { return file.to_owned() };
            let name = archive.split('_').next().unwrap_or(archive);
            // apt links many archives into a directory of its own and numbers them there: `012-NAME_…`.
            match name.split_once('-').filter(|_| l.contains("/apt-dpkg-install")) {
                Some((number, rest)) if number.bytes().all(|b| b.is_ascii_digit()) => rest.to_owned(),
                _ => name.to_owned(),
            }
        })
        .collect()
}

fn last_lines(output: &str, count: usize) -> Vec<String> {
    let lines: Vec<&str> = output.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
    lines[lines.len().saturating_sub(count)..].iter().map(|l| (*l).to_owned()).collect()
}

#[cfg(test)]
#[path = "classify_tests.rs"]
mod tests;
