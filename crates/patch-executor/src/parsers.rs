//! What the root side reads from its disk, as functions of bytes: for fuzzing alone. The program is `main.rs`.
#![expect(dead_code, reason = "only the parsing is called here; the program calls the rest")]

mod clock;
mod journal;
mod paths;
mod settings;

use std::path::Path;

/// Reads a change's journal as it lies on disk. Gives it as it would be written again.
#[must_use]
pub fn journal(text: &[u8]) -> Option<Vec<u8>> {
    let record: journal::Record = serde_json::from_slice(text).ok()?;
    let _ = record.state.phase();
    serde_json::to_vec(&record).ok()
}

/// Reads `ceiling.yaml`.
///
/// # Errors
/// With what is wrong with it.
pub fn ceiling(text: &str) -> Result<(), String> {
    patch_backends::ceiling::parse(text).map(drop)
}

/// Reads what the root side takes from `config.yaml`.
///
/// # Errors
/// With what is wrong with it.
pub fn settings(text: &str) -> Result<(), String> {
    settings::Settings::parse(text, Path::new("config.yaml")).map(drop).map_err(|error| error.message)
}
