//! A plan: what would change, and the hash by which it is approved.

use patch_types::{Action, Plan};

use super::{Rows, Style, Tone, clean, count, patches, plain, values};

/// The plan as a table with its sums and its hash.
pub(crate) fn plan(style: &Style, plan: &Plan) -> String {
    let mut text = String::new();
    if plan.is_empty() {
        text.push_str("Nothing would change.\n");
    } else {
        let mut rows = Rows::new(style, &["ACTION", "PACKAGE", "FROM", "TO", "ORIGIN"]);
        for change in &plan.changes {
            let tone = match change.action {
                action if action.is_removal() => Tone::Bad,
                Action::Downgrade => Tone::Notice,
                _ => Tone::Plain,
            };
            let version = |version: &Option<_>| version.as_ref().map_or("-".to_owned(), ToString::to_string);
            let mut origin = change.origin.as_ref().map_or(String::new(), patches::origin);
            if change.security && !origin.to_lowercase().contains("security") {
                origin = format!("{origin} (security)").trim_start().to_owned();
            }
            rows.row([
                (change.action.to_string(), tone),
                plain(format!("{}:{}", change.name.name(), change.architecture)),
                plain(version(&change.old_version)),
                plain(version(&change.new_version)),
                plain(origin),
            ]);
        }
        text.push_str(&rows.finish());
        text.push_str(&format!(
            "\n{}, {} to download, {} on disk\n",
            count(plan.changes.len(), "change"),
            values::size(plan.download_bytes),
            values::delta(plan.disk_delta_bytes)
        ));
    }
    for kept in &plan.kept_back {
        text.push_str(&format!("Kept back: {}: {}\n", kept.name, clean::line(&kept.reason)));
    }
    for conffile in &plan.conffiles {
        text.push_str(&format!(
            "Changed by you, stays as it is: {} ({})\n",
            clean::line(&conffile.path),
            conffile.package
        ));
    }
    if !plan.services.is_empty() {
        text.push_str(&format!("Likely to be restarted: {}\n", clean::line(&plan.services.join(", "))));
    }
    if plan.needs_reboot {
        text.push_str("A reboot will be needed.\n");
    }
    text.push_str(&format!("Plan: {}\n", plan.hash));
    text
}

#[cfg(test)]
mod tests {
    use patch_types::PlannedChange;

    use super::*;
    use crate::render::NARROW;

    #[test]
    fn a_plan_shows_every_change_its_sums_and_its_hash() {
        let change = PlannedChange {
            action: Action::Upgrade,
            name: "bash".parse().unwrap(),
            architecture: "amd64".parse().unwrap(),
            old_version: Some("5.2.15-2+b7".parse().unwrap()),
            new_version: Some("5.2.15-2+b8".parse().unwrap()),
            archive_sha256: None,
            origin: None,
            security: true,
            archive_bytes: 1_500_000,
            disk_delta_bytes: -2_000,
        };
        let mut value = Plan::of(vec![change]);
        value.needs_reboot = true;
        let text = plan(&NARROW, &value);
        assert_eq!(
            text,
            format!(
                "ACTION   PACKAGE     FROM         TO           ORIGIN\n\
                 upgrade  bash:amd64  5.2.15-2+b7  5.2.15-2+b8  (security)\n\
                 \n\
                 1 change, 1.5 MB to download, -2.0 kB on disk\n\
                 A reboot will be needed.\n\
                 Plan: {}\n",
                value.hash
            )
        );
        assert!(plan(&NARROW, &Plan::of(Vec::new())).starts_with("Nothing would change."));
    }
}
