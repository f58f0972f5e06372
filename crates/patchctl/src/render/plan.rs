//! A plan: what would change, and the hash by which it is approved.

use patch_types::{Action, PackageVersion, Plan, PlanHash, PlannedChange, TakesBack};

use super::{Rows, Style, Tone, clean, count, patches, plain, values};

/// The plan as a table with its sums and its hash.
pub(crate) fn plan(style: &Style, plan: &Plan) -> String {
    let mut text = String::new();
    if plan.is_empty() {
        text.push_str(if plan.takes_back.is_some() {
            "No package would change.\n"
        } else {
            "Nothing would change.\n"
        });
    } else {
        let mut rows = Rows::new(style, &["ACTION", "PACKAGE", "FROM", "TO", "ORIGIN"]);
        for change in &plan.changes {
            let mut origin = change.origin.as_ref().map_or(String::new(), patches::origin);
            if change.security && !origin.to_lowercase().contains("security") {
                origin = format!("{origin} (security)").trim_start().to_owned();
            }
            rows.row([
                (change.action.to_string(), tone(change)),
                plain(format!("{}:{}", change.name.name(), change.architecture)),
                plain(version(change.old_version.as_ref())),
                plain(version(change.new_version.as_ref())),
                plain(origin),
            ]);
        }
        text.push_str(&rows.finish());
        text.push('\n');
        text.push_str(&sums(plan));
    }
    if let Some(back) = &plan.takes_back {
        text.push_str(&takes_back(back));
    }
    for kept in &plan.kept_back {
        text.push_str(&format!("Kept back: {}: {}\n", kept.name, clean::line(&kept.reason)));
    }
    text.push_str(&barred(plan));
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
    if let Some(job) = plan.during {
        text.push_str(&format!(
            "Made while job {job} is changing this host: what that has not done yet counts as still to do. Look again when it \
             has ended.\n"
        ));
    }
    text.push_str(&format!("Plan: {}\n", plan.hash));
    text
}

/// The security fixes that it leaves out, a line each.
pub(crate) fn barred(plan: &Plan) -> String {
    plan.barred.iter().map(|one| format!("Not patched: {}\n", clean::line(&one.sentence()))).collect()
}

/// What going back to a snapshot takes back besides.
fn takes_back(back: &TakesBack) -> String {
    let list = |lines: &[String]| clean::line(&lines.join(", ")).into_owned();
    let mut text = format!(
        "\nBack to the {} snapshot {} of {}, for {}.\n",
        back.kind,
        list(&back.names),
        values::time(back.at),
        list(&back.file_systems)
    );
    for (title, lines) in [("Stays as it is", &back.left_out), ("Is kept as it is now", &back.kept)] {
        if !lines.is_empty() {
            text.push_str(&format!("{title}: {}\n", list(lines)));
        }
    }
    if back.total == 0 {
        text.push_str("No other file has changed since.\n");
    } else {
        text.push_str("Also taken back, and no part of these packages:\n");
    }
    for file in &back.files {
        let files = if file.files == 1 { String::new() } else { format!(" ({} files)", file.files) };
        text.push_str(&format!("  {:8} {}{files}\n", file.change, clean::line(&file.path)));
    }
    let more = back.total.saturating_sub(u64::try_from(back.files.len()).unwrap_or(u64::MAX));
    if more > 0 {
        text.push_str(&format!("  and {more} more\n"));
    }
    for hazard in &back.hazards {
        text.push_str(&format!("Beware: {}\n", clean::line(hazard)));
    }
    text
}

/// What another plan changes about the one that was shown, and its sums and hash.
pub(crate) fn difference(style: &Style, shown: &Plan, now: &Plan) -> String {
    let barred = barred(now);
    if now.is_empty() {
        let told =
            if barred.is_empty() { "Nothing is left to do.\n" } else { "Nothing else would change.\n" };
        return format!("{told}{barred}");
    }
    let mut rows = Rows::new(style, &["", "ACTION", "PACKAGE", "FROM", "TO"]);
    let gone =
        shown.changes.iter().filter(|change| !holds(now, change)).map(|change| ("not any more", change));
    let new = now.changes.iter().filter(|change| !holds(shown, change)).map(|change| ("new", change));
    for (word, change) in gone.chain(new) {
        rows.row([
            plain(word),
            (change.action.to_string(), tone(change)),
            plain(format!("{}:{}", change.name.name(), change.architecture)),
            plain(version(change.old_version.as_ref())),
            plain(version(change.new_version.as_ref())),
        ]);
    }
    let mut text = rows.finish();
    text.push_str(&format!("\nIn all {}", sums(now)));
    text.push_str(&barred);
    text.push_str(&format!("Plan: {}\n", now.hash));
    text
}

