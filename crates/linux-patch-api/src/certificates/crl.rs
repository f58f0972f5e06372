//! Which revocation list is in force: of the configured file and the copy that the agent keeps, whichever is newer.
//!
//! The agent cannot write its configuration, so a list that came over the API lives in the agent's state; so does a copy
//! of the last good list, so that neither a deleted file nor a restart lets revoked certificates in again. A list goes
//! by its number: one with a lower number than was ever in force is never put in force again.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use patch_service::{CrlFacts, PemInput, TlsError, VerifiedCrl, certificate, tls};
use serde::{Deserialize, Serialize};

use crate::config::STATE_DIR;

/// The copy of the lists in force.
const KEPT: &str = "crl.pem";

/// What is remembered about them.
const MEMORY: &str = "crl.json";

/// Where the lists in force came from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Origin {
    /// From the configured file.
    #[default]
    File,
    /// Over the API.
    Upload,
}

/// What outlives the lists themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Memory {
    /// The highest number that was ever in force, by the SHA-256 of the key that signed it.
    numbers: BTreeMap<String, String>,
    /// Where the lists in force came from.
    pub(super) origin: Origin,
    /// Who signed lists of which nobody knows any more how high their numbers were. Only a newer list ends that, for its
    /// signer.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    doubtful: BTreeSet<String>,
    /// Whether there is something to remember that cannot be read. That is not the same as nothing.
    #[serde(skip)]
    pub(super) is_damaged: bool,
}

/// Who may sign a CA's lists.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Signers {
    all: BTreeSet<String>,
    /// Those by whom somebody can still be let in. What is wrong with the lists of the others harms nobody.
    living: BTreeSet<String>,
}

impl Signers {
    /// Those of a CA's certificates. If all have expired, all count.
    pub(super) fn of(ca: Vec<(String, Timestamp)>, now: Timestamp) -> Self {
        let is_living = |one: &&(String, Timestamp)| tls::is_good_at(one.1, now);
        let living: BTreeSet<_> = ca.iter().filter(is_living).map(|(signer, _)| signer.clone()).collect();
        let all: BTreeSet<_> = ca.into_iter().map(|(signer, _)| signer).collect();
        let living = if living.is_empty() { all.clone() } else { living };
        Self { all, living }
    }
}

impl Memory {
    /// The highest number of a signer.
    pub(super) fn highest(&self, signer: &str) -> Option<&str> {
        self.numbers.get(signer).map(String::as_str)
    }

    /// Those of whose lists it is not known how new they have to be; also those whom the CA does not have at this time,
    /// since it may have them again.
    pub(super) fn doubtful(&self, signers: &Signers) -> BTreeSet<String> {
        let mut doubtful = self.doubtful.clone();
        if self.is_damaged {
            doubtful.extend(signers.all.iter().cloned());
        }
        doubtful
    }

    /// Forgets the doubts: what is in force was put there by a process that knew more.
    pub(super) fn trust(&mut self, in_force: &[VerifiedCrl]) {
        self.is_damaged = false;
        self.note(in_force);
        for list in in_force {
            self.doubtful.remove(&list.facts.signer);
        }
    }

    /// Takes over the doubts of the process that runs: they may not have got to the disk.
    pub(super) fn doubt(&mut self, doubtful: &BTreeSet<String>) {
        self.doubtful.extend(doubtful.iter().cloned());
    }

    /// Takes note of lists that are in force.
    pub(super) fn note(&mut self, lists: &[VerifiedCrl]) {
        for facts in lists.iter().map(|list| &list.facts) {
            let Some(number) = facts.number.as_deref() else { continue };
            if CrlFacts::compare_numbers(self.highest(&facts.signer), Some(number)) == Ordering::Less {
                self.numbers.insert(facts.signer.clone(), number.to_owned());
            }
        }
    }
}

/// The lists to be put in force, and what is wrong with how they were come by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Choice {
    /// At most one a signer.
    pub(super) lists: Vec<VerifiedCrl>,
    /// Why the configured file is not what is in force, if that asks for attention.
    pub(super) problem: Option<Problem>,
    /// Whether only older lists could be had than were in force before: nobody can be trusted then.
    pub(super) is_stale: bool,
    /// Whether one of them is known to be older.
    pub(super) is_behind: bool,
    /// Those of whose lists it is not known how new they have to be, also if the CA does not have them at this time.
    pub(super) doubtful: BTreeSet<String>,
    /// Those of the lists that are newer than the configured file's.
    kept: Vec<String>,
}

