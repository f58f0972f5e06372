//! Dependencies and the other relations between packages (`deb-control(5)`).

use std::cmp::Ordering;

use super::versions;

/// One package that a relation names, with the condition on its version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alternative<'a> {
    /// The package.
    pub name: &'a str,
    /// The architecture after its name: `any`, `native` or an architecture.
    pub qualifier: Option<&'a str>,
    /// The operator and the version.
    pub version: Option<(&'a str, &'a str)>,
}

impl Alternative<'_> {
    /// Whether a version meets the condition.
    #[must_use]
    pub fn accepts(&self, version: &str) -> bool {
        let Some((operator, wanted)) = self.version else { return true };
        let order = versions::compare(version, wanted);
        match operator {
            "<<" => order == Ordering::Less,
            // dpkg reads the old single signs as "or equal".
            "<=" | "<" => order != Ordering::Greater,
            "=" => order == Ordering::Equal,
            ">=" | ">" => order != Ordering::Less,
            ">>" => order == Ordering::Greater,
            _ => false,
        }
    }

    /// Whether a `Provides` field provides what is asked for. An unversioned provision meets no versioned condition.
    #[must_use]
    pub fn provided_by(&self, provides: &str) -> bool {
        groups(provides).flat_map(alternatives).any(|provided| {
            provided.name == self.name
                && match (self.version, provided.version) {
                    (None, _) => true,
                    (Some(_), Some((_, version))) => self.accepts(version),
                    (Some(_), None) => false,
                }
        })
    }
}

/// The comma-separated parts of a field, without line breaks and white space around them.
pub fn groups(field: &str) -> impl Iterator<Item = &str> {
    field.split(',').map(str::trim).filter(|g| !g.is_empty())
}

/// The same as owned texts, in the notation of the field.
#[must_use]
pub fn split(field: &str) -> Vec<String> {
    groups(field).map(|g| g.split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

/// The alternatives of one part.
pub fn alternatives(group: &str) -> impl Iterator<Item = Alternative<'_>> {
    group.split('|').filter_map(alternative)
}

fn alternative(text: &str) -> Option<Alternative<'_>> {
    // Restrictions by architecture and build profile occur in source packages only.
    let text = text.split(['[', '<']).next().filter(|t| !t.contains('(') || t.contains(')')).unwrap_or(text);
    let (name, condition) = match text.split_once('(') {
        Some((name, rest)) => (name.trim(), Some(rest.split(')').next().unwrap_or(rest).trim())),
        None => (text.trim(), None),
    };
    let version = condition.map(|c| {
        let at = c.find(|c: char| !"<>=".contains(c)).unwrap_or(c.len());
        (&c[..at], c[at..].trim())
    });
    let (name, qualifier) = match name.split_once(':') {
        Some((name, qualifier)) => (name, Some(qualifier)),
        None => (name, None),
    };
    (!name.is_empty()).then_some(Alternative { name, qualifier, version })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn relations_are_taken_apart() {
        let field =
            "libc6 (>= 2.34), python3:any | perl (<< 5.40),\n debconf (>= 0.5) | debconf-2.0, x [amd64]";
        assert_eq!(
            split(field),
            [
                "libc6 (>= 2.34)",
                "python3:any | perl (<< 5.40)",
                "debconf (>= 0.5) | debconf-2.0",
                "x [amd64]"
            ]
        );
        let all: Vec<_> = groups(field).flat_map(alternatives).collect();
        assert_eq!(all[0], Alternative { name: "libc6", qualifier: None, version: Some((">=", "2.34")) });
        assert_eq!(all[1], Alternative { name: "python3", qualifier: Some("any"), version: None });
        assert_eq!(all[2].version, Some(("<<", "5.40")));
        assert_eq!(all[5].name, "x");
    }

    #[test]
    fn conditions_hold_as_for_dpkg() {
        let one = |text| alternatives(text).next().unwrap();
        for (text, version, holds) in [
            ("a", "0", true),
            ("a (= 1.0)", "1.0-0", true),
            ("a (>= 1.0)", "1.0~rc1", false),
            ("a (<< 1.0)", "1.0", false),
            ("a (<= 1.0)", "1.0", true),
            ("a (>> 1.0)", "1.0-1", true),
            ("a (>1.0)", "1.0", true),
            ("a (~ 1.0)", "1.0", false),
        ] {
            assert_eq!(one(text).accepts(version), holds, "{text} {version}");
        }
        assert!(one("awk").provided_by("mawk, awk"));
        assert!(!one("awk (>= 1)").provided_by("mawk, awk"));
        assert!(one("awk (>= 1)").provided_by("awk (= 2)"));
        assert!(!one("awk").provided_by(""));
    }

    proptest! {
        #[test]
        fn any_field_is_read(field in "[a-z ,|()<>=:\\[\\]0-9é\n]{0,60}") {
            for group in groups(&field) {
                for alternative in alternatives(group) {
                    let _ = alternative.accepts("1");
                }
            }
        }
    }
}
