//! apt's policy: the output of `apt-cache policy NAME…` in the C locale.

use patch_types::PackageVersion;

/// What the policy says of one package.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// The package, as apt names it (with its architecture if that is not the native one).
    pub name: String,
    /// The installed version.
    pub installed: Option<PackageVersion>,
    /// The version that apt would install.
    pub candidate: Option<PackageVersion>,
    /// The version that a pin for this package names, where apt says so.
    pub pin: Option<String>,
    /// The versions there are, in apt's order: newest first.
    pub versions: Vec<PolicyVersion>,
}

/// A version in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyVersion {
    /// The version.
    pub version: PackageVersion,
    /// Its priority, pins for the package included. Below 0 it is never installed.
    pub priority: i32,
    /// To how many percent of all machines it is offered; none if to all.
    pub phased: Option<u8>,
    /// Whether it is the installed one.
    pub installed: bool,
    /// Where it can be had.
    pub sources: Vec<PolicySource>,
}

/// A place where a version can be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicySource {
    /// The place's own priority.
    pub priority: i32,
    /// The place, as apt names it: an address, suite and component, or `/var/lib/dpkg/status`.
    pub place: String,
}

impl PolicySource {
    /// Whether it is dpkg's database and no archive.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.place.ends_with("/dpkg/status")
    }
}

impl Policy {
    /// The newest version that any archive offers.
    #[must_use]
    pub fn newest_offered(&self) -> Option<&PolicyVersion> {
        self.versions
            .iter()
            .filter(|v| v.sources.iter().any(|s| !s.is_local()))
            .max_by(|a, b| super::versions::compare(a.version.as_str(), b.version.as_str()))
    }
}

/// Parses the output: one value a package that apt knows. Lines that are none of the format's are passed over.
#[must_use]
pub fn parse(output: &str) -> Vec<Policy> {
    let mut policies: Vec<Policy> = Vec::new();
    for line in output.lines() {
        if !line.starts_with([' ', '\t']) {
            if let Some(name) = line.strip_suffix(':').filter(|n| !n.is_empty() && !n.contains(' ')) {
                policies.push(Policy { name: name.to_owned(), ..Policy::default() });
            }
            continue;
        }
        let Some(policy) = policies.last_mut() else { continue };
        let text = line.trim();
        if let Some((field, value)) = text.split_once(": ")
            && line.starts_with("  ")
            && !line.starts_with("   ")
        {
            match field {
                "Installed" => policy.installed = value.parse().ok(),
                "Candidate" => policy.candidate = value.parse().ok(),
                "Package pin" => policy.pin = Some(value.to_owned()),
                _ => {}
            }
        } else if line.starts_with("        ") {
            if let (Some(version), Some((priority, place))) =
                (policy.versions.last_mut(), text.split_once(' '))
                && let Ok(priority) = priority.parse()
            {
                version.sources.push(PolicySource { priority, place: place.trim().to_owned() });
            }
        } else if let Some(version) = version(line) {
            policy.versions.push(version);
        }
    }
    policies
}

/// ` *** 1.0 500` or `     1.1 500 (phased 10%)`.
fn version(line: &str) -> Option<PolicyVersion> {
    let installed = line.starts_with(" ***");
    let mut words = line.trim_start_matches([' ', '*']).split_whitespace();
    let version = words.next()?.parse().ok()?;
    let priority = words.next()?.parse().ok()?;
    let phased = match (words.next(), words.next()) {
        (Some("(phased"), Some(percent)) => percent.trim_end_matches("%)").parse().ok(),
        _ => None,
    };
    Some(PolicyVersion { version, priority, phased, installed, sources: Vec::new() })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SEVERAL: &str = include_str!("fixtures/policy-several.txt");

    #[test]
    fn the_table_is_read() {
        let policies = parse(SEVERAL);
        assert_eq!(policies.iter().map(|p| &*p.name).collect::<Vec<_>>(), ["pa-lib", "pa-plain"]);
        let plain = &policies[1];
        assert_eq!(plain.installed.as_ref().unwrap().as_str(), "1.0-1");
        assert_eq!(plain.candidate.as_ref().unwrap().as_str(), "1.1-1");
        assert_eq!(
            plain.versions.iter().map(|v| v.version.as_str()).collect::<Vec<_>>(),
            ["1.1-1", "1.0-2", "1.0-1"]
        );
        let installed = &plain.versions[2];
        assert!(installed.installed && installed.sources[1].is_local());
        assert_eq!(
            installed.sources[0],
            PolicySource { priority: 500, place: "file:/srv/repo/day1 bookworm/main amd64 Packages".into() }
        );
        // Pinned to what is installed: the priority of the version counts, not that of its archive.
        assert_eq!(
            (policies[0].versions[1].priority, policies[0].versions[1].sources[0].priority),
            (1001, 500)
        );
        assert_eq!(policies[0].newest_offered().unwrap().version.as_str(), "1.1");
    }

    #[test]
    fn phasing_and_negative_pins_are_read() {
        let phased = &parse(include_str!("fixtures/policy-phased.txt"))[0];
        assert_eq!(phased.versions[0].phased, Some(0));
        let forbidden = &parse(include_str!("fixtures/policy-forbidden.txt"))[0];
        assert_eq!(
            (forbidden.versions[0].priority, forbidden.candidate.as_ref().unwrap().as_str()),
            (-1, "1.0")
        );
    }

    #[test]
    fn what_is_virtual_or_not_known_has_no_versions() {
        assert_eq!(parse(""), []);
        let only = &parse(include_str!("fixtures/policy-virtual.txt"))[0];
        assert_eq!((&only.installed, &only.candidate, only.versions.len()), (&None, &None, 0));
        assert_eq!(parse(include_str!("fixtures/policy-foreign.txt"))[0].name, "ex-multi:i386");
    }

    proptest! {
        #[test]
        fn any_change_of_the_output_is_survived(at in 0..SEVERAL.len(), what in "[ *:\n0-9a(é]{0,5}", cut in 0..40usize) {
            let end = (at + cut).min(SEVERAL.len());
            let _ = parse(&format!("{}{what}{}", &SEVERAL[..at], &SEVERAL[end..]));
        }
    }
}
