//! Names and versions of packages, parsed once at the edge.
//!
//! The grammar is dpkg's (`deb-control(5)`, `deb-version(7)`), bounded at 256 characters. Nothing that passes can start
//! with `-`, hold a space, a slash, a NUL, a shell character, `..` or anything outside ASCII.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// The longest name or version that is accepted, in characters (the grammar is ASCII, so also in bytes).
pub const MAX_NAME_LEN: usize = 256;

/// Why a text is not a name or a version. `Display` is a sentence for the person who sent it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("{what} must not be empty")]
    Empty {
        /// What was parsed, such as "a package name".
        what: &'static str,
    },
    /// More than [`MAX_NAME_LEN`] characters.
    #[error("{what} has {length} characters; at most {MAX_NAME_LEN} are allowed")]
    TooLong {
        /// What was parsed.
        what: &'static str,
        /// Its length in bytes.
        length: usize,
    },
    /// The first character is not one that may come first.
    #[error("{what} must start with {expected}, not with {found:?}")]
    Start {
        /// What was parsed.
        what: &'static str,
        /// What may come first.
        expected: &'static str,
        /// What came first.
        found: char,
    },
    /// A character that the grammar does not have.
    #[error("{what} must not contain {found:?}; allowed are {allowed}")]
    Character {
        /// What was parsed.
        what: &'static str,
        /// The first offending character.
        found: char,
        /// What is allowed.
        allowed: &'static str,
    },
    /// Well-formed characters in an order that has no meaning.
    #[error("{what} is malformed: {reason}")]
    Malformed {
        /// What was parsed.
        what: &'static str,
        /// What is wrong with it.
        reason: &'static str,
    },
}

fn check(
    what: &'static str,
    text: &str,
    first: fn(u8) -> bool,
    expected: &'static str,
    rest: fn(u8) -> bool,
    allowed: &'static str,
) -> Result<(), NameError> {
    let Some(found) = text.chars().next() else { return Err(NameError::Empty { what }) };
    if text.len() > MAX_NAME_LEN {
        return Err(NameError::TooLong { what, length: text.len() });
    }
    if !u8::try_from(found).is_ok_and(first) {
        return Err(NameError::Start { what, expected, found });
    }
    match text.chars().find(|c| !u8::try_from(*c).is_ok_and(rest)) {
        Some(found) => Err(NameError::Character { what, found, allowed }),
        None if text.contains("..") => Err(NameError::Malformed { what, reason: "it contains \"..\"" }),
        None => Ok(()),
    }
}

macro_rules! text_type {
    ($type:ident) => {
        impl $type {
            /// The text as it was given.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                Self::check(&text)?;
                Ok(Self(text))
            }
        }

        impl FromStr for $type {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::check(text)?;
                Ok(Self(text.to_owned()))
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> Self {
                value.0
            }
        }
    };
}

/// The name of a package, with an architecture qualifier if one was given: `libc6` or `libc6:i386`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(value_type = String, max_length = 256, pattern = r"^[a-z0-9](\.?[a-z0-9+-])*(\.|\.?[a-z0-9+])(:[a-z0-9][a-z0-9-]*)?$", examples("libc6", "libc6:i386")))]
pub struct PackageName(String);

text_type!(PackageName);

impl PackageName {
    fn check(text: &str) -> Result<(), NameError> {
        const WHAT: &str = "a package name";
        if text.len() > MAX_NAME_LEN {
            return Err(NameError::TooLong { what: WHAT, length: text.len() });
        }
        let (name, architecture) = match text.split_once(':') {
            Some((name, architecture)) => (name, Some(architecture)),
            None => (text, None),
        };
        check(
            WHAT,
            name,
            |b| b.is_ascii_lowercase() || b.is_ascii_digit(),
            "a lower-case letter or a digit",
            |b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b),
            "lower-case letters, digits, '+', '-', '.' and one ':' before an architecture",
        )?;
        // apt reads a trailing `+` or `-` on a name as "install" or "remove" when no such package exists.
        // Real names such as `g++` end in `+`, so only the argv layer can deal with it: it always adds `:arch` or
        // `=version`. A trailing `-` exists in no archive.
        if name.ends_with('-') {
            return Err(NameError::Malformed {
                what: WHAT,
                reason: "it ends with '-', which apt reads as \"remove\"",
            });
        }
        if name.len() < 2 {
            return Err(NameError::Malformed { what: WHAT, reason: "it needs at least two characters" });
        }
        architecture.map_or(Ok(()), Architecture::check)
    }

    /// The name without its architecture qualifier.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.split_once(':').map_or(self.0.as_str(), |(name, _)| name)
    }

    /// The architecture qualifier, if one was given.
    #[must_use]
    pub fn architecture(&self) -> Option<&str> {
        self.0.split_once(':').map(|(_, architecture)| architecture)
    }

    /// This name with the given architecture in place of its own.
    #[must_use]
    pub fn with_architecture(&self, architecture: &Architecture) -> Self {
        Self(format!("{}:{architecture}", self.name()))
    }
}