/// Whether a plan has the same change, in what a plan's hash covers.
fn holds(plan: &Plan, change: &PlannedChange) -> bool {
    let essence = |c: &PlannedChange| PlanHash::of(std::slice::from_ref(c));
    plan.changes.iter().any(|other| other.name == change.name && essence(other) == essence(change))
}

fn tone(change: &PlannedChange) -> Tone {
    match change.action {
        action if action.is_removal() => Tone::Bad,
        Action::Downgrade => Tone::Notice,
        _ => Tone::Plain,
    }
}

fn version(version: Option<&PackageVersion>) -> String {
    version.map_or("-".to_owned(), ToString::to_string)
}

fn sums(plan: &Plan) -> String {
    format!(
        "{}, {} to download, {} on disk\n",
        count(plan.changes.len(), "change"),
        values::size(plan.download_bytes),
        values::delta(plan.disk_delta_bytes)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::NARROW;

    #[test]
    fn what_a_snapshot_takes_back_is_shown_before_the_hash() {
        let mut planned = Plan::of(Vec::new());
        let back = serde_json::json!({
            "kind": "snapper", "names": ["root 3"], "at": "2026-01-02T03:04:05Z", "file_systems": ["/"],
            "left_out": ["/home"], "total": 4, "kept": [], "hazards": ["beware of\u{1b}[2J it"],
            "files": [{"path": "/etc/hosts", "change": "changed", "files": 1},
                      {"path": "/srv/x/", "change": "removed", "files": 12}],
        });
        planned.takes_back = Some(serde_json::from_value(back).unwrap());
        let text = plan(&NARROW, &planned);
        for expected in [
            "Back to the snapper snapshot root 3 of ",
            "Stays as it is: /home\n",
            "  changed  /etc/hosts\n  removed  /srv/x/ (12 files)\n  and 2 more\nBeware: beware of it\n",
        ] {
            assert!(text.contains(expected), "{expected} is not in {text}");
        }
        assert!(
            text.ends_with(&format!("Plan: {}\n", planned.hash)) && !text.contains("Nothing would change"),
            "{text}"
        );
    }

    #[test]
    fn the_difference_shows_what_comes_and_goes() {
        let change = |name: &str, to: &str| PlannedChange {
            action: Action::Upgrade,
            name: name.parse().unwrap(),
            architecture: "amd64".parse().unwrap(),
            old_version: Some("1".parse().unwrap()),
            new_version: Some(to.parse().unwrap()),
            archive_sha256: None,
            origin: None,
            security: false,
            archive_bytes: 1000,
            disk_delta_bytes: 0,
        };
        let shown = Plan::of(vec![change("bash", "2"), change("dash", "2")]);
        let now = Plan::of(vec![change("bash", "2"), change("dash", "3")]);
        let text = difference(&NARROW, &shown, &now);
        let lines: Vec<String> =
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert_eq!(lines[1..3], ["not any more upgrade dash:amd64 1 2", "new upgrade dash:amd64 1 3"]);
        assert!(lines[4].starts_with("In all 2 changes, "), "{text}");
        assert!(text.contains(now.hash.as_str()) && !text.contains("bash"), "{text}");
        let mut nothing = Plan::of(Vec::new());
        assert_eq!(difference(&NARROW, &shown, &nothing), "Nothing is left to do.\n");
        nothing.barred.push(patch_types::TakenBack {
            name: "bash".parse().unwrap(),
            architecture: "amd64".parse().unwrap(),
            version: "2".parse().unwrap(),
            job: "01890000-0000-7000-8000-000000000009".parse().unwrap(),
            at: "2026-01-01T00:00:00Z".parse().unwrap(),
            reason: "it failed".to_owned(),
        });
        let text = difference(&NARROW, &shown, &nothing);
        assert!(
            text.contains("Not patched: the security fix bash 2") && !text.contains("left to do"),
            "{text}"
        );
        let text = difference(&NARROW, &shown, &Plan { barred: nothing.barred, ..now });
        assert!(text.contains("Not patched: the security fix bash 2"), "{text}");
    }

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
