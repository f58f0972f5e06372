//! Plans: the exact changes that an operation would make, and the hash by which a person approves them.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    job::JobId,
    name::{Architecture, PackageName, PackageVersion},
    rollback::TakenBack,
    snapshot::TakesBack,
};

/// What happens to one package.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Action {
    /// Not installed before.
    Install,
    /// To a newer version.
    Upgrade,
    /// To an older version.
    Downgrade,
    /// The same version again.
    Reinstall,
    /// Removed; its configuration files stay.
    Remove,
    /// Removed with its configuration files.
    Purge,
    /// Only configured: it was unpacked already.
    Configure,
    /// Put on hold.
    Hold,
    /// Taken off hold.
    Unhold,
}

impl Action {
    /// The action as it stands in JSON and in the plan's hash.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Install => "install",
            Self::Upgrade => "upgrade",
            Self::Downgrade => "downgrade",
            Self::Reinstall => "reinstall",
            Self::Remove => "remove",
            Self::Purge => "purge",
            Self::Configure => "configure",
            Self::Hold => "hold",
            Self::Unhold => "unhold",
        }
    }

    /// Whether the package is gone afterwards.
    #[must_use]
    pub fn is_removal(self) -> bool {
        matches!(self, Self::Remove | Self::Purge)
    }
}

impl std::fmt::Display for Action {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where a version comes from: the `Release` file of the archive that offers it.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Origin {
    /// `Origin:`, such as `Debian`.
    pub origin: String,
    /// `Label:`, such as `Debian-Security`.
    pub label: String,
    /// `Suite:`, such as `stable-security`.
    pub suite: String,
    /// `Codename:`, such as `bookworm-security`.
    pub codename: String,
    /// The component, such as `main`.
    pub component: String,
    /// The host of the archive, empty for local ones.
    pub site: String,
    /// Whether the archive's own metadata says that it carries security fixes.
    pub security: bool,
}

/// One package's part of a plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PlannedChange {
    /// What happens.
    pub action: Action,
    /// To which package, without architecture.
    pub name: PackageName,
    /// Of which architecture.
    pub architecture: Architecture,
    /// The version installed before; null if none.
    pub old_version: Option<PackageVersion>,
    /// The version installed afterwards; null if none.
    pub new_version: Option<PackageVersion>,
    /// SHA-256 of the archive to be installed, as the signed index names it, in lower-case hexadecimal.
    pub archive_sha256: Option<String>,
    /// Where the new version comes from.
    pub origin: Option<Origin>,
    /// Whether this change brings a security fix.
    #[serde(default)]
    pub security: bool,
    /// The archive's size in bytes.
    #[serde(default)]
    pub archive_bytes: u64,
    /// Change of the space used on disk in bytes, as the packages declare it.
    #[serde(default)]
    pub disk_delta_bytes: i64,
}

/// SHA-256 over the canonical list of changes, in lower-case hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(value_type = String, pattern = "^[0-9a-f]{64}$"))]
pub struct PlanHash(String);

impl PlanHash {
    /// The hash as 64 hexadecimal digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The hash of a list of changes, whatever their order: one line a change with the tab-separated fields action,
    /// name, architecture, old version, new version and archive hash (`-` for what there is not), sorted, each ended by
    /// a line feed.
    #[must_use]
    pub fn of(changes: &[PlannedChange]) -> Self {
        Self::of_snapshot(changes, None)
    }

    /// The same of what going back to a snapshot changes: one more line `snapshot` with the SHA-256 of all that it takes
    /// back besides.
    #[must_use]
    pub fn of_snapshot(changes: &[PlannedChange], besides: Option<&str>) -> Self {
        let mut lines: Vec<String> = changes
            .iter()
            .map(|c| {
                format!(
                    "{}\t{}\t{}\t{}\t{}\t{}\n",
                    c.action,
                    c.name,
                    c.architecture,
                    c.old_version.as_ref().map_or("-", PackageVersion::as_str),
                    c.new_version.as_ref().map_or("-", PackageVersion::as_str),
                    c.archive_sha256.as_deref().unwrap_or("-"),
                )
            })
            .collect();
        lines.sort_unstable();
        lines.extend(besides.map(|hash| format!("snapshot\t{hash}\n")));
        Self(hex::encode(Sha256::digest(lines.concat().as_bytes())))
    }
}

