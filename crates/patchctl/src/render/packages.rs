//! Packages: the list, and one in detail.

use patch_types::api::{Package, PackageDetail, PackageList, PackageStatus};

use super::{Rows, Style, Tone, clean, count, fields, patches, plain, values};

/// The list.
pub(crate) fn list(style: &Style, list: &PackageList) -> String {
    if list.packages.is_empty() {
        return "No packages match.\n".to_owned();
    }
    let mut rows = Rows::new(style, &["PACKAGE", "VERSION", "STATE", "SIZE", "NEWER"]);
    for package in &list.packages {
        let newer = package.latest_version.as_ref().map_or(String::new(), ToString::to_string);
        rows.row([
            plain(&package.name),
            plain(&package.version),
            state(package),
            plain(values::size(package.size)),
            (newer, Tone::Notice),
        ]);
    }
    let mut text = rows.finish();
    if list.total > list.packages.len() {
        text.push_str(&format!("{} of {} shown\n", list.packages.len(), list.total));
    }
    text
}

fn state(package: &Package) -> (String, Tone) {
    if package.status.is_broken() {
        return (values::word(&package.status), Tone::Bad);
    }
    match (package.status, package.held) {
        (PackageStatus::Installed, true) => ("held".to_owned(), Tone::Notice),
        (PackageStatus::Installed, false) if package.upgradable => ("upgradable".to_owned(), Tone::Notice),
        (status, _) => plain(values::word(&status)),
    }
}

/// One package.
pub(crate) fn detail(style: &Style, package: &PackageDetail, verbose: bool) -> String {
    let version = |version: &Option<_>| version.as_ref().map_or("none".to_owned(), ToString::to_string);
    let mut marks = Vec::new();
    marks.extend(package.held.then_some("held"));
    marks.extend(package.essential.then_some("essential"));
    marks.extend(package.auto_installed.then_some("installed for another package"));
    let relations = &package.relations;
    let mut text = fields(&[
        ("Package", format!("{}:{}", package.name.name(), package.architecture)),
        ("Status", values::word(&package.status)),
        ("Installed", version(&package.version)),
        ("Candidate", version(&package.candidate)),
        ("Marks", marks.join(", ")),
        ("Size", values::size(package.size)),
        ("Section", package.section.clone()),
        ("Priority", package.priority.clone()),
        ("Source", package.source.clone()),
        ("Maintainer", package.maintainer.clone()),
        ("Homepage", package.homepage.clone().unwrap_or_default()),
        ("CVEs fixed", package.cve_ids.join(", ")),
        ("Description", package.description.clone()),
        ("Pre-Depends", relations.pre_depends.join(", ")),
        ("Depends", relations.depends.join(", ")),
        ("Recommends", relations.recommends.join(", ")),
        ("Suggests", relations.suggests.join(", ")),
        ("Provides", relations.provides.join(", ")),
        ("Conflicts", relations.conflicts.join(", ")),
        ("Breaks", relations.breaks.join(", ")),
        ("Replaces", relations.replaces.join(", ")),
        (
            "Needed by",
            package.reverse_dependencies.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        ),
    ]);
    if verbose && !package.long_description.is_empty() {
        text.push_str(&format!("\n{}\n", clean::text(&package.long_description)));
    }
    if !package.versions.is_empty() {
        text.push('\n');
        let mut rows = Rows::new(style, &["VERSION", "PRIORITY", "FROM", "INSTALLED"]);
        for version in &package.versions {
            let origins: Vec<String> = version.origins.iter().map(patches::origin).collect();
            rows.row([
                plain(&version.version),
                plain(version.priority.map_or(String::new(), |priority| priority.to_string())),
                plain(origins.join(", ")),
                plain(if version.installed { "yes" } else { "" }),
            ]);
        }
        text.push_str(&rows.finish());
    }
    if !package.why_not.is_empty() {
        text.push_str("\nWhy it is not upgraded:\n");
        text.push_str(&patches::causes(&package.why_not));
    }
    if verbose {
        for conffile in &package.conffiles {
            text.push_str(&format!("conffile {}\n", clean::line(&conffile.path)));
        }
        for file in &package.files {
            text.push_str(&format!("{}\n", clean::line(file)));
        }
    } else if !package.files.is_empty() {
        text.push_str(&format!("\n{} installed; -v lists them\n", count(package.files.len(), "file")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::NARROW;

    #[test]
    fn the_list_fits_eighty_columns_and_shows_holds() {
        let package = Package {
            name: "linux-image-6.1.0-37-cloud-amd64-unsigned".parse().unwrap(),
            version: "6.1.140-1+deb12u1".parse().unwrap(),
            architecture: "amd64".parse().unwrap(),
            status: PackageStatus::Installed,
            upgradable: true,
            latest_version: Some("6.1.147-1+deb12u2".parse().unwrap()),
            description: String::new(),
            cve_ids: Vec::new(),
            held: true,
            auto_installed: false,
            size: 123_456_789,
            section: "kernel".into(),
            essential: false,
        };
        let text = list(&NARROW, &PackageList { packages: vec![package], total: 2 });
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.contains("held") && text.contains("123 MB") && text.contains("1 of 2 shown"), "{text}");
        assert_eq!(list(&NARROW, &PackageList { packages: Vec::new(), total: 0 }), "No packages match.\n");
    }
}
