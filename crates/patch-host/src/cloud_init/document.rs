//! The parts of a `#cloud-config` that are used here.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_saphyr::DoubleQuoted;

/// The document.
#[derive(Debug, Clone, Serialize)]
pub(super) struct CloudConfig {
    pub(super) package_update: bool,
    pub(super) package_upgrade: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) package_reboot_if_required: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) apt: Option<Apt>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) packages: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) write_files: Vec<WriteFile>,
    /// Commands as lists, which no shell reads.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) runcmd: Vec<Vec<String>>,
}

impl Default for CloudConfig {
    fn default() -> Self {
        Self {
            package_update: true,
            package_upgrade: true,
            package_reboot_if_required: None,
            apt: None,
            packages: Vec::new(),
            write_files: Vec::new(),
            runcmd: Vec::new(),
        }
    }
}

impl CloudConfig {
    /// The document as cloud-init reads it.
    ///
    /// # Errors
    /// When something in it has no YAML.
    pub(super) fn text(&self) -> anyhow::Result<String> {
        Ok(format!("#cloud-config\n{}", serde_saphyr::to_string(self)?))
    }
}

/// apt's sources.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Apt {
    sources: BTreeMap<&'static str, AptSource>,
}

impl From<AptSource> for Apt {
    fn from(source: AptSource) -> Self {
        Self { sources: BTreeMap::from([("linux-patch.list", source)]) }
    }
}

/// One source, bound to its own key.
#[derive(Debug, Clone, Serialize)]
pub(super) struct AptSource {
    source: String,
    key: String,
}

impl AptSource {
    /// `rest` is `URI SUITE COMPONENT…`. cloud-init puts the key's file in the place of `$KEY_FILE`.
    pub(super) fn new(rest: &str, key: String) -> Self {
        Self { source: format!("deb [signed-by=$KEY_FILE] {rest}"), key }
    }
}

/// A file that is written at the first boot.
#[derive(Debug, Clone, Serialize)]
pub(super) struct WriteFile {
    path: String,
    /// In quotes: it is no number.
    permissions: DoubleQuoted<String>,
    owner: &'static str,
    #[serde(skip_serializing_if = "is_false")]
    defer: bool,
    content: String,
}

fn is_false(value: &bool) -> bool {
    !value
}

impl WriteFile {
    /// `path` is relative to the root.
    pub(super) fn new(path: &str, content: String, mode: u32) -> Self {
        let permissions = DoubleQuoted(format!("{mode:04o}"));
        Self { path: format!("/{path}"), permissions, owner: "root:root", defer: false, content }
    }

    /// The same, written after the packages are installed.
    pub(super) fn deferred(self, defer: bool) -> Self {
        Self { defer, ..self }
    }
}
