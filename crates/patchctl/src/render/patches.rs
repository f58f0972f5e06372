//! Available updates, and what keeps a package from being patched.

use patch_types::{
    api::{Cause, PatchSet, PatchState, Severity, WhyNot},
    plan::Origin,
};

use super::{Rows, Style, Tone, clean, count, fields, plain, values};

/// The updates.
pub(crate) fn set(style: &Style, set: &PatchSet, verbose: bool) -> String {
    let mut text = String::new();
    if set.patches.is_empty() && set.last_update_check.is_none() {
        text.push_str("Which updates there are cannot be told: the host has no package lists.\n");
    } else if set.patches.is_empty() {
        text.push_str("No updates are available.\n");
    } else {
        let mut rows = Rows::new(style, &["PACKAGE", "INSTALLED", "AVAILABLE", "SECURITY", "STATE"]);
        for patch in &set.patches {
            let security = match (patch.security, patch.severity) {
                (false, _) => plain(""),
                (true, Severity::Unknown) => ("yes".to_owned(), Tone::Notice),
                (true, severity @ (Severity::High | Severity::Critical)) => {
                    (values::word(&severity), Tone::Bad)
                }
                (true, severity) => (values::word(&severity), Tone::Notice),
            };
            let mut state = values::word(&patch.state);
            if patch.requires_reboot {
                state.push_str(", reboot");
            }
            let tone = if patch.state == PatchState::Ready { Tone::Good } else { Tone::Notice };
            rows.row([
                plain(&patch.name),
                plain(patch.current_version.as_ref().map_or("(new)".to_owned(), ToString::to_string)),
                plain(&patch.available_version),
                security,
                (state, tone),
            ]);
        }
        text.push_str(&rows.finish());
        text.push('\n');
        for patch in &set.patches {
            if let Some(reason) = &patch.reason {
                text.push_str(&format!("{}: {}\n", patch.name, clean::line(reason)));
            }
            if verbose && !patch.cve_ids.is_empty() {
                text.push_str(&format!("{}: {}\n", patch.name, clean::line(&patch.cve_ids.join(", "))));
            }
        }
        let bytes = set.patches.iter().map(|patch| patch.download_size).fold(0, u64::saturating_add);
        text.push_str(&format!(
            "{}, {} with security fixes, {} to download\n",
            count(set.total, "update"),
            set.security_updates,
            values::size(bytes)
        ));
    }
    if set.requires_reboot {
        text.push_str("A reboot will be needed.\n");
    }
    text.push_str(&format!(
        "Indexes fetched: {}\n",
        values::time_or(set.last_update_check, "never; run: patchctl refresh")
    ));
    text
}

/// Why a package is not being patched.
pub(crate) fn why_not(why: &WhyNot) -> String {
    let version = |version: &Option<_>| version.as_ref().map_or("none".to_owned(), ToString::to_string);
    let mut text = fields(&[
        ("Package", why.name.to_string()),
        ("Installed", version(&why.current_version)),
        ("Newest", version(&why.available_version)),
    ]);
    text.push('\n');
    text.push_str(&causes(&why.causes));
    text
}

/// Causes, each with its next step.
pub(crate) fn causes(causes: &[Cause]) -> String {
    let mut text = String::new();
    for cause in causes {
        text.push_str(&format!("- {}: {}\n", values::word(&cause.kind), clean::line(&cause.message)));
        if !cause.next_step.is_empty() {
            text.push_str(&format!("  Next: {}\n", clean::line(&cause.next_step)));
        }
    }
    text
}

/// Where a version comes from, in a few words.
pub(crate) fn origin(origin: &Origin) -> String {
    let suite = if origin.suite.is_empty() { &origin.codename } else { &origin.suite };
    [&origin.origin, suite].into_iter().filter(|part| !part.is_empty()).cloned().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use patch_types::api::{CauseKind, Patch};

    use super::*;
    use crate::render::NARROW;

    #[test]
    fn updates_say_what_holds_them_back() {
        let patch = Patch {
            name: "openssl".parse().unwrap(),
            architecture: "amd64".parse().unwrap(),
            current_version: Some("3.0.15-1~deb12u1".parse().unwrap()),
            available_version: "3.0.17-1~deb12u3".parse().unwrap(),
            origin: None,
            security: true,
            severity: Severity::Critical,
            cve_ids: vec!["CVE-2026-1".into()],
            advisories: Vec::new(),
            description: String::new(),
            state: PatchState::KeptBack,
            reason: Some("needs\u{1b}[2J libx".into()),
            requires_reboot: true,
            download_size: 1_400_000,
        };
        let patches = PatchSet {
            patches: vec![patch],
            total: 1,
            security_updates: 1,
            requires_reboot: false,
            last_update_check: None,
        };
        let text = set(&NARROW, &patches, true);
        for part in [
            "critical",
            "kept back, reboot",
            "openssl: needs libx",
            "CVE-2026-1",
            "1 update, 1 with",
            "1.4 MB",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    }

    #[test]
    fn causes_come_with_their_next_step() {
        let cause = Cause {
            kind: CauseKind::KeptBack,
            message: "it needs libx 2".into(),
            next_step: "allow removals".into(),
        };
        assert_eq!(causes(&[cause]), "- kept back: it needs libx 2\n  Next: allow removals\n");
    }
}
