//! What a rehearsal and the real run said, and whether that is the same.

use anyhow::{Context, Result};
use patch_types::{ErrorCode, EventKind, FindingKind, JobStatus, Phase, RehearsalReport, RehearsalVerdict};

use crate::executor::Seen;

/// What was said of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    /// Before anything was tried.
    Refused(ErrorCode),
    /// There was nothing to do.
    Nothing,
    /// There was no rehearsal, and why.
    NotRehearsed(String),
    /// All of it was done.
    Well,
    /// Something was not.
    Fails(Failed),
}

/// Where a change fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failed {
    pub(super) code: ErrorCode,
    /// What a rehearsal calls it.
    pub(super) kind: &'static str,
    /// The first package that dpkg could not do, and its words, which name the script.
    pub(super) first: Option<(String, String)>,
}

impl Said {
    /// By a rehearsal, and nothing else.
    pub(super) fn rehearsed(seen: &Seen, report: Option<&RehearsalReport>) -> Result<Self> {
        let ended = seen.ended().context("no end")?;
        let code = ended.error.as_ref().map(|error| error.code);
        let Some(report) = report else {
            return Ok(code.map_or(Self::Nothing, Self::Refused));
        };
        Ok(match report.verdict {
            RehearsalVerdict::NotRehearsed => Self::NotRehearsed(report.reason.clone().unwrap_or_default()),
            RehearsalVerdict::Well => Self::Well,
            RehearsalVerdict::Fails => {
                let first = report
                    .findings
                    .iter()
                    .find_map(|finding| Some((finding.package.clone()?, finding.message.clone())));
                let code = code.context("it fails without an error")?;
                // What is reckoned comes last, and is what it fails of.
                let kind = match report.findings.first() {
                    _ if code == ErrorCode::DiskSpace => FindingKind::DiskSpace,
                    Some(finding) => finding.kind,
                    None => FindingKind::Other,
                };
                Self::Fails(Failed { code, kind: kind.as_str(), first })
            }
        })
    }

    /// By the real run.
    pub(super) fn made(seen: &Seen) -> Result<Self> {
        let ended = seen.ended().context("no end")?;
        let applying = |kind: &EventKind| matches!(kind, EventKind::Phase { phase: Phase::Applying });
        let was_tried = seen.events.iter().any(|event| applying(&event.kind));
        if ended.status == JobStatus::Completed {
            return Ok(if was_tried { Self::Well } else { Self::Nothing });
        }
        let code = ended.error.as_ref().context("it fails without an error")?.code;
        if !was_tried {
            return Ok(Self::Refused(code));
        }
        Ok(Self::Fails(Failed { code, kind: "", first: first_failure(&seen.log()) }))
    }
}

/// The first package of which dpkg says that it could not do it, and what it says on the next line.
fn first_failure(log: &str) -> Option<(String, String)> {
    let mut lines = log.lines();
    let named = lines.find_map(|line| line.strip_prefix("dpkg: error processing "))?;
    let why = lines.next().unwrap_or_default().trim().to_owned();
    let (what, rest) = named.split_once(' ')?;
    let name = rest.split(" (--").next().unwrap_or(rest);
    if what != "archive" {
        return Some((name.to_owned(), why));
    }
    // apt numbers the archives that it gives to dpkg all together, by links of its own.
    let file = name.rsplit('/').next().unwrap_or(name);
    let file = match file.split_once('-') {
        Some((number, rest)) if name.contains("apt-dpkg-install-") && number.parse::<u32>().is_ok() => rest,
        _ => file,
    };
    Some((file.split('_').next().unwrap_or(file).to_owned(), why))
}

/// In what the two differ. What both refuse before anything is tried is no matter of a rehearsal.
pub(super) fn differ(rehearsed: &Said, made: &Said) -> Option<String> {
    match (rehearsed, made) {
        (Said::Well, Said::Well) | (Said::Nothing, Said::Nothing) => None,
        (Said::Refused(before), Said::Refused(after)) => {
            (before != after).then(|| format!("refused with {before}, then with {after}"))
        }
        // The real run reckons the room beforehand, and is refused; a rehearsal does so as well, and tells what else fails. Where there is
        // no room for the archives of what is replaced either, it is the way back that is missing.
        (Said::Fails(before), Said::Refused(after)) if before.code == ErrorCode::DiskSpace => {
            let is_of_room = matches!(after, ErrorCode::DiskSpace | ErrorCode::RollbackUnavailable);
            (!is_of_room).then(|| format!("it fails with {}, then is refused with {after}", before.code))
        }
        (Said::Fails(before), Said::Fails(after)) => {
            if before.code != after.code {
                return Some(format!("it fails with {}, then with {}", before.code, after.code));
            }
            // Where there is no room any package may be the first.
            if before.code == ErrorCode::DiskSpace {
                return None;
            }
            (before.first != after.first)
                .then(|| format!("it fails first in {:?}, then in {:?}", before.first, after.first))
        }
        (before, after) => Some(format!("{before:?}, then {after:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_is_named_by_its_package() {
        let log = "Setting up aa (1) ...\ndpkg: error processing package bb (--configure):\n installed bb package \
                   post-installation script subprocess returned error exit status 3\ndpkg: error processing package cc (--x):\n y\n";
        let (package, why) = first_failure(log).unwrap();
        assert_eq!(package, "bb");
        assert!(why.starts_with("installed bb package post-installation script"));
        let archive = |path: &str| {
            first_failure(&format!("dpkg: error processing archive {path} (--unpack):\n why\n")).unwrap().0
        };
        assert_eq!(archive("/var/cache/apt/archives/dd_1_all.deb"), "dd");
        assert_eq!(archive("/tmp/apt-dpkg-install-aB/03-dd-x_1_all.deb"), "dd-x");
        assert_eq!(archive("/var/cache/apt/archives/2048-qt_1_all.deb"), "2048-qt");
        assert_eq!(first_failure("Setting up aa (1) ...\n"), None);
    }

    #[test]
    fn what_differs_is_said() {
        let fails = |kind, package: &str| {
            let first = Some((package.to_owned(), "x".to_owned()));
            Said::Fails(Failed { code: ErrorCode::PkgManagerError, kind, first })
        };
        assert_eq!(differ(&Said::Well, &Said::Well), None);
        assert_eq!(differ(&fails("postinst", "a"), &fails("", "a")), None);
        assert!(differ(&fails("postinst", "a"), &fails("", "b")).is_some());
        assert!(differ(&Said::Well, &fails("", "a")).is_some());
        assert!(differ(&fails("postinst", "a"), &Said::Well).is_some());
        assert!(differ(&Said::NotRehearsed(String::new()), &Said::Well).is_some());
        assert!(differ(&Said::Well, &Said::Refused(ErrorCode::DiskSpace)).is_some());
        assert!(differ(&fails("other", "a"), &Said::Refused(ErrorCode::PkgManagerError)).is_some());
        let full = Said::Fails(Failed { code: ErrorCode::DiskSpace, kind: "disk_space", first: None });
        assert_eq!(differ(&full, &Said::Refused(ErrorCode::DiskSpace)), None);
        assert!(differ(&full, &Said::Refused(ErrorCode::PkgManagerError)).is_some());
    }
}