impl std::fmt::Display for PlanHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for PlanHash {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        if text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            Ok(Self(text))
        } else {
            Err("a plan's hash is 64 lower-case hexadecimal digits")
        }
    }
}

impl From<PlanHash> for String {
    fn from(hash: PlanHash) -> Self {
        hash.0
    }
}

/// A configuration file that the administrator has changed and that the plan's packages own. Ours is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ChangedConffile {
    /// The package that ships it.
    pub package: PackageName,
    /// Its path.
    pub path: String,
}

/// A version that apt did not choose, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KeptBack {
    /// The package.
    pub name: PackageName,
    /// Why it stays: one sentence.
    pub reason: String,
}

/// What an operation would change, as the package manager's own solver gives it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Plan {
    /// SHA-256 over the canonical sorted list of changes: what a person approves.
    pub hash: PlanHash,
    /// The changes in the order of the solver.
    pub changes: Vec<PlannedChange>,
    /// Bytes still to be downloaded at most (archives that are cached count as well).
    pub download_bytes: u64,
    /// Change of the space used on disk in bytes, as the packages declare it.
    pub disk_delta_bytes: i64,
    /// Configuration files changed by the administrator, of packages in the plan.
    pub conffiles: Vec<ChangedConffile>,
    /// Units shipped by packages in the plan that are likely to be restarted by their maintainer scripts.
    pub services: Vec<String>,
    /// Whether the changes are known to ask for a reboot.
    pub needs_reboot: bool,
    /// What stays as it is although a newer version exists.
    pub kept_back: Vec<KeptBack>,
    /// The job that was changing the host while this was planned: what it has not done yet counts as still to do, and may
    /// not be there any more when it has ended. Not part of the hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub during: Option<JobId>,
    /// Security fixes that it is to bring and does not, since they were taken back on this host and are pinned away. Not part
    /// of the hash.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub barred: Vec<TakenBack>,
    /// What going back to a snapshot takes back besides; absent for every other plan.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub takes_back: Option<TakesBack>,
}

impl Plan {
    /// A plan of the given changes, with its hash and sums; everything else empty.
    #[must_use]
    pub fn of(changes: Vec<PlannedChange>) -> Self {
        Self {
            hash: PlanHash::of(&changes),
            download_bytes: changes.iter().map(|c| c.archive_bytes).fold(0, u64::saturating_add),
            disk_delta_bytes: changes.iter().map(|c| c.disk_delta_bytes).fold(0, i64::saturating_add),
            changes,
            conffiles: Vec::new(),
            services: Vec::new(),
            needs_reboot: false,
            kept_back: Vec::new(),
            during: None,
            barred: Vec::new(),
            takes_back: None,
        }
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(name: &str, new: &str) -> PlannedChange {
        PlannedChange {
            action: Action::Upgrade,
            name: name.parse().unwrap(),
            architecture: "all".parse().unwrap(),
            old_version: Some("1.0".parse().unwrap()),
            new_version: Some(new.parse().unwrap()),
            archive_sha256: None,
            origin: None,
            security: false,
            archive_bytes: 3,
            disk_delta_bytes: -1,
        }
    }

    #[test]
    fn the_hash_ignores_order_and_sizes_and_sees_every_version() {
        let (a, b) = (change("aa", "2"), change("bb", "2"));
        let one = Plan::of(vec![a.clone(), b.clone()]);
        let mut larger = b.clone();
        larger.archive_bytes = 99;
        assert_eq!(one.hash, Plan::of(vec![larger, a.clone()]).hash);
        assert_ne!(one.hash, Plan::of(vec![a.clone(), change("bb", "3")]).hash);
        assert_ne!(one.hash, Plan::of(vec![a]).hash);
        assert_eq!((one.download_bytes, one.disk_delta_bytes), (6, -2));
    }

    #[test]
    fn the_hash_of_a_known_plan_never_changes() {
        // Clients store hashes: this value is part of the interface.
        assert_eq!(
            PlanHash::of(&[]).as_str(),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert!(PlanHash::try_from("E3".to_owned()).is_err());
    }
}