impl Choice {
    /// Whether a list is in force although the configured file does not hold it.
    pub(super) fn is_kept(&self, list: &VerifiedCrl) -> bool {
        self.kept.contains(&list.facts.sha256)
    }
}

/// What is wrong with the configured file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Problem {
    /// It cannot be used.
    Invalid(String),
    /// It is not there any more.
    Gone(String),
}

impl Problem {
    /// One sentence.
    pub(super) fn message(&self) -> &str {
        match self {
            Self::Invalid(message) | Self::Gone(message) => message,
        }
    }
}

/// Chooses among the lists of the configured file (none if there is no such file), those that were good before, and what
/// is remembered. `signers` are the CA's.
pub(super) fn choose(
    path: &Path,
    configured: Result<Option<Vec<VerifiedCrl>>, TlsError>,
    good: Vec<VerifiedCrl>,
    memory: &Memory,
    signers: &Signers,
) -> Choice {
    let path = path.display();
    let numbers = numbers(&good);
    let problem = match &configured {
        Err(error) if good.is_empty() => Some(Problem::Invalid(error.to_string())),
        Err(error) => {
            Some(Problem::Invalid(format!("{error}; the last good list ({numbers}) stays in force")))
        }
        Ok(None) if !good.is_empty() && memory.origin == Origin::File => Some(Problem::Gone(format!(
            "{path} is gone; the last good list ({numbers}) stays in force; put the file back, or send a list with PUT \
             /api/v1/system/crl"
        ))),
        Ok(_) => None,
    };
    let mut lists: Vec<VerifiedCrl> = Vec::new();
    let configured = configured.ok().flatten().unwrap_or_default();
    let in_file: Vec<String> = configured.iter().map(|list| list.facts.sha256.clone()).collect();
    // Only what is newer than all that was good before can make up for a memory that is lost: each signer's for its own.
    let mut doubtful = memory.doubtful(signers);
    for list in &configured {
        let before = good.iter().find(|other| other.facts.signer == list.facts.signer);
        if before.is_some_and(|before| order(&list.facts, &before.facts) == Ordering::Greater) {
            doubtful.remove(&list.facts.signer);
        }
    }
    // A list of one that is in doubt, and has none yet, might be an old one. The others go on without it, since by itself it
    // shuts out nobody else.
    let has_good = |signer: &String| good.iter().any(|other| other.facts.signer == *signer);
    let (mut unsure, configured): (Vec<_>, Vec<_>) = configured
        .into_iter()
        .partition(|list| doubtful.contains(&list.facts.signer) && !has_good(&list.facts.signer));
    let (configured, unsure) = match configured.is_empty() && good.is_empty() {
        true => (unsure, None),
        false => {
            unsure.retain(|list| signers.living.contains(&list.facts.signer));
            (configured, unsure.first().map(|list| list.facts.issuer.clone()))
        }
    };
    for list in configured.into_iter().chain(good) {
        match lists.iter_mut().find(|other| other.facts.signer == list.facts.signer) {
            Some(other) if order(&list.facts, &other.facts) == Ordering::Greater => *other = list,
            Some(_) => {}
            None => lists.push(list),
        }
    }
    let behind = behind(&lists, memory, signers);
    let is_forgotten = is_forgotten(&lists, &doubtful, signers);
    let (is_behind, is_stale) = (behind.is_some(), behind.is_some() || is_forgotten);
    let problem = match behind {
        Some(Behind { number, highest }) => Some(Problem::Invalid(format!(
            "the revocation list has the number {number}, but number {highest} was in force here before; only a newer \
             list opens this host again: put it at {path}, or send it with PUT /api/v1/system/crl",
        ))),
        None if is_forgotten => Some(Problem::Invalid(format!(
            "which revocation lists were in force here before could not be read ({STATE_DIR}/{MEMORY} and {KEPT}, see the \
             log), so a revoked client could be taken for a good one; only a newer list, of each CA that has one, opens \
             this host again: put it at {path}, or send it with PUT /api/v1/system/crl; or stop linux-patch-api, remove \
             both files, and start it",
        ))),
        None if unsure.is_some() => Some(Problem::Invalid(format!(
            "the list of {} in {path} is not put in force, and its clients are refused: which lists of that CA were in \
             force here before could not be read, so this may be an old one; stop linux-patch-api, remove \
             {STATE_DIR}/{MEMORY} and {KEPT}, and start it",
            unsure.unwrap_or_default()
        ))),
        None => problem,
    };
    let kept = lists.iter().map(|list| list.facts.sha256.clone()).filter(|s| !in_file.contains(s)).collect();
    Choice { lists, problem, is_stale, is_behind, doubtful, kept }
}

