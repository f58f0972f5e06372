//! One package of the database, and how its fields read.

use patch_types::{
    Architecture, PackageName, PackageVersion,
    api::{Conffile, Package, PackageStatus, Relations},
};

use super::{Database, Entry, Text, Want};
use crate::apt::relations;

/// A package in a [`Database`].
#[derive(Debug, Clone, Copy)]
pub struct Installed<'a> {
    pub(super) database: &'a Database,
    pub(super) entry: &'a Entry,
}

macro_rules! texts {
    ($($(#[$doc:meta])+ $name:ident = $which:ident;)+) => {
        impl<'a> Installed<'a> {
            $($(#[$doc])+ #[must_use] pub fn $name(self) -> &'a str { self.database.text(self.entry, Text::$which) })+
        }
    };
}

texts! {
    /// Its name, without architecture.
    name = Name;
    /// Its architecture.
    architecture = Architecture;
    /// Its version, or that of the configuration that remains; empty if dpkg recorded none.
    version_text = Version;
    /// Its section.
    section = Section;
    /// Its priority.
    priority = Priority;
    /// The first line of its description.
    synopsis = Synopsis;
    /// Who maintains it.
    maintainer = Maintainer;
    /// Its home page; empty if it names none.
    homepage = Homepage;
    /// `Depends`, as it stands.
    depends = Depends;
    /// `Pre-Depends`, as it stands.
    pre_depends = PreDepends;
    /// `Recommends`, as it stands.
    recommends = Recommends;
    /// `Provides`, as it stands.
    provides = Provides;
    /// `Conflicts`, as it stands.
    conflicts = Conflicts;
    /// `Breaks`, as it stands.
    breaks = Breaks;
}

impl<'a> Installed<'a> {
    /// Its name, with its architecture if that is neither the native one nor `all`.
    #[must_use]
    pub fn package_name(self) -> Option<PackageName> {
        let foreign = self.architecture() != self.database.native && self.architecture() != "all";
        if foreign && !self.architecture().is_empty() {
            format!("{}:{}", self.name(), self.architecture()).parse().ok()
        } else {
            self.name().parse().ok()
        }
    }

    /// Its version as a value; none if dpkg recorded none or a malformed one.
    #[must_use]
    pub fn version(self) -> Option<PackageVersion> {
        self.version_text().parse().ok()
    }

    /// The source package; its own name if that is the same.
    #[must_use]
    pub fn source(self) -> &'a str {
        let field = self.database.text(self.entry, Text::Source);
        match field.split_once(' ') {
            _ if field.is_empty() => self.name(),
            Some((source, _version)) => source,
            None => field,
        }
    }

    /// The rest of its description: paragraphs separated by blank lines.
    #[must_use]
    pub fn long_description(self) -> String {
        unfold(self.database.text(self.entry, Text::LongDescription))
    }

    /// What the administrator wants.
    #[must_use]
    pub fn want(self) -> Want {
        self.entry.want
    }

    /// Its state.
    #[must_use]
    pub fn status(self) -> PackageStatus {
        self.entry.status
    }

    /// Whether its files are there, be it in a broken state.
    #[must_use]
    pub fn is_present(self) -> bool {
        !matches!(self.entry.status, PackageStatus::ConfigFiles | PackageStatus::NotInstalled)
    }

    /// Whether dpkg demands that it be installed again before anything else.
    #[must_use]
    pub fn reinstall_required(self) -> bool {
        self.entry.reinstall_required
    }

    /// Whether it is held.
    #[must_use]
    pub fn is_held(self) -> bool {
        self.entry.want == Want::Hold
    }

    /// Whether it is `Essential`.
    #[must_use]
    pub fn essential(self) -> bool {
        self.entry.essential
    }

    /// Whether it is `Protected`, or `Important` as older archives say.
    #[must_use]
    pub fn protected(self) -> bool {
        self.entry.protected
    }

    /// Whether it can be installed for several architectures side by side (`Multi-Arch: same`); dpkg's files about it
    /// then carry the architecture.
    #[must_use]
    pub fn multi_arch_same(self) -> bool {
        self.entry.multi_arch_same
    }

    /// Space that it uses on disk in bytes, as it declares.
    #[must_use]
    pub fn size(self) -> u64 {
        self.entry.installed_kib.saturating_mul(1024)
    }

    /// What it says of others.
    #[must_use]
    pub fn relations(self) -> Relations {
        let of = |which| relations::split(self.database.text(self.entry, which));
        Relations {
            pre_depends: of(Text::PreDepends),
            depends: of(Text::Depends),
            recommends: of(Text::Recommends),
            suggests: of(Text::Suggests),
            provides: of(Text::Provides),
            conflicts: of(Text::Conflicts),
            breaks: of(Text::Breaks),
            replaces: of(Text::Replaces),
        }
    }

    /// Its configuration files, as dpkg recorded them.
    #[must_use]
    pub fn conffiles(self) -> Vec<Conffile> {
        conffiles(self.database.text(self.entry, Text::Conffiles))
    }

    /// What is the matter with it, if something is.
    #[must_use]
    pub fn problem(self) -> Option<&'static str> {
        if self.entry.reinstall_required {
            return Some("its installation was interrupted badly: install it again, or remove it");
        }
        match self.entry.status {
            PackageStatus::HalfInstalled => {
                Some("its installation was begun and not ended: install it again, or remove it")
            }
            PackageStatus::Unpacked => Some("it is unpacked and not configured: run dpkg --configure -a"),
            PackageStatus::HalfConfigured => {
                Some("its configuration was begun and not ended: run dpkg --configure -a")
            }
            PackageStatus::TriggersAwaited => {
                Some("it waits for another package's trigger: run dpkg --configure -a")
            }
            PackageStatus::TriggersPending => Some("its trigger is due: run dpkg --triggers-only -a"),
            _ if self.architecture().is_empty() => Some("it has no architecture: install it again"),
            _ => None,
        }
    }

    /// The package as the API's list has it; none if dpkg recorded no version.
    #[must_use]
    pub fn to_api(self, auto_installed: bool, latest_version: Option<PackageVersion>) -> Option<Package> {
        Some(Package {
            name: self.name().parse().ok()?,
            version: self.version()?,
            architecture: self.architecture().parse::<Architecture>().ok()?,
            status: self.status(),
            upgradable: latest_version.is_some(),
            latest_version,
            description: self.synopsis().to_owned(),
            cve_ids: Vec::new(),
            held: self.is_held(),
            auto_installed,
            size: self.size(),
            section: self.section().to_owned(),
            essential: self.essential(),
        })
    }
}

/// Lines ` PATH MD5 [obsolete] [remove-on-upgrade]`. A path may hold spaces, so the line is read from its end.
fn conffiles(field: &str) -> Vec<Conffile> {
    field
        .lines()
        .filter_map(|line| {
            let mut rest = line.trim();
            let mut obsolete = false;
            while let Some((before, flag @ ("obsolete" | "remove-on-upgrade"))) = rest.rsplit_once(' ') {
                obsolete |= flag == "obsolete";
                rest = before;
            }
            let (path, md5) = rest.rsplit_once(' ')?;
            path.starts_with('/').then(|| Conffile { path: path.to_owned(), md5: md5.to_owned(), obsolete })
        })
        .collect()
}

/// A description's continuation lines without their leading space; ` .` stands for a blank line.
pub(crate) fn unfold(lines: &str) -> String {
    let mut text = String::with_capacity(lines.len());
    for line in lines.lines().filter(|l| !l.is_empty()) {
        if !text.is_empty() {
            text.push('\n');
        }
        match line.strip_prefix([' ', '\t']).unwrap_or(line) {
            "." => {}
            line => text.push_str(line.trim_end()),
        }
    }
    text
}
