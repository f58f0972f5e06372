//! Which packages a client asked for, and in which order. Pure.

use std::cmp::Ordering;

use patch_types::api::{Package, PackageStatus};
use serde::Deserialize;
use utoipa::{IntoParams, ToSchema};

/// A state to select by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum StatusFilter {
    /// Installed, in order or not.
    Installed,
    /// A newer version is known.
    Upgradable,
    /// On hold.
    Held,
    /// Half-installed, unpacked or half-configured.
    Broken,
    /// Every record of the package database, removed packages with configuration files included.
    #[default]
    All,
}

/// What to sort by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SortKey {
    /// By name, then architecture.
    #[default]
    Name,
    /// By version, as the package manager orders versions.
    Version,
    /// By size on disk.
    Size,
}

/// In which direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum SortOrder {
    /// Smallest first.
    #[default]
    Asc,
    /// Largest first.
    Desc,
}

/// The query of `GET /packages`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct PackageFilter {
    /// An exact name, or a pattern in which `*` stands for any characters; at most 256 characters.
    #[param(max_length = 256, pattern = r"^[a-z0-9+:*]([a-z0-9+:*-]|\.[a-z0-9+:*-])*$", example = "libssl*")]
    pub name: Option<String>,
    /// An exact version.
    #[param(
        max_length = 256,
        pattern = r"^([0-9]{1,9}:)?[A-Za-z0-9]((\.?[A-Za-z0-9+~-])*(\.|\.?[A-Za-z0-9+~]))?$"
    )]
    pub version: Option<String>,
    /// A state.
    #[param(inline)]
    pub status: Option<StatusFilter>,
    /// Whether a newer version is known.
    pub upgradable: Option<bool>,
    /// What to sort by; by name if absent.
    #[param(inline)]
    pub sort: Option<SortKey>,
    /// In which direction; ascending if absent.
    #[param(inline)]
    pub order: Option<SortOrder>,
    /// At most this many; all if absent.
    #[param(minimum = 1)]
    pub limit: Option<usize>,
    /// Leave out this many first.
    pub offset: Option<usize>,
}

/// The longest pattern or version that is accepted, in characters.
const MAX_LEN: usize = patch_types::name::MAX_NAME_LEN;

impl PackageFilter {
    /// Whether everything is asked for, in the usual order.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        *self == Self::default()
    }

    /// Whether the answer depends on the newest candidates.
    #[must_use]
    pub fn needs_candidates(&self) -> bool {
        self.upgradable.is_some() || self.status == Some(StatusFilter::Upgradable)
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// The field and a sentence about what to change.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        if let Some(name) = &self.name {
            bounded("name", name)?;
            let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.:*".contains(&b);
            if name.starts_with('-') || name.contains("..") || !name.bytes().all(known) {
                return Err((
                    "name",
                    format!(
                        "{name:?} is neither a package name nor a pattern of one; write lower-case letters, digits, + - . : and * for any characters"
                    ),
                ));
            }
        }
        if let Some(version) = &self.version {
            bounded("version", version)?;
            version.parse::<patch_types::PackageVersion>().map_err(|e| ("version", e.to_string()))?;
        }
        check_page(self.limit)
    }

    /// Whether a package passes.
    #[must_use]
    pub fn passes(&self, package: &Package) -> bool {
        let name = self.name.as_ref().is_none_or(|pattern| {
            if let Some((name, architecture)) = pattern.split_once(':') {
                matches(name, package.name.name()) && matches(architecture, package.architecture.as_str())
            } else {
                matches(pattern, package.name.name())
            }
        });
        let status = match self.status.unwrap_or_default() {
            StatusFilter::Installed => {
                !matches!(package.status, PackageStatus::ConfigFiles | PackageStatus::NotInstalled)
            }
            StatusFilter::Upgradable => package.upgradable,
            StatusFilter::Held => package.held,
            StatusFilter::Broken => package.status.is_broken(),
            StatusFilter::All => true,
        };
        name && status
            && self.version.as_ref().is_none_or(|v| v == package.version.as_str())
            && self.upgradable.is_none_or(|wanted| wanted == package.upgradable)
    }

    /// Puts the packages into the order asked for; they come sorted by name.
    pub fn sort(&self, packages: &mut [Package], versions: fn(&str, &str) -> Ordering) {
        match self.sort.unwrap_or_default() {
            SortKey::Name => {}
            SortKey::Version => {
                packages.sort_by(|a, b| versions(a.version.as_str(), b.version.as_str()));
            }
            SortKey::Size => packages.sort_by_key(|p| p.size),
        }
        if self.order == Some(SortOrder::Desc) {
            packages.reverse();
        }
    }
}

fn bounded(field: &'static str, text: &str) -> Result<(), (&'static str, String)> {
    if text.is_empty() {
        return Err((field, format!("{field} must not be empty; leave it out to see everything")));
    }
    match text.chars().count() {
        length if length > MAX_LEN => {
            Err((field, format!("{field} has {length} characters; at most {MAX_LEN} are allowed")))
        }
        _ => Ok(()),
    }
}

/// Checks a page's size.
///
/// # Errors
/// The field and a sentence, when it is zero.
pub fn check_page(limit: Option<usize>) -> Result<(), (&'static str, String)> {
    match limit {
        Some(0) => Err(("limit", "limit must be at least 1; leave it out to see everything".to_owned())),
        _ => Ok(()),
    }
}

/// The part of a list that `offset` and `limit` leave.
#[must_use]
pub fn page<T>(mut all: Vec<T>, offset: Option<usize>, limit: Option<usize>) -> Vec<T> {
    let start = offset.unwrap_or(0).min(all.len());
    all.drain(..start);
    all.truncate(limit.unwrap_or(usize::MAX));
    all
}

/// Whether a text matches a pattern in which `*` stands for any characters. Linear: after a `*`, only the latest one
/// is ever tried again.
#[must_use]
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    let mut retry = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            retry = Some((p + 1, t));
            p += 1;
        } else if pattern.get(p) == text.get(t) {
            p += 1;
            t += 1;
        } else if let Some((after, from)) = retry {
            p = after;
            t = from + 1;
            retry = Some((after, t));
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|b| *b == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_as_people_expect() {
        for (pattern, text, expected) in [
            ("bash", "bash", true),
            ("bash", "bash-completion", false),
            ("bash*", "bash-completion", true),
            ("*", "", true),
            ("*ssl*", "libssl3", true),
            ("lib*3", "libssl3", true),
            ("lib*3", "libssl30", false),
            ("a*b*c", "axxbyyc", true),
            ("a*b*c", "axxbyy", false),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn a_hostile_pattern_takes_no_time() {
        assert!(!matches(&"*a".repeat(128), &"a".repeat(100).replace("aa", "ab")));
    }

    #[test]
    fn pages_stay_inside() {
        assert_eq!(page(vec![1, 2, 3], Some(1), Some(1)), [2]);
        assert_eq!(page(vec![1, 2, 3], Some(9), None), Vec::<i32>::new());
        assert_eq!(page(vec![1, 2, 3], None, Some(9)), [1, 2, 3]);
    }
}
