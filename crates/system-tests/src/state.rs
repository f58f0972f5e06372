//! What a change may change of a host, read at one moment, and the difference between two moments.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use crate::Guest;

/// The state of a host: facts by name, `package lp-plain:all` or `file /usr/bin/lp-special` for two. Packages, marks and
/// holds, conffiles with owner and mode, every file of the test packages, what `dpkg --audit` and `dpkg --verify` say,
/// and what should not lie about at all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostState {
    facts: BTreeMap<String, String>,
}

/// What is known of a configuration file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conffile<'a> {
    /// Mode, owner and hash of the file.
    pub on_disk: &'a str,
    /// The hash of what its package shipped, as dpkg has it.
    pub recorded: &'a str,
}

impl HostState {
    /// Reads it: one command, some 150 ms.
    ///
    /// # Errors
    /// When the host cannot be asked.
    pub fn of(guest: &Guest) -> Result<Self> {
        let said = guest.exec_ok(&["/usr/bin/python3", "-SE", "-c", include_str!("state.py")])?;
        let facts = serde_json::from_str(&said).context("the state of the host is not JSON")?;
        Ok(Self { facts })
    }

    /// A fact by its name.
    #[must_use]
    pub fn fact(&self, name: &str) -> Option<&str> {
        self.facts.get(name).map(String::as_str)
    }

    /// The facts whose name begins so, without that beginning.
    pub fn all<'a>(&'a self, beginning: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.facts
            .iter()
            .filter_map(move |(name, value)| Some((name.strip_prefix(beginning)?, value.as_str())))
    }

    /// The version of a test package that is installed and configured.
    #[must_use]
    pub fn version(&self, package: &str) -> Option<&str> {
        let recorded = self.all("package ").find(|(name, _)| name.split(':').next() == Some(package))?.1;
        let words: Vec<&str> = recorded.split(' ').collect();
        match words.as_slice() {
            [version, _, "ok", "installed", ..] => Some(version),
            _ => None,
        }
    }

    /// Whether nothing is left of a package, by its fact.
    #[must_use]
    pub fn is_purged(&self, name: &str) -> bool {
        self.fact(name).is_none_or(|recorded| status(recorded) == Some("not-installed"))
    }

    /// Whether nothing but its configuration is left of a package, by its fact.
    #[must_use]
    pub fn is_removed(&self, name: &str) -> bool {
        self.is_purged(name)
            || self.fact(name).is_some_and(|recorded| status(recorded) == Some("config-files"))
    }

    /// Whether a package is held.
    #[must_use]
    pub fn is_held(&self, package: &str) -> bool {
        self.word(package, 1) == Some("hold")
    }

    /// Whether a package is marked as automatically installed.
    #[must_use]
    pub fn is_auto(&self, package: &str) -> bool {
        self.word(package, 4) == Some("auto")
    }

    fn word(&self, package: &str, index: usize) -> Option<&str> {
        let recorded = self.all("package ").find(|(name, _)| name.split(':').next() == Some(package))?.1;
        recorded.split(' ').nth(index)
    }

    /// What is wrong whatever the change was: dpkg's findings, files that are missing or not as shipped, and what was
    /// left lying about.
    #[must_use]
    pub fn faults(&self) -> Vec<String> {
        let mut faults: Vec<String> = ["audit ", "verify ", "litter "]
            .iter()
            .flat_map(|kind| self.all(kind).map(move |(name, value)| format!("{kind}{name} {value}")))
            .collect();
        faults.extend(
            self.all("file ")
                .filter(|(path, at)| *at == "missing" && !path.starts_with("/etc/"))
                .map(|(path, _)| format!("file {path} is missing")),
        );
        faults.extend(self.all("package ").filter_map(|(name, recorded)| {
            let status = status(recorded)?;
            let flag = recorded.split(' ').nth(2)?;
            (flag != "ok" || !matches!(status, "installed" | "config-files" | "not-installed"))
                .then(|| format!("package {name} is {recorded}"))
        }));
        faults
    }

    /// A configuration file by its fact, if it is not as dpkg recorded that it was shipped.
    #[must_use]
    pub fn edited_conffile(&self, name: &str) -> Option<Conffile<'_>> {
        let (on_disk, recorded) = self.fact(name)?.split_once(" recorded ")?;
        let recorded = recorded.split(' ').next()?;
        (on_disk.rsplit(' ').next() != Some(recorded)).then_some(Conffile { on_disk, recorded })
    }

    /// What differs: one line a fact, empty if the host is as it was.
    #[must_use]
    pub fn diff(&self, now: &Self) -> Vec<String> {
        self.diff_but(now, |_| false)
    }

    /// What differs, without the facts that are excused by their names.
    #[must_use]
    pub fn diff_but(&self, now: &Self, excused: impl Fn(&str) -> bool) -> Vec<String> {
        let names: std::collections::BTreeSet<&String> = self.facts.keys().chain(now.facts.keys()).collect();
        let shown = |state: &Self, name: &str| {
            state.facts.get(name).map_or("(nothing)".to_owned(), |value| format!("({value})"))
        };
        names
            .into_iter()
            .filter(|name| self.facts.get(*name) != now.facts.get(*name) && !excused(name))
            .map(|name| format!("{name}: {} → {}", shown(self, name), shown(now, name)))
            .collect()
    }

    /// Fails unless the host is as it was.
    ///
    /// # Errors
    /// With every difference.
    pub fn assert_same(&self, now: &Self) -> Result<()> {
        let differences = self.diff(now);
        ensure!(differences.is_empty(), "the host is not as it was:\n{}", differences.join("\n"));
        Ok(())
    }

    /// Fails unless everything is in order.
    ///
    /// # Errors
    /// With every fault.
    pub fn assert_in_order(&self) -> Result<()> {
        let faults = self.faults();
        ensure!(faults.is_empty(), "the host is not in order:\n{}", faults.join("\n"));
        Ok(())
    }
}

/// dpkg's status in a package's fact.
fn status(recorded: &str) -> Option<&str> {
    recorded.split(' ').nth(3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(facts: &[(&str, &str)]) -> HostState {
        HostState { facts: facts.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect() }
    }

    #[test]
    fn half_removed_is_not_removed() {
        let host = state(&[
            ("package a:all", "1.0 deinstall ok config-files"),
            ("package b:all", "1.0 purge ok not-installed"),
            ("package c:all", "1.0 install ok half-installed manual"),
            ("package d:all", "1.0 install ok installed auto"),
        ]);
        let are =
            |of: &dyn Fn(&str) -> bool| ["a", "b", "c", "d", "e"].map(|p| of(&format!("package {p}:all")));
        assert_eq!(are(&|name| host.is_removed(name)), [true, true, false, false, true]);
        assert_eq!(are(&|name| host.is_purged(name)), [false, true, false, false, true]);
    }

    #[test]
    fn a_difference_is_seen_and_a_fault_is_named() {
        let old =
            state(&[("package lp-a:all", "1.0 install ok installed auto"), ("file /usr/x", "644 0:0 d41d")]);
        let new =
            state(&[("package lp-a:all", "1.1 hold ok half-configured manual"), ("file /usr/x", "missing")]);
        assert!(old.faults().is_empty() && old.diff(&old).is_empty());
        assert_eq!(old.diff(&new).len(), 2);
        assert_eq!(new.faults().len(), 2);
        assert_eq!((old.version("lp-a"), new.version("lp-a")), (Some("1.0"), None));
        assert!(old.is_auto("lp-a") && new.is_held("lp-a") && !new.is_auto("lp-a"));
    }
}
