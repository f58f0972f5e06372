//! apt's marks: which packages were installed only because others need them (`/var/lib/apt/extended_states`).

use std::{collections::HashSet, fs, io, path::Path};

use super::deb822;
use crate::ReadError;

/// The file, below the root.
pub const EXTENDED_STATES: &str = "var/lib/apt/extended_states";

/// The marks of one root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExtendedStates {
    /// `NAME ARCHITECTURE` of what is marked automatic.
    auto: HashSet<Box<str>>,
}

impl ExtendedStates {
    /// Reads the marks; a file that does not exist marks nothing.
    ///
    /// # Errors
    /// When the file exists and cannot be read.
    pub fn read(root: &Path) -> Result<Self, ReadError> {
        let path = root.join(EXTENDED_STATES);
        match fs::read(&path) {
            Ok(text) => Ok(Self::parse(&text)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(e) => Err(ReadError::new(&path, e)),
        }
    }

    /// Parses the file's text.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        let auto = deb822::stanzas(text)
            .filter(|s| s.get("Auto-Installed") == Some(b"1"))
            .filter_map(|s| {
                let name = s.text("Package")?;
                let architecture = s.text("Architecture").unwrap_or_default();
                Some(format!("{name} {architecture}").into_boxed_str())
            })
            .collect();
        Self { auto }
    }

    /// Whether a package is marked automatic. apt files those of architecture `all` under the native one.
    #[must_use]
    pub fn is_auto(&self, name: &str, architecture: &str, native: &str) -> bool {
        let architecture = if architecture == "all" { native } else { architecture };
        self.auto.contains(format!("{name} {architecture}").as_str())
    }

    /// How many packages are marked.
    #[must_use]
    pub fn len(&self) -> usize {
        self.auto.len()
    }

    /// Whether none is.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.auto.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_by_architecture_and_all_is_native() {
        let states = ExtendedStates::parse(
            b"Package: aa\nArchitecture: amd64\nAuto-Installed: 1\n\nPackage: bb\nArchitecture: i386\nAuto-Installed: 1\n\n\
              Package: cc\nArchitecture: amd64\nAuto-Installed: 0\n\nAuto-Installed: 1\n",
        );
        assert_eq!(states.len(), 2);
        assert!(states.is_auto("aa", "all", "amd64") && states.is_auto("aa", "amd64", "amd64"));
        assert!(states.is_auto("bb", "i386", "amd64") && !states.is_auto("bb", "amd64", "amd64"));
        assert!(!states.is_auto("cc", "amd64", "amd64"));
    }

    #[test]
    fn no_file_marks_nothing() {
        let root = tempfile::tempdir().unwrap();
        assert!(ExtendedStates::read(root.path()).unwrap().is_empty());
        // One that cannot be read is not taken for none: what is marked would not be known.
        fs::create_dir_all(root.path().join(EXTENDED_STATES)).unwrap();
        assert!(ExtendedStates::read(root.path()).unwrap_err().path.ends_with(EXTENDED_STATES));
    }
}