/// Whether a list is in force that may be older than one before. Who has none is let in by nobody, unless there is none at
/// all.
pub(super) fn is_forgotten(lists: &[VerifiedCrl], doubtful: &BTreeSet<String>, signers: &Signers) -> bool {
    let mut doubtful = doubtful.intersection(&signers.living).peekable();
    doubtful.peek().is_some()
        && (lists.is_empty() || doubtful.any(|signer| lists.iter().any(|list| list.facts.signer == *signer)))
}

/// How far lists are behind what was in force before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Behind {
    number: String,
    highest: String,
}

/// The first of the CA's signers whose list is older than one that was in force before, or missing.
pub(super) fn behind(lists: &[VerifiedCrl], memory: &Memory, signers: &Signers) -> Option<Behind> {
    signers.living.iter().find_map(|signer| {
        let highest = memory.highest(signer)?;
        let list = lists.iter().find(|list| list.facts.signer == *signer);
        let number = list.and_then(|list| list.facts.number.as_deref());
        (CrlFacts::compare_numbers(number, Some(highest)) == Ordering::Less)
            .then(|| Behind { number: number.unwrap_or("none").to_owned(), highest: highest.to_owned() })
    })
}

fn order(a: &CrlFacts, b: &CrlFacts) -> Ordering {
    CrlFacts::compare_numbers(a.number.as_deref(), b.number.as_deref())
        .then_with(|| a.this_update.cmp(&b.this_update))
}

fn numbers(lists: &[VerifiedCrl]) -> String {
    let numbers: Vec<_> = lists.iter().map(|l| l.facts.number.as_deref().unwrap_or("none")).collect();
    format!("number {}", numbers.join(", "))
}

/// The agent's own copy of the lists, and what it remembers of them.
#[derive(Debug, Clone)]
pub(super) struct Store {
    directory: PathBuf,
}

impl Store {
    /// Below the root prefix.
    pub(super) fn new(root: &Path) -> Self {
        Self { directory: root.join(STATE_DIR) }
    }

    fn kept(&self) -> PathBuf {
        self.directory.join(KEPT)
    }

    /// The lists that are kept, as far as they are the CA's; none if there are none, or if they are damaged, which is
    /// said in the log.
    pub(super) fn lists(&self, ca: &PemInput) -> Vec<VerifiedCrl> {
        let path = self.kept();
        if !super::is_there(&path) {
            return Vec::new();
        }
        match PemInput::read(&path).and_then(|kept| tls::own_crls(&kept, ca)) {
            Ok(lists) => lists,
            Err(error) => {
                tracing::error!(%error, "the kept copy of the revocation list cannot be used");
                Vec::new()
            }
        }
    }

    /// What is remembered. Damage is said in the log, and noted.
    pub(super) fn memory(&self) -> Memory {
        let path = self.directory.join(MEMORY);
        let read = match fs::read(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                // The numbers stand in the lists, too.
                let kept = self.kept();
                let is_damaged =
                    super::is_there(&kept) && PemInput::read(&kept).and_then(|k| k.crls()).is_err();
                return Memory { is_damaged, ..Memory::default() };
            }
            read => read.and_then(|text| Ok(serde_json::from_slice(&text)?)),
        };
        read.unwrap_or_else(|error| {
            tracing::error!(%error, path = %path.display(), "the numbers of former revocation lists cannot be read");
            Memory { is_damaged: true, ..Memory::default() }
        })
    }

    /// Remembers the lists in force, and of whose it is not known how new they have to be, so that it survives a loss of
    /// power. What is as it was is not written.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn keep(
        &self,
        lists: &[VerifiedCrl],
        memory: &Memory,
        origin: Origin,
        doubtful: &BTreeSet<String>,
    ) -> io::Result<()> {
        let mut next = Memory { origin, is_damaged: false, doubtful: doubtful.clone(), ..memory.clone() };
        next.note(lists);
        // The lists first: one that is kept without its number is only newer than the numbers say, but a number without
        // its list would shut this host.
        let text = pem(lists);
        let before = fs::read(self.kept());
        let is_other = !lists.is_empty() && before.as_ref().ok().map(Vec::as_slice) != Some(text.as_bytes());
        if is_other {
            write_durably(&self.kept(), text.as_bytes())?;
        }
        if next == self.memory() {
            return Ok(());
        }
        write_durably(&self.directory.join(MEMORY), &serde_json::to_vec(&next)?).inspect_err(|_| {
            // Whoever hears that nothing has changed should be right. If this fails too, the newer list stays for the
            // next start, which is no harm.
            if is_other {
                let _ = match &before {
                    Ok(before) => write_durably(&self.kept(), before),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => fs::remove_file(self.kept()),
                    Err(_) => Ok(()),
                };
            }
        })
    }
}

