//! What still runs old code: patched on disk is not yet safe in memory.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::job::JobId;

/// What runs code that has been replaced on disk: processes by what they belong to, the kernel, and the processors'
/// microcode.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StaleReport {
    /// What has processes that map replaced files: services first, by name; not more than 500.
    pub owners: Vec<StaleOwner>,
    /// How many more processes map replaced files, of owners beyond the first 500.
    #[serde(default)]
    pub unnamed: usize,
    /// The kernel.
    pub kernel: KernelCode,
    /// The processors' microcode.
    pub microcode: MicrocodeCode,
    /// How many processes were looked at.
    pub processes: usize,
    /// How many processes could not be read, or not to their end. Whether they run old code is not known.
    pub unread: usize,
    /// Why.
    #[serde(default)]
    pub why_unread: WhyUnread,
}

/// Why processes could not be read, or not to their end: how many for which reason.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WhyUnread {
    /// The kernel refused: it takes root to read the processes of others.
    pub refused: usize,
    /// They map more than is read of one process.
    pub too_much: usize,
    /// They did not answer in time, or their turn did not come in the time that there is for all.
    pub out_of_time: usize,
    /// Reading failed in another way.
    pub failed: usize,
}

impl StaleReport {
    /// Whether all processes were read to their end.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.unread == 0
    }

    /// Whether nothing is known to run old code. Unless [`Self::is_whole`], something may do so all the same.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.owners.is_empty()
            && self.unnamed == 0
            && self.kernel.old != Some(true)
            && self.microcode.old != Some(true)
    }
}

/// One service, session or container with processes that map replaced files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StaleOwner {
    /// What it is.
    pub owner: Owner,
    /// What ends it.
    pub advice: Advice,
    /// Why it must not be restarted just so; null if nothing is known against it.
    pub care: Option<Care>,
    /// Its processes that map replaced files, by id; not more than 20.
    pub processes: Vec<StaleProcess>,
    /// How many there are.
    pub process_count: usize,
    /// The replaced files, by name; not more than 20. Bytes that cannot be shown are escaped as `\xNN`.
    pub files: Vec<String>,
    /// How many there are; counted up to 1000.
    pub file_count: usize,
}

/// A process that maps replaced files. Its command line is left out on purpose: passwords stand in some.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StaleProcess {
    /// Its id.
    pub pid: u32,
    /// What it calls itself, which is not to be trusted; escaped.
    pub name: String,
}

/// What a process belongs to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Owner {
    /// The first process of the host.
    Init,
    /// A unit of the system, such as `ssh.service`.
    Unit {
        /// Its name.
        name: String,
    },
    /// A user's login session.
    Session {
        /// The user's id.
        uid: u32,
        /// The session's id, as `loginctl` shows it.
        session: String,
    },
    /// A user's own service manager, or what it has started.
    UserManager {
        /// The user's id.
        uid: u32,
        /// Which unit of it; null for the manager itself.
        unit: Option<String>,
    },
    /// A container.
    Container {
        /// `docker`, `podman`, `kubernetes`, `lxc`, `nspawn`, `qemu`, or `unknown`: in a namespace of process ids of its own.
        runtime: String,
        /// Its id or name, as far as it is known.
        id: String,
        /// The id of the user whose service manager it runs below, so that all of this is that user's word; null if it is
        /// the host's.
        #[serde(default)]
        uid: Option<u32>,
    },
    /// None of these.
    Process {
        /// The id of the user it runs as.
        uid: u32,
    },
}

/// Short, for people: `ssh.service`, `session 3 of user 1000`.
impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Init => f.write_str("init"),
            Self::Unit { name } => f.write_str(name),
            Self::Session { uid, session } => write!(f, "session {session} of user {uid}"),
            Self::UserManager { uid, unit: None } => write!(f, "service manager of user {uid}"),
            Self::UserManager { uid, unit: Some(unit) } => write!(f, "{unit} of user {uid}"),
            Self::Container { runtime, id, uid: None } if runtime == "unknown" => {
                write!(f, "a container {id}")
            }
            Self::Container { runtime, id, uid: None } => write!(f, "{runtime} container {id}"),
            Self::Container { runtime, id, uid: Some(uid) } => {
                write!(f, "{runtime} container {id} of user {uid}")
            }
            Self::Process { uid } => write!(f, "processes of user {uid}"),
        }
    }
}

/// The restart of a service that waits for the window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingRestart {
    /// The service.
    pub unit: String,
    /// The job after which it is due.
    pub job: JobId,
    /// When it became so.
    pub since: Timestamp,
    /// The boot in which that was: another one has started the service anew.
    pub boot: String,
    /// Then, in microseconds of the kernel's clock that is never set: what was started later runs new code.
    pub monotonic_us: u64,
    /// Whether its package's scripts wanted to restart it and were kept from it. Then it is due also if it is not seen to
    /// run old code.
    pub held_back: bool,
}

/// What brings the new code into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Advice {
    /// Restart the unit.
    Restart,
    /// Have the first process execute itself anew, which ends nothing.
    Reexec,
    /// The user logs out of the session, or of all of them.
    LogOut,
    /// Update the container's image, and make the container anew.
    Recreate,
    /// End the processes, and start them anew.
    StartAnew,
    /// Reboot: it cannot be restarted while the host is in use.
    Reboot,
}

