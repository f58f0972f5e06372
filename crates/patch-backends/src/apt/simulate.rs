//! What apt's solver would do: the output of `apt-get -s -V …` in the C locale.
//!
//! The lines `Inst`, `Remv`, `Purg` and `Conf` are made for machines; the lists above them are for people, but nothing
//! else says what is kept back. `-V` puts one package on a line of a list; lists without it are read as well.

use patch_types::{Architecture, PackageName, PackageVersion};

/// What a line of the simulation does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// `Inst`: unpack a version, whatever was there before.
    Install,
    /// `Remv`.
    Remove,
    /// `Purg`.
    Purge,
    /// `Conf`, of a package that is not also unpacked in this run.
    Configure,
}

/// One change that the solver would make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SolverChange {
    /// What.
    pub verb: Verb,
    /// To which package; with its architecture if that is not the native one.
    pub package: PackageName,
    /// The version that is installed, as apt says.
    pub old: Option<PackageVersion>,
    /// The version that would be installed.
    pub new: Option<PackageVersion>,
    /// The archives that offer it, as `Label:Version/Suite`.
    pub sources: Vec<String>,
    /// The architecture of the new version.
    pub architecture: Option<Architecture>,
}

/// A package in one of the lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The package; with its architecture if that is not the native one.
    pub package: PackageName,
    /// The installed version, in lists of changes (with `-V`).
    pub old: Option<PackageVersion>,
    /// The candidate (with `-V`).
    pub new: Option<PackageVersion>,
}

impl Listed {
    /// The package's name without architecture.
    #[must_use]
    pub fn name(&self) -> &str {
        self.package.name()
    }
}

/// A dependency that the solver could not satisfy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmet {
    /// The package whose dependency it is, as apt names it.
    pub package: String,
    /// apt's words, such as `Depends: ex-missing (>= 2) but it is not installable`.
    pub problem: String,
}

/// A simulation's output.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Simulation {
    /// The changes in the solver's order.
    pub changes: Vec<SolverChange>,
    /// What would stay although a newer version is the candidate: held, phased (before apt 2.9 says so itself) or kept
    /// back by dependencies.
    pub kept_back: Vec<Listed>,
    /// What apt itself says is deferred by phasing.
    pub phased: Vec<Listed>,
    /// Held packages that would be changed all the same.
    pub held: Vec<Listed>,
    /// What would go to an older version.
    pub downgraded: Vec<Listed>,
    /// What would be removed, as listed.
    pub removed: Vec<Listed>,
    /// Essential packages that would be removed.
    pub essential: Vec<Listed>,
    /// Packages whose archives are not signed.
    pub unauthenticated: Vec<Listed>,
    /// What is installed and needed no more.
    pub no_longer_required: Vec<Listed>,
    /// Dependencies that cannot be satisfied.
    pub unmet: Vec<Unmet>,
    /// apt's errors, without `E: `.
    pub errors: Vec<String>,
    /// apt's warnings, without `W: `.
    pub warnings: Vec<String>,
    /// How many lines of changes were malformed and left out. A plan made of such a simulation is not complete and must
    /// not be carried out.
    pub malformed: usize,
}

impl Simulation {
    /// The names, without architecture, of all packages that would be changed or stay although they could be.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let lists = [&self.kept_back, &self.phased, &self.held, &self.downgraded];
        self.changes.iter().map(|c| c.package.name()).chain(lists.into_iter().flatten().map(Listed::name))
    }

    /// The change of a package, if there is one besides being configured.
    #[must_use]
    pub fn change(&self, name: &str, architecture: Option<&str>) -> Option<&SolverChange> {
        self.changes.iter().find(|c| {
            c.package.name() == name
                && c.verb != Verb::Configure
                && architecture.is_none_or(|a| c.package.architecture().is_none_or(|own| own == a))
        })
    }
}

/// Which list a heading begins.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Section {
    KeptBack,
    Phased,
    Held,
    Downgraded,
    Removed,
    Essential,
    Unauthenticated,
    NoLongerRequired,
    Unmet,
    Other,
}

fn section(line: &str) -> Option<Section> {
    if line.starts_with([' ', '\t']) || !line.ends_with([':', '!', '.']) {
        return None;
    }
    // The last forms are those of apt 3, should it be told to use its new output.
    Some(match line.trim_start_matches("WARNING: ") {
        "The following packages have been kept back:" | "Not upgrading:" => Section::KeptBack,
        "The following upgrades have been deferred due to phasing:" | "Not upgrading yet due to phasing:" => {
            Section::Phased
        }
        "The following held packages will be changed:" | "Changing held packages:" => Section::Held,
        "The following packages will be DOWNGRADED:" | "DOWNGRADING:" => Section::Downgraded,
        "The following packages will be REMOVED:" | "REMOVING:" => Section::Removed,
        "The following essential packages will be removed." => Section::Essential,
        "The following packages cannot be authenticated!" => Section::Unauthenticated,
        "The following packages have unmet dependencies:" | "Unsatisfied dependencies:" => Section::Unmet,
        l if l.contains("no longer required") => Section::NoLongerRequired,
        l if l.ends_with(':') => Section::Other,
        _ => return None,
    })
}