/// Writes a file so that whatever happens there is either the old one or the new one.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let directory = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_string_lossy();
    let new = directory.join(format!(".{name}.new"));
    let write = || {
        // Not `create_new`: a leftover of a write that failed half-way is simply overwritten.
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(directory)?.sync_all()
    };
    write().inspect_err(|_| {
        // On a full disk this gives back what the attempt took.
        let _ = fs::remove_file(&new);
    })
}

/// The lists in PEM.
fn pem(lists: &[VerifiedCrl]) -> String {
    lists.iter().map(|list| certificate::crl_in_pem(list.der())).collect()
}

/// A list as a client sends it: PEM, or the DER of one list in base64.
pub(super) fn uploaded(text: &str) -> PemInput {
    let name = "the list sent";
    let bare: String = text.split_ascii_whitespace().collect();
    let is_base64 =
        !bare.is_empty() && bare.bytes().all(|b| b.is_ascii_alphanumeric() || b"+/=".contains(&b));
    if is_base64 { PemInput::new(name, certificate::armoured_crl(&bare)) } else { PemInput::new(name, text) }
}

#[cfg(test)]
mod tests {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use jiff::{SignedDuration, Timestamp};
    use patch_service::pki;

    use super::*;

    struct Ca {
        dir: tempfile::TempDir,
    }

    impl Ca {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            pki::init(dir.path(), &["h".to_owned()], &[], &[], pki::Existing::Keep).unwrap();
            Self { dir }
        }

        fn pem(&self) -> PemInput {
            PemInput::read(&self.dir.path().join("ca.pem")).unwrap()
        }

        fn signers(&self) -> Signers {
            of(&[self])
        }

        fn signer(&self) -> String {
            tls::signers(&self.pem()).unwrap().remove(0).0
        }

        fn text(&self, number: u64) -> String {
            let now = Timestamp::now();
            let later = now + SignedDuration::from_hours(24);
            pki::make_crl(self.dir.path(), &[], number, now, later).unwrap()
        }

