//! Queries of the lists, and how they are written into a URL.

use patch_types::{JobStatus, OnFailure, PlanHash, Unrehearsed, api::RemoveRequest};

/// Which packages `GET /packages` shows by state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackageState {
    /// Installed ones.
    Installed,
    /// Those with a newer version.
    Upgradable,
    /// Those on hold.
    Held,
    /// Those that are not in order.
    Broken,
    /// Everything that the database knows, removed packages with remaining configuration included.
    All,
}

impl PackageState {
    /// The state as it stands in the query.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Installed => "installed",
            Self::Upgradable => "upgradable",
            Self::Held => "held",
            Self::Broken => "broken",
            Self::All => "all",
        }
    }
}

/// By what a list of packages is sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackageSort {
    /// By name.
    Name,
    /// By version.
    Version,
    /// By space used on disk.
    Size,
}

impl PackageSort {
    /// The key as it stands in the query.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Version => "version",
            Self::Size => "size",
        }
    }
}

/// The query of `GET /packages`; what is `None` is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PackageFilter {
    /// A name, exact or with `*`.
    pub name: Option<String>,
    /// An exact version.
    pub version: Option<String>,
    /// A state.
    pub status: Option<PackageState>,
    /// Only those with, or without, a newer version.
    pub upgradable: Option<bool>,
    /// The order; by name if absent.
    pub sort: Option<PackageSort>,
    /// The other way round.
    pub descending: bool,
    /// At most so many.
    pub limit: Option<usize>,
    /// Leaving out so many first.
    pub offset: Option<usize>,
}

impl PackageFilter {
    pub(crate) fn query(&self) -> Query {
        Query::default()
            .text("name", self.name.as_deref())
            .text("version", self.version.as_deref())
            .text("status", self.status.map(PackageState::as_str))
            .text("upgradable", self.upgradable.map(|yes| if yes { "true" } else { "false" }))
            .text("sort", self.sort.map(PackageSort::as_str))
            .text("order", self.descending.then_some("desc"))
            .number("limit", self.limit)
            .number("offset", self.offset)
    }
}

/// The query of `GET /jobs`; what is `None` is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobFilter {
    /// Only those that stand there.
    pub status: Option<JobStatus>,
    /// Only those of a kind, such as `install`.
    pub kind: Option<String>,
    /// At most so many.
    pub limit: Option<usize>,
    /// Leaving out so many first.
    pub offset: Option<usize>,
}

impl JobFilter {
    pub(crate) fn query(&self) -> Query {
        Query::default()
            .text("status", self.status.map(JobStatus::as_str))
            .text("kind", self.kind.as_deref())
            .number("limit", self.limit)
            .number("offset", self.offset)
    }
}

/// Pairs of a query, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Query(pub(crate) Vec<(&'static str, String)>);

impl Query {
    pub(crate) fn text(mut self, key: &'static str, value: Option<&str>) -> Self {
        self.0.extend(value.map(|value| (key, value.to_owned())));
        self
    }

    fn number(mut self, key: &'static str, value: Option<usize>) -> Self {
        self.0.extend(value.map(|value| (key, value.to_string())));
        self
    }

    fn flag(self, key: &'static str, on: bool) -> Self {
        self.text(key, on.then_some("true"))
    }
}

/// `DELETE` has no body: what is asked stands in the query.
pub(crate) fn removal(request: &RemoveRequest) -> Query {
    Query::default()
        .flag("purge", request.purge)
        .flag("autoremove", request.autoremove)
        .flag("dry_run", request.dry_run)
        .text("if_plan", request.if_plan.as_ref().map(PlanHash::as_str))
        .text("on_failure", request.on_failure.map(OnFailure::as_str))
        .flag("rehearse", request.rehearse)
        .text("unrehearsed", request.unrehearsed.map(Unrehearsed::as_str))
        .text("confirm_within", request.confirm_within.map(|seconds| seconds.to_string()).as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_filter_makes_no_query() {
        assert_eq!(PackageFilter::default().query(), Query::default());
        assert_eq!(JobFilter::default().query(), Query::default());
        assert_eq!(removal(&RemoveRequest::default()), Query::default());
    }

    #[test]
    fn filters_use_the_words_of_the_api() {
        let filter = PackageFilter {
            name: Some("lib*".into()),
            status: Some(PackageState::Held),
            sort: Some(PackageSort::Size),
            descending: true,
            limit: Some(5),
            ..Default::default()
        };
        let pairs: Vec<String> = filter.query().0.into_iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(pairs.join("&"), "name=lib*&status=held&sort=size&order=desc&limit=5");
        let removal = removal(&RemoveRequest { purge: true, dry_run: true, ..Default::default() });
        assert_eq!(removal.0, [("purge", "true".to_owned()), ("dry_run", "true".to_owned())]);
        let removal = super::removal(&RemoveRequest {
            on_failure: Some(OnFailure::All),
            confirm_within: Some(60),
            ..Default::default()
        });
        assert_eq!(removal.0, [("on_failure", "all".to_owned()), ("confirm_within", "60".to_owned())]);
    }
}