/// Parses the output. It never fails; see [`Simulation::errors`] and [`Simulation::malformed`].
#[must_use]
pub fn parse(output: &str) -> Simulation {
    let mut simulation = Simulation::default();
    let mut configured = Vec::new();
    let mut current = Section::Other;
    for line in output.lines() {
        if let Some(found) = section(line) {
            current = found;
            continue;
        }
        if line.starts_with([' ', '\t']) {
            let list = match current {
                Section::KeptBack => &mut simulation.kept_back,
                Section::Phased => &mut simulation.phased,
                Section::Held => &mut simulation.held,
                Section::Downgraded => &mut simulation.downgraded,
                Section::Removed => &mut simulation.removed,
                Section::Essential => &mut simulation.essential,
                Section::Unauthenticated => &mut simulation.unauthenticated,
                Section::NoLongerRequired => &mut simulation.no_longer_required,
                Section::Unmet => {
                    unmet(line, &mut simulation.unmet);
                    continue;
                }
                Section::Other => continue,
            };
            listed(line, list);
            continue;
        }
        // An admonition stands between this heading and its list.
        if current == Section::Essential && line.starts_with("This should NOT") {
            continue;
        }
        current = Section::Other;
        let Some((word, rest)) = line.split_once(' ') else { continue };
        let verb = match word {
            "Inst" => Verb::Install,
            "Remv" => Verb::Remove,
            "Purg" => Verb::Purge,
            "Conf" => Verb::Configure,
            "E:" => {
                simulation.errors.push(rest.trim().to_owned());
                continue;
            }
            "W:" => {
                simulation.warnings.push(rest.trim().to_owned());
                continue;
            }
            _ => continue,
        };
        match change(verb, rest) {
            Some(change) if verb == Verb::Configure => configured.push(change),
            Some(change) => simulation.changes.push(change),
            None => simulation.malformed += 1,
        }
    }
    // A package that is removed for a moment, to be installed again in the same run, is not removed.
    let installed: Vec<PackageName> = of_verb(&simulation.changes, Verb::Install);
    simulation.changes.retain(|c| c.verb == Verb::Install || !installed.contains(&c.package));
    configured.retain(|c| !installed.contains(&c.package));
    simulation.changes.extend(configured);
    simulation
}

fn of_verb(changes: &[SolverChange], verb: Verb) -> Vec<PackageName> {
    changes.iter().filter(|c| c.verb == verb).map(|c| c.package.clone()).collect()
}

/// `NAME[:ARCH] [OLD] (NEW SOURCE, SOURCE [ARCH]) [what it breaks meanwhile]`
fn change(verb: Verb, text: &str) -> Option<SolverChange> {
    let text = text.trim();
    let (name, mut rest) = text.split_once(' ').unwrap_or((text, ""));
    let mut change = SolverChange {
        verb,
        package: name.parse().ok()?,
        old: None,
        new: None,
        sources: Vec::new(),
        architecture: None,
    };
    rest = rest.trim_start();
    if let Some((old, after)) = rest.strip_prefix('[').and_then(|r| r.split_once(']')) {
        change.old = Some(old.trim().parse().ok()?);
        rest = after.trim_start();
    }
    if matches!(verb, Verb::Install | Verb::Configure) {
        let inner = rest.strip_prefix('(')?;
        // Labels are free text and may hold parentheses; the architecture in brackets ends the whole.
        let (inner, _) = inner.split_once("])").or_else(|| inner.split_once(')'))?;
        let (offer, architecture) = match inner.rsplit_once('[') {
            Some((offer, architecture)) => (offer, Some(architecture)),
            None => (inner, None),
        };
        let (version, sources) = offer.trim().split_once(' ').unwrap_or((offer.trim(), ""));
        change.new = Some(version.parse().ok()?);
        change.sources =
            sources.split(", ").map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect();
        change.architecture = architecture.map(|a| a.trim().parse()).transpose().ok()?;
    }
    Some(change)
}

/// `   NAME (OLD => NEW)`, `   NAME* (VERSION)`, or `  NAME NAME NAME`.
fn listed(line: &str, list: &mut Vec<Listed>) {
    let line = line.trim();
    // The star marks what is purged; `(due to …)` follows essential packages.
    let package = |name: &str| name.trim_end_matches(['*', ',']).parse::<PackageName>();
    match line.split_once(" (").and_then(|(name, rest)| Some((name, rest.strip_suffix(')')?))) {
        Some((name, versions)) if !name.contains(' ') => {
            let Ok(package) = package(name) else { return };
            let (old, new) = match versions.split_once(" => ") {
                Some((old, new)) => (old.parse().ok(), new.parse().ok()),
                None => (None, versions.parse().ok()),
            };
            list.push(Listed { package, old, new });
        }
        _ => {
            for name in line.split_whitespace() {
                if let Ok(package) = package(name) {
                    list.push(Listed { package, old: None, new: None });
                }
            }
        }
    }
}

/// ` NAME : Depends: X but …`, continued by lines for the alternatives and for further dependencies of the same
/// package.
fn unmet(line: &str, list: &mut Vec<Unmet>) {
    let (package, problem) = match line.split_once(" : ") {
        Some((package, problem)) if !package.trim().contains(' ') => {
            (package.trim().to_owned(), problem.trim())
        }
        _ => match list.last_mut() {
            Some(last) if last.problem.ends_with(" or") => {
                last.problem.push(' ');
                last.problem.push_str(line.trim());
                return;
            }
            Some(last) => (last.package.clone(), line.trim()),
            None => return,
        },
    };
    list.push(Unmet { package, problem: problem.to_owned() });
}

#[cfg(test)]
#[path = "simulate_tests.rs"]
mod tests;
