//! What is remembered between runs: one file, written anew and renamed, so that it is there whole or not at all.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt as _,
};

use anyhow::Context;
use jiff::Timestamp;
use patch_policy::reboot::{Ledger, Remembered};
use serde::{Deserialize, Serialize};

use super::{fleet_lock::Server, machine::Machine, settings::Program};

const NAME: &str = "reboot-window.json";

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct State {
    #[serde(default)]
    causes: BTreeMap<String, Known>,
    /// What was begun and is not over.
    #[serde(default)]
    pub(super) pending: Option<Pending>,
    /// What was recorded last.
    #[serde(default)]
    pub(super) told: Option<Told>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Known {
    since: Timestamp,
    absent_since: Option<Timestamp>,
    rebooted: Option<Timestamp>,
}

/// How far a reboot has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Phase {
    /// The lock is asked for, or the host is drained.
    Preparing,
    /// systemd was told, or is about to be.
    Rebooting,
    /// What was done for it is taken back.
    Undoing,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Pending {
    pub(super) phase: Phase,
    /// The boot in which it began.
    pub(super) boot: String,
    /// When it got into this phase.
    pub(super) at: Timestamp,
    /// Why the host is rebooted.
    pub(super) why: String,
    /// The host is drained, or may be.
    pub(super) drained: bool,
    /// The fleet's lock is held, or may be.
    pub(super) locked: bool,
    /// What had failed before.
    pub(super) failed_units: Vec<String>,
    /// How it is taken back, as it was configured when it began; the configuration may be another one by then.
    #[serde(default)]
    pub(super) back: Option<Back>,
}

/// How what was done for a reboot is taken back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Back {
    /// None if nothing was configured to be run for it.
    pub(super) undrain: Option<Program>,
    /// For the program; the file may hold secrets, and this one is root's alone as well.
    pub(super) environment: Vec<(String, String)>,
    /// Who was asked for the fleet's lock.
    pub(super) server: Option<Server>,
    /// How often that one, which is not configured any more, did not take the lock back.
    #[serde(default)]
    pub(super) former_tries: u32,
    /// Since when, as far as the settings could be read.
    #[serde(default)]
    pub(super) former_since: Option<Timestamp>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Told {
    pub(super) what: String,
    pub(super) at: Timestamp,
}

impl State {
    /// Reads it; an absent one is empty.
    ///
    /// # Errors
    /// When it cannot be read. An empty one in its place would let the host be rebooted again for what it was rebooted for.
    pub(super) fn load(machine: &Machine) -> anyhow::Result<Self> {
        let path = machine.own(NAME);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(error).with_context(|| format!("{} cannot be read", path.display())),
        };
        serde_json::from_slice(&text)
            .with_context(|| format!("{} is damaged; remove it if the host is in order", path.display()))
    }

    /// Writes it durably.
    ///
    /// # Errors
    /// When it is not on disk.
    pub(super) fn save(&self, machine: &Machine) -> anyhow::Result<()> {
        let (path, new) = (machine.own(NAME), machine.own(&format!(".{NAME}.new")));
        let write = || -> io::Result<()> {
            let text = serde_json::to_vec(self).map_err(io::Error::other)?;
            let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&new, &path)?;
            File::open(machine.own(""))?.sync_all()
        };
        write().with_context(|| format!("{} cannot be written", path.display()))
    }

    pub(super) fn ledger(&self) -> Ledger {
        let causes = self.causes.iter().map(|(fingerprint, known)| {
            let Known { since, absent_since, rebooted } = *known;
            (fingerprint.clone(), Remembered { since, absent_since, rebooted })
        });
        Ledger { causes: causes.collect() }
    }

    pub(super) fn set_ledger(&mut self, ledger: Ledger) {
        let causes = ledger.causes.into_iter().map(|(fingerprint, known)| {
            let Remembered { since, absent_since, rebooted } = known;
            (fingerprint, Known { since, absent_since, rebooted })
        });
        self.causes = causes.collect();
    }
}