/// Why a unit is restarted by a person, at a time that suits, and never because of a default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum Care {
    /// It keeps data, and may be in the middle of a migration.
    Database,
    /// It holds messages of others.
    MessageBroker,
    /// Guests or containers hang on it.
    Virtualization,
    /// It serves storage to others, or keeps it together.
    Storage,
    /// A restart ends what people have on their screens.
    DisplayManager,
    /// People are logged in through it.
    Sessions,
    /// The host's way to the network.
    Network,
    /// Nearly everything talks through it.
    SystemBus,
}

impl Care {
    /// What is at stake, in a few words.
    #[must_use]
    pub fn reason(self) -> &'static str {
        match self {
            Self::Database => "a database",
            Self::MessageBroker => "a message broker",
            Self::Virtualization => "guests or containers hang on it",
            Self::Storage => "storage hangs on it",
            Self::DisplayManager => "it ends graphical sessions",
            Self::Sessions => "people are logged in through it",
            Self::Network => "the way to the network",
            Self::SystemBus => "nearly everything talks through it",
        }
    }
}

/// Which kernel runs, and whether it is the one that would be booted.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KernelCode {
    /// The running kernel's release.
    pub running: String,
    /// The newest installed release of the same flavour; null if no kernel is installed, as in a container.
    pub installed: Option<String>,
    /// Whether a newer one is installed than runs; null if that cannot be known.
    pub old: Option<bool>,
    /// Why, in a sentence; null if it is not old.
    pub reason: Option<String>,
}

/// Which microcode the processors run, and whether a newer one is on disk.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MicrocodeCode {
    /// The revision that runs, such as `0x2b000603`; null if the kernel does not say. The lowest, if processors differ.
    pub running: Option<String>,
    /// The revision on disk for this processor; null if there is none, or it cannot be told.
    pub installed: Option<String>,
    /// Whether it is older than the one on disk; null if that cannot be known: in a guest it is the machine's business,
    /// and only Intel's files are understood.
    pub old: Option<bool>,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn owners_survive_json_and_are_shown_short() {
        let owners = [
            (Owner::Init, "init"),
            (Owner::Unit { name: "ssh.service".into() }, "ssh.service"),
            (Owner::Session { uid: 1000, session: "3".into() }, "session 3 of user 1000"),
            (Owner::UserManager { uid: 5, unit: None }, "service manager of user 5"),
            (Owner::UserManager { uid: 5, unit: Some("a.service".into()) }, "a.service of user 5"),
            (
                Owner::Container { runtime: "docker".into(), id: "ab12".into(), uid: None },
                "docker container ab12",
            ),
            (
                Owner::Container { runtime: "podman".into(), id: "ab12".into(), uid: Some(5) },
                "podman container ab12 of user 5",
            ),
            (Owner::Process { uid: 0 }, "processes of user 0"),
        ];
        for (owner, shown) in owners {
            assert_eq!(owner.to_string(), shown);
            let json = serde_json::to_string(&owner).unwrap();
            assert_eq!(serde_json::from_str::<Owner>(&json).unwrap(), owner, "{json}");
        }
    }

    #[test]
    fn whoever_is_to_restart_it_is_told_what_is_at_stake() {
        let words = [
            (Care::Database, "database"),
            (Care::MessageBroker, "message"),
            (Care::Virtualization, "guests"),
            (Care::Storage, "storage"),
            (Care::DisplayManager, "graphical"),
            (Care::Sessions, "logged in"),
            (Care::Network, "network"),
            (Care::SystemBus, "everything"),
        ];
        // They follow a colon, so they are no sentences; and none stands for another.
        let is_phrase = |reason: &str| {
            reason.starts_with(|c: char| c.is_ascii_lowercase())
                && !reason.ends_with('.')
                && !reason.contains(['\n', ':'])
        };
        for (care, word) in words {
            let reason = care.reason();
            assert!(reason.contains(word) && is_phrase(reason), "{care:?}: {reason}");
        }
        let told_apart: BTreeSet<&str> = words.into_iter().map(|(care, _)| care.reason()).collect();
        assert_eq!(told_apart.len(), words.len());
    }

    #[test]
    fn what_cannot_be_known_is_not_old() {
        let mut report = StaleReport::default();
        assert!(report.is_clean());
        report.microcode.old = Some(true);
        assert!(!report.is_clean());
        report.microcode.old = Some(false);
        report.kernel.old = Some(true);
        assert!(!report.is_clean());
        report.kernel.old = None;
        report.unnamed = 1;
        assert!(!report.is_clean());
    }

    #[test]
    fn what_was_not_read_is_not_whole() {
        let mut report = StaleReport::default();
        assert!(report.is_whole());
        report.unread = 1;
        assert!(report.is_clean() && !report.is_whole());
        // As it was written before it was said why.
        let mut value = serde_json::to_value(&report).unwrap();
        for key in ["why_unread", "unnamed"] {
            value.as_object_mut().unwrap().remove(key).unwrap();
        }
        assert_eq!(serde_json::from_value::<StaleReport>(value).unwrap(), report);
    }
}