        fn list(&self, number: u64) -> Vec<VerifiedCrl> {
            tls::verify_crl(&PemInput::new("f", self.text(number)), &self.pem()).unwrap()
        }
    }

    fn of(cas: &[&Ca]) -> Signers {
        let all: BTreeSet<_> = cas.iter().map(|ca| ca.signer()).collect();
        Signers { living: all.clone(), all }
    }

    fn chosen(choice: &Choice) -> Vec<&str> {
        choice.lists.iter().map(|l| l.facts.number.as_deref().unwrap()).collect()
    }

    #[test]
    fn the_higher_number_wins_whatever_it_came_from() {
        let ca = Ca::new();
        let path = Path::new("/crl.pem");
        let memory = Memory::default();
        let pick = |file: Option<u64>, kept: Option<u64>, memory: &Memory| {
            choose(
                path,
                Ok(file.map(|n| ca.list(n))),
                kept.map(|n| ca.list(n)).unwrap_or_default(),
                memory,
                &ca.signers(),
            )
        };
        for (file, kept, wanted) in
            [(Some(9), Some(10), "a"), (Some(16), Some(10), "10"), (Some(3), None, "3"), (None, Some(3), "3")]
        {
            assert_eq!(chosen(&pick(file, kept, &memory)), [wanted], "{file:?} {kept:?}");
        }
        assert_eq!(pick(Some(3), Some(4), &memory).problem, None, "a newer list over the API is no fault");
        assert_eq!(pick(None, None, &memory), Choice::default());
        let gone = pick(None, Some(3), &memory);
        assert!(matches!(&gone.problem, Some(Problem::Gone(m)) if m.contains("number 3")), "{gone:?}");
        let sent = Memory { origin: Origin::Upload, ..Memory::default() };
        assert_eq!(pick(None, Some(3), &sent).problem, None, "it never was a file");

        let invalid = choose(
            path,
            Err(TlsError::EncryptedKey { file: "f".into() }),
            ca.list(3),
            &memory,
            &ca.signers(),
        );
        assert_eq!(chosen(&invalid), ["3"]);
        assert!(matches!(&invalid.problem, Some(Problem::Invalid(m)) if m.contains("stays in force")));
    }

    #[test]
    fn a_number_below_the_highest_ever_is_stale() {
        let (ca, other) = (Ca::new(), Ca::new());
        let mut memory = Memory::default();
        memory.note(&ca.list(20));
        memory.note(&ca.list(7));
        let pick = |ca: &Ca, lists| choose(Path::new("/c"), Ok(lists), vec![], &memory, &ca.signers());
        let stale = pick(&ca, Some(ca.list(19)));
        assert!(
            stale.is_stale
                && matches!(&stale.problem, Some(Problem::Invalid(m)) if m.contains("13") && m.contains("14"))
        );
        assert!(!pick(&ca, Some(ca.list(20))).is_stale);
        assert!(pick(&ca, None).is_stale, "a list that is lost is no list that never was");
        // A CA that was made anew under its old name counts from the start.
        assert!(!pick(&other, Some(other.list(1))).is_stale);
        assert!(!pick(&other, None).is_stale);
    }

    #[test]
    fn the_list_of_one_ca_does_not_make_up_for_anothers() {
        let (ca, other) = (Ca::new(), Ca::new());
        let mut memory = Memory::default();
        memory.note(&[ca.list(2), other.list(9)].concat());
        let is_behind = |lists: &[VerifiedCrl]| behind(lists, &memory, &of(&[&ca, &other])).is_some();
        assert!(is_behind(&[ca.list(3), other.list(8)].concat()));
        assert!(is_behind(&ca.list(3)));
        assert!(!is_behind(&[ca.list(3), other.list(9)].concat()));
    }

    #[test]
    fn a_memory_that_is_damaged_is_made_up_for_by_a_newer_list_only() {
        let ca = Ca::new();
        let memory = Memory { is_damaged: true, ..Memory::default() };
        let pick = |file: Option<u64>, kept: Option<u64>| {
            let kept = kept.map(|n| ca.list(n)).unwrap_or_default();
            choose(Path::new("/c"), Ok(file.map(|n| ca.list(n))), kept, &memory, &ca.signers()).is_stale
        };
        for (file, kept) in [(None, None), (None, Some(3)), (Some(3), None), (Some(2), Some(3))] {
            assert!(pick(file, kept), "{file:?} {kept:?}");
        }
        assert!(!pick(Some(4), Some(3)));
    }

    #[test]
    fn doubts_end_ca_by_ca() {
        let (ca, other) = (Ca::new(), Ca::new());
        let two = other.signer();
        let signers = self::of(&[&ca, &other]);
        let damaged = Memory { is_damaged: true, ..Memory::default() };
        let of = |doubtful: &[&String]| Memory {
            doubtful: doubtful.iter().map(|signer| (*signer).clone()).collect(),
            ..Memory::default()
        };
        let pick = |file: Vec<VerifiedCrl>, good: Vec<VerifiedCrl>, memory: &Memory| {
            choose(Path::new("/c"), Ok(Some(file)), good, memory, &signers)
        };
        let choice = pick(ca.list(4), [ca.list(3), other.list(5)].concat(), &damaged);
        assert!(
            choice.is_stale && !choice.is_behind && choice.doubtful == of(&[&two]).doubtful,
            "{choice:?}"
        );
        let good = || [ca.list(4), other.list(5)].concat();
        assert!(pick(ca.list(5), good(), &of(&[&two])).is_stale);
        let choice = pick([ca.list(4), other.list(6)].concat(), good(), &of(&[&two]));
        assert!(!choice.is_stale && choice.doubtful.is_empty() && choice.problem.is_none(), "{choice:?}");
        // The first list of one that is in doubt is not put in force, and shuts out nobody else.
        let choice = pick([ca.list(4), other.list(1)].concat(), ca.list(3), &damaged);
        assert!(!choice.is_stale && choice.doubtful == of(&[&two]).doubtful, "{choice:?}");
        assert_eq!(chosen(&choice), ["4"]);
        assert!(
            matches!(&choice.problem, Some(Problem::Invalid(m)) if m.contains("its clients are refused"))
        );
        // While a CA is not trusted, doubts about it harm nobody; when it is trusted again, they are there.
        let choice = choose(Path::new("/c"), Ok(Some(ca.list(4))), vec![], &of(&[&two]), &self::of(&[&ca]));
        assert!(!choice.is_stale && choice.doubtful == of(&[&two]).doubtful, "{choice:?}");
        let put_back = Memory { doubtful: choice.doubtful, ..Memory::default() };
        let choice = pick(other.list(1), ca.list(4), &put_back);
        assert_eq!(chosen(&choice), ["4"]);
    }

    #[test]
    fn what_is_kept_survives_and_is_only_the_cas_own() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join(STATE_DIR)).unwrap();
        let store = Store::new(root.path());
        let (ca, other) = (Ca::new(), Ca::new());
        assert!(store.lists(&ca.pem()).is_empty());
        let lists = ca.list(5);
        store.keep(&lists, &store.memory(), Origin::Upload, &BTreeSet::new()).unwrap();
        assert_eq!(store.lists(&ca.pem()), lists);
        assert_eq!(store.memory().origin, Origin::Upload);
        assert_eq!(store.memory().highest(&lists[0].facts.signer), Some("5"));
        assert!(store.lists(&other.pem()).is_empty(), "another CA of the same name");
        store.keep(&ca.list(4), &store.memory(), Origin::File, &BTreeSet::new()).unwrap();
        assert_eq!(store.memory().highest(&lists[0].facts.signer), Some("5"), "numbers only grow");
        for file in [KEPT, MEMORY] {
            fs::write(root.path().join(STATE_DIR).join(file), "rubbish").unwrap();
        }
        assert!(store.lists(&ca.pem()).is_empty() && store.memory().is_damaged);
        fs::remove_file(root.path().join(STATE_DIR).join(MEMORY)).unwrap();
        assert!(store.memory().is_damaged, "the copy is damaged still");
        fs::remove_file(root.path().join(STATE_DIR).join(KEPT)).unwrap();
        assert_eq!(store.memory(), Memory::default(), "who removes both wants none");
    }

    #[test]
    fn what_cannot_be_kept_leaves_what_was_kept() {
        let root = tempfile::tempdir().unwrap();
        let state = root.path().join(STATE_DIR);
        fs::create_dir_all(&state).unwrap();
        let store = Store::new(root.path());
        let ca = Ca::new();
        let five = ca.list(5);
        store.keep(&five, &store.memory(), Origin::File, &BTreeSet::new()).unwrap();
        let memory = store.memory();
        for blocked in [KEPT, MEMORY] {
            // A directory in the place of the new file: it cannot be written, whoever runs this.
            let new = state.join(format!(".{blocked}.new"));
            fs::create_dir(&new).unwrap();
            store.keep(&ca.list(6), &memory, Origin::Upload, &BTreeSet::new()).unwrap_err();
            fs::remove_dir(&new).unwrap();
            assert_eq!((store.lists(&ca.pem()), store.memory()), (five.clone(), memory.clone()), "{blocked}");
        }
        // A version to come may remember more.
        fs::write(state.join(MEMORY), r#"{"numbers": {"a": "5"}, "more": 1}"#).unwrap();
        assert_eq!(store.memory().highest("a"), Some("5"));
    }

    #[test]
    fn pem_and_base64_are_read() {
        let ca = Ca::new();
        let list = ca.list(2);
        let base64 = STANDARD.encode(list[0].der());
        for text in [ca.text(2), base64.clone(), format!("{}\n{}\n", &base64[..64], &base64[64..])] {
            let found = tls::verify_crl(&uploaded(&text), &ca.pem()).unwrap();
            assert_eq!(found[0].facts.number.as_deref(), Some("2"));
        }
        for bad in ["", "x", "MII", "-----BEGIN X509 CRL-----\nMII\n-----END X509 CRL-----", "é"] {
            assert!(tls::verify_crl(&uploaded(bad), &ca.pem()).is_err(), "{bad}");
        }
    }
}