/// A version as dpkg writes it: `[epoch:]upstream[-revision]`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(value_type = String, max_length = 256, pattern = r"^([0-9]{1,9}:)?[A-Za-z0-9]((\.?[A-Za-z0-9+~-])*(\.|\.?[A-Za-z0-9+~]))?$", examples("1:2.36-9+deb12u7")))]
pub struct PackageVersion(String);

text_type!(PackageVersion);

impl PackageVersion {
    fn check(text: &str) -> Result<(), NameError> {
        const WHAT: &str = "a version";
        check(
            WHAT,
            text,
            |b| b.is_ascii_alphanumeric(),
            "a letter or a digit",
            |b| b.is_ascii_alphanumeric() || b".+~:-".contains(&b),
            "letters, digits and . + ~ : -",
        )?;
        // No archive has such a version, and apt reads `name=1.0-` as "remove name" when it does not find it.
        if text.ends_with('-') {
            return Err(NameError::Malformed { what: WHAT, reason: "it ends with '-'" });
        }
        if let Some((epoch, rest)) = text.split_once(':')
            && (epoch.parse::<i32>().is_err() || rest.is_empty())
        {
            return Err(NameError::Malformed {
                what: WHAT,
                reason: "what precedes ':' is an epoch and must be a number, and something must follow it",
            });
        }
        Ok(())
    }
}

/// A package architecture such as `amd64` or `all`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "openapi", schema(value_type = String, examples("amd64", "all")))]
pub struct Architecture(String);

text_type!(Architecture);

impl Architecture {
    fn check(text: &str) -> Result<(), NameError> {
        check(
            "an architecture",
            text,
            |b| b.is_ascii_lowercase() || b.is_ascii_digit(),
            "a lower-case letter or a digit",
            |b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-',
            "lower-case letters, digits and '-'",
        )
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_of_the_archive_are_accepted() {
        for good in ["libc6", "libc6:i386", "g++", "0ad", "libstdc++6", "python3.11-minimal", "a1"] {
            assert_eq!(good.parse::<PackageName>().map(String::from), Ok(good.to_owned()));
        }
        let name: PackageName = "libc6:i386".parse().unwrap();
        assert_eq!((name.name(), name.architecture()), ("libc6", Some("i386")));
        assert!("a".repeat(256).parse::<PackageName>().is_ok());
    }

    #[test]
    fn names_that_could_do_harm_are_refused() {
        for bad in [
            "",
            "a",
            "-rf",
            "--reinstall",
            "a b",
            "a;b",
            "a$(b)",
            "../x",
            "a..b",
            "a/b",
            "a\0b",
            "a\nb",
            "ä",
            "apt\u{e9}",
            "Apt",
            "a=1",
            "apt:",
            "apt:-x",
            "apt:i386:x",
            "apt-",
            "apt_x",
            "a*b",
            "./a.deb",
        ] {
            assert!(bad.parse::<PackageName>().is_err(), "{bad:?} was accepted");
        }
        assert_eq!(
            "a".repeat(257).parse::<PackageName>(),
            Err(NameError::TooLong { what: "a package name", length: 257 })
        );
        assert!("1".repeat(256).parse::<PackageVersion>().is_ok());
        assert_eq!(
            "1".repeat(257).parse::<PackageVersion>(),
            Err(NameError::TooLong { what: "a version", length: 257 })
        );
        assert_eq!(
            "a".repeat(257).parse::<Architecture>(),
            Err(NameError::TooLong { what: "an architecture", length: 257 })
        );
    }

    #[test]
    fn versions_with_epochs_and_tildes_are_accepted_and_options_refused() {
        for good in ["1.0", "1:2.36-9+deb12u7", "1.0~rc1-1", "20240101", "v1"] {
            assert!(good.parse::<PackageVersion>().is_ok(), "{good:?} was refused");
        }
        for bad in ["", "-1", "~1", "1 0", "1/2", "x:1", "1:", "1;2", "1\n", "ä", "1_2", "1.0-"] {
            assert!(bad.parse::<PackageVersion>().is_err(), "{bad:?} was accepted");
        }
    }

    proptest! {
        #[test]
        fn nothing_that_parses_can_be_an_option_a_path_or_shell(text in "\\PC{0,40}") {
            if let Ok(name) = text.parse::<PackageName>() {
                prop_assert!(!name.as_str().starts_with('-'));
                prop_assert!(name.as_str().bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.:".contains(&b)));
            }
            if let Ok(version) = text.parse::<PackageVersion>() {
                prop_assert!(!version.as_str().starts_with('-'));
                prop_assert!(version.as_str().bytes().all(|b| b.is_ascii_alphanumeric() || b".+~:-".contains(&b)));
            }
        }
    }
}
