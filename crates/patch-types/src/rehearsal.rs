//! Rehearsals: a transaction tried first on a copy-on-write image of the host.

use serde::{Deserialize, Serialize};

/// What to do where no rehearsal is possible.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Unrehearsed {
    /// Change nothing, and say why.
    #[default]
    Refuse,
    /// Be content with the solver's simulation, and say that it was not rehearsed.
    Simulate,
}

impl Unrehearsed {
    /// The choice as it stands in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Refuse => "refuse",
            Self::Simulate => "simulate",
        }
    }
}

/// That a change is to be rehearsed, and how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rehearse {
    /// Nothing is changed even if all goes well.
    #[serde(default)]
    pub only: bool,
    /// What to do where no rehearsal is possible.
    #[serde(default)]
    pub otherwise: Unrehearsed,
}

/// What a rehearsal says of the real run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum RehearsalVerdict {
    /// Everything planned was done in the image.
    Well,
    /// Something planned was not done in the image; the findings say what and where.
    Fails,
    /// There was no rehearsal; the reason says why.
    NotRehearsed,
}

impl RehearsalVerdict {
    /// The verdict as it stands in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Well => "well",
            Self::Fails => "fails",
            Self::NotRehearsed => "not_rehearsed",
        }
    }
}

impl std::fmt::Display for RehearsalVerdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where a transaction fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum FindingKind {
    /// The script before a package is unpacked.
    Preinst,
    /// The script that configures a package.
    Postinst,
    /// The script before a package is removed or replaced.
    Prerm,
    /// The script after a package is removed or replaced.
    Postrm,
    /// The script that is run because another package touched what it watches.
    Trigger,
    /// Two packages have the same file.
    FileConflict,
    /// There is no room.
    DiskSpace,
    /// A package that it depends on is not there or not in order.
    Dependency,
    /// More processes than a transaction has.
    Processes,
    /// More memory than there is for it.
    Memory,
    /// Anything else.
    Other,
}

impl FindingKind {
    /// The kind as it stands in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Preinst => "preinst",
            Self::Postinst => "postinst",
            Self::Prerm => "prerm",
            Self::Postrm => "postrm",
            Self::Trigger => "trigger",
            Self::FileConflict => "file_conflict",
            Self::DiskSpace => "disk_space",
            Self::Dependency => "dependency",
            Self::Processes => "processes",
            Self::Memory => "memory",
            Self::Other => "other",
        }
    }
}

impl std::fmt::Display for FindingKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Something that went wrong in a rehearsal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Finding {
    /// Where.
    pub kind: FindingKind,
    /// The package, as the package manager spells it, if it is one's.
    pub package: Option<String>,
    /// The package manager's words.
    pub message: String,
    /// The end of what was printed in that step: a maintainer script's own words.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub output: Vec<String>,
}

/// What came of a rehearsal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RehearsalReport {
    /// What it says of the real run.
    pub verdict: RehearsalVerdict,
    /// Why it was not rehearsed, or what fails first: one sentence.
    pub reason: Option<String>,
    /// What went wrong, in the order in which it did.
    #[serde(default)]
    pub findings: Vec<Finding>,
    /// Configuration files that the administrator changed and of which the new version has another one: the real run keeps
    /// the administrator's.
    #[serde(default)]
    pub conffiles: Vec<String>,
    /// Commands that an image cannot run, since it has no devices: that they were called is all that is known.
    #[serde(default)]
    pub not_run: Vec<String>,
    /// File systems of the host that the image had not.
    #[serde(default)]
    pub left_out: Vec<String>,
    /// How long it took, in milliseconds.
    #[serde(default)]
    pub took_ms: u64,
    /// How much was written, in bytes.
    #[serde(default)]
    pub written_bytes: u64,
}

impl RehearsalReport {
    /// One of a rehearsal that there was not.
    #[must_use]
    pub fn not_rehearsed(reason: impl Into<String>) -> Self {
        Self {
            verdict: RehearsalVerdict::NotRehearsed,
            reason: Some(reason.into()),
            findings: Vec::new(),
            conffiles: Vec::new(),
            not_run: Vec::new(),
            left_out: Vec::new(),
            took_ms: 0,
            written_bytes: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde::de::DeserializeOwned;
    use serde_json::json;

    use super::*;

    /// All words that are read as such a value, out of what is said of one that is not; each is shown as it is written.
    fn words<T: Serialize + DeserializeOwned>(as_str: impl Fn(T) -> String) -> BTreeSet<String> {
        let error = serde_json::from_value::<T>(json!("?")).err().unwrap().to_string();
        let (_, expected) = error.split_once(", expected ").unwrap();
        let words: BTreeSet<String> = expected.split('`').skip(1).step_by(2).map(str::to_owned).collect();
        for word in &words {
            let value: T = serde_json::from_value(json!(word)).unwrap();
            assert_eq!(serde_json::to_value(&value).unwrap(), json!(word));
            assert_eq!(as_str(value), *word);
        }
        words
    }

    #[test]
    fn what_is_shown_is_what_stands_in_json() {
        let choices = words(|choice: Unrehearsed| choice.as_str().to_owned());
        assert_eq!(choices.len(), 2, "{choices:?}");
        let verdicts = words(|verdict: RehearsalVerdict| {
            assert_eq!(verdict.to_string(), verdict.as_str());
            verdict.as_str().to_owned()
        });
        assert!(verdicts.contains("well") && verdicts.contains("not_rehearsed"), "{verdicts:?}");
        let kinds = words(|kind: FindingKind| {
            assert_eq!(kind.to_string(), kind.as_str());
            kind.as_str().to_owned()
        });
        assert!(kinds.contains("file_conflict") && kinds.contains("other"), "{kinds:?}");
    }

    #[test]
    fn without_a_rehearsal_nothing_is_changed_unless_it_was_asked_for() {
        let rehearse: Rehearse = serde_json::from_str("{}").unwrap();
        assert_eq!(rehearse, Rehearse { only: false, otherwise: Unrehearsed::Refuse });
        assert!(serde_json::from_str::<Rehearse>(r#"{"onyl": true}"#).is_err());
    }

    #[test]
    fn a_rehearsal_that_there_was_not_tells_why_and_nothing_else() {
        let report = RehearsalReport::not_rehearsed("there is no room");
        // As short as anybody may have written it.
        let short = r#"{"verdict": "not_rehearsed", "reason": "there is no room"}"#;
        assert_eq!(serde_json::from_str::<RehearsalReport>(short).unwrap(), report);
        let text = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<RehearsalReport>(&text).unwrap(), report);
    }
}
