//! Signed heads of a trail: made by the root side, checked by everybody.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek as _, SeekFrom, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use jiff::Timestamp;
use patch_types::{api::AuditHead, executor::Checkpoint};

use crate::{chain::Head, event::AuditKind};

/// The largest file of keys or of a head that is read, in bytes.
const LARGEST: u64 = 64 << 10;

/// The root side's key: its secret half in a file of root's own, its public half beside it for everybody.
#[derive(Debug)]
pub struct Key {
    signing: SigningKey,
    public: String,
}

impl Key {
    /// Reads the key, or makes it if there is none. The file of public keys gets the key's line if it lacks it; the lines
    /// of former keys stay, since they vouch for what was signed with them.
    ///
    /// # Errors
    /// When a file cannot be read or written, or is not a key.
    pub fn open(secret: &Path, public: &Path) -> io::Result<Self> {
        let seed = match fs::read_to_string(secret) {
            Ok(text) => seed(text.trim())
                .ok_or_else(|| io::Error::other(format!("{} is not a key", secret.display())))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let mut seed = [0; 32];
                File::open("/dev/urandom")?.read_exact(&mut seed)?;
                // Under its name only when it is whole and on disk: a key that is torn would be one that is lost.
                replace(secret, format!("{}\n", hex::encode(seed)).as_bytes(), 0o600)?;
                seed
            }
            Err(error) => return Err(error),
        };
        let signing = SigningKey::from_bytes(&seed);
        let key = Self { public: hex::encode(signing.verifying_key().to_bytes()), signing };
        let mut known = match read_bounded(public) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error),
        };
        if known.lines().next_back() != Some(&key.public) {
            known.push_str(&key.public);
            known.push('\n');
            replace(public, known.as_bytes(), 0o644)?;
        }
        Ok(key)
    }

    /// Signs a head.
    #[must_use]
    pub fn sign(&self, head: Head, at: Timestamp) -> Checkpoint {
        let head = AuditHead::from(head);
        let signature = self.signing.sign(Checkpoint::statement(&head, at).as_bytes());
        Checkpoint { head, at, key: self.public.clone(), signature: hex::encode(signature.to_bytes()) }
    }
}

/// The public keys whose signatures count.
#[derive(Debug, Clone, Default)]
pub struct PublicKeys(Vec<(String, VerifyingKey)>);

impl PublicKeys {
    /// Reads them from a file with one on each line. Lines that are none are passed over.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read(path: &Path) -> io::Result<Self> {
        Ok(Self::parse(&read_bounded(path)?))
    }

    /// Takes them from a text with one on each line.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let key = |line: &str| {
            let line = line.trim();
            Some((line.to_owned(), VerifyingKey::from_bytes(&seed(line)?).ok()?))
        };
        Self(text.lines().filter_map(key).collect())
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The head that a checkpoint vouches for; none if the signature is not one of these keys'.
    #[must_use]
    pub fn check(&self, checkpoint: &Checkpoint) -> Option<Head> {
        let head = Head::try_from(&checkpoint.head).ok()?;
        let (_, key) = self.0.iter().find(|(text, _)| *text == checkpoint.key)?;
        let mut signature = [0; 64];
        hex::decode_to_slice(&checkpoint.signature, &mut signature).ok()?;
        let statement = Checkpoint::statement(&checkpoint.head, checkpoint.at);
        key.verify_strict(statement.as_bytes(), &Signature::from_bytes(&signature)).ok()?;
        Some(head)
    }
}

/// Reads the last checkpoint that the root side keeps; none if there is no file.
///
/// # Errors
/// When the file cannot be read or is not a checkpoint.
pub fn read_checkpoint(path: &Path) -> io::Result<Option<Checkpoint>> {
    match read_bounded(path) {
        Ok(text) => serde_json::from_str(&text)
            .map(Some)
            .map_err(|error| io::Error::other(format!("{} is not a checkpoint: {error}", path.display()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Keeps a checkpoint: when this returns it is on disk.
///
/// # Errors
/// When it is not; the one before is then still there.
pub fn write_checkpoint(path: &Path, checkpoint: &Checkpoint) -> io::Result<()> {
    let mut text = serde_json::to_vec(checkpoint).map_err(io::Error::other)?;
    text.push(b'\n');
    replace(path, &text, 0o644)
}

/// The shortest time between two heads that are kept, in seconds.
const APART: i64 = 20;
/// How long all of those are kept, in seconds; then the last of each hour.
const ALL: i64 = 86400;
/// How long those are; then the last of each day.
const HOURLY: i64 = 90 * 86400;
/// The largest file of kept heads that is read, in bytes: years of them are a few MiB.
const LARGEST_HEADS: u64 = 64 << 20;

/// Reads the signed heads that are kept, oldest first; none if there is no file. Lines that are none are passed over: a
/// crash may have torn one.
///
/// # Errors
/// When the file cannot be read.
pub fn read_heads(path: &Path) -> io::Result<Vec<Checkpoint>> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(file) => file.take(LARGEST_HEADS).read_to_end(&mut bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    Ok(bytes.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

/// Keeps a signed head beside those that were kept before, which no rotation of any record removes: when this returns it is
/// on disk. Whether it was kept: one that was signed seconds after the last one is not. Once a day the file is thinned out.
///
/// # Errors
/// When it is not on disk.
pub fn keep_head(path: &Path, checkpoint: &Checkpoint) -> io::Result<bool> {
    let now = checkpoint.at.as_second();
    let kept = read_heads(path)?;
    let last = kept.last().map(|last| last.at.as_second());
    if last.is_some_and(|last| (now - last).abs() < APART) {
        return Ok(false);
    }
    let mut line = serde_json::to_vec(checkpoint).map_err(io::Error::other)?;
    line.push(b'\n');
    if last.is_some_and(|last| last.div_euclid(86400) != now.div_euclid(86400)) {
        let mut text = Vec::new();
        for old in thinned(kept, now) {
            serde_json::to_writer(&mut text, &old)?;
            text.push(b'\n');
        }
        text.extend(line);
        replace(path, &text, 0o600)?;
        return Ok(true);
    }
    let is_new = last.is_none();
    let mut file = OpenOptions::new().append(true).read(true).create(true).mode(0o600).open(path)?;
    if file.metadata()?.len() > 0 {
        let mut end = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut end)?;
        if end != *b"\n" {
            line.insert(0, b'\n');
        }
    }
    file.write_all(&line)?;
    file.sync_all()?;
    if is_new {
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()?;
    }
    Ok(true)
}

/// Leaves of old heads the last of each hour, of very old ones the last of each day.
fn thinned(heads: Vec<Checkpoint>, now: i64) -> Vec<Checkpoint> {
    let period = |head: &Checkpoint| {
        let at = head.at.as_second();
        match now.saturating_sub(at) {
            age if age <= ALL => (0, at),
            age if age <= HOURLY => (1, at.div_euclid(3600)),
            _ => (2, at.div_euclid(86400)),
        }
    };
    let mut left: Vec<Checkpoint> = Vec::new();
    for head in heads {
        match left.last_mut() {
            Some(last) if period(last) == period(&head) => *last = head,
            _ => left.push(head),
        }
    }
    left
}

impl From<&Checkpoint> for AuditKind {
    fn from(checkpoint: &Checkpoint) -> Self {
        Self::Checkpoint {
            head_seq: checkpoint.head.seq,
            head_hash: checkpoint.head.hash.clone(),
            signed_at: checkpoint.at,
            key: checkpoint.key.clone(),
            signature: checkpoint.signature.clone(),
        }
    }
}

impl AuditKind {
    /// The checkpoint that a record holds.
    #[must_use]
    pub fn checkpoint(&self) -> Option<Checkpoint> {
        let Self::Checkpoint { head_seq, head_hash, signed_at, key, signature } = self else { return None };
        Some(Checkpoint {
            head: AuditHead { seq: *head_seq, hash: head_hash.clone() },
            at: *signed_at,
            key: key.clone(),
            signature: signature.clone(),
        })
    }
}

fn seed(digits: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    hex::decode_to_slice(digits, &mut bytes).ok()?;
    Some(bytes)
}

fn read_bounded(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(LARGEST).read_to_string(&mut text)?;
    Ok(text)
}

/// Writes a file anew: at every moment either the old one is there, or the new one, whole.
pub(crate) fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new: PathBuf = path.with_file_name(name);
    let _ = fs::remove_file(&new);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
    let written = file.set_permissions(fs::Permissions::from_mode(mode)).and_then(|()| {
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
    });
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::Hash;

    #[test]
    fn what_is_signed_is_checked() {
        let dir = tempfile::tempdir().unwrap();
        let (secret, public) = (dir.path().join("key"), dir.path().join("pub"));
        let key = Key::open(&secret, &public).unwrap();
        assert_eq!(fs::metadata(&secret).unwrap().permissions().mode() & 0o777, 0o600);
        let head = Head { seq: 7, hash: Hash::of(b"x") };
        let signed = key.sign(head, Timestamp::UNIX_EPOCH);
        let keys = PublicKeys::read(&public).unwrap();
        assert_eq!(keys.check(&signed), Some(head));
        assert_eq!(AuditKind::from(&signed).checkpoint(), Some(signed.clone()));
        // The same key again, whoever opens it.
        assert_eq!(Key::open(&secret, &public).unwrap().sign(head, Timestamp::UNIX_EPOCH), signed);

        let mut other = signed.clone();
        other.head.seq = 8;
        assert_eq!(keys.check(&other), None);
        let mut other = signed.clone();
        other.at = Timestamp::MAX;
        assert_eq!(keys.check(&other), None);
        let mut other = signed.clone();
        other.signature.replace_range(0..2, "zz");
        assert_eq!(keys.check(&other), None);

        // A key that is lost is replaced, and what the former one signed still counts.
        fs::remove_file(&secret).unwrap();
        let new = Key::open(&secret, &public).unwrap().sign(head, Timestamp::UNIX_EPOCH);
        let keys = PublicKeys::read(&public).unwrap();
        assert!(keys.check(&new).is_some() && keys.check(&signed).is_some());
        assert_ne!(new.key, signed.key);
    }

    #[test]
    fn heads_are_kept_and_thinned_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("heads.jsonl");
        let key = Key::open(&dir.path().join("key"), &dir.path().join("pub")).unwrap();
        let start = 1_700_006_400;
        let keep = |seq: u64, after: i64| {
            let at = Timestamp::from_second(start + after).unwrap();
            keep_head(&path, &key.sign(Head { seq, hash: Hash::ZERO }, at)).unwrap()
        };
        let seqs = || read_heads(&path).unwrap().iter().map(|c| c.head.seq).collect::<Vec<_>>();
        assert!(seqs().is_empty());
        assert!(keep(1, 0) && !keep(2, 19) && keep(3, 20) && keep(4, 3600));
        assert_eq!(seqs(), [1, 3, 4]);
        // Torn by a crash.
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"head\":").unwrap();
        assert!(keep(5, 3700));
        assert_eq!(seqs(), [1, 3, 4, 5]);
        // Two days later one of each hour is left, after a hundred one of each day.
        assert!(keep(6, 2 * 86400));
        assert_eq!(seqs(), [3, 5, 6]);
        assert!(keep(7, 100 * 86400));
        assert_eq!(seqs(), [5, 6, 7]);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn the_last_checkpoint_is_kept_or_absent() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("checkpoint.json");
        assert_eq!(read_checkpoint(&path).unwrap(), None);
        let key = Key::open(&dir.path().join("key"), &dir.path().join("pub")).unwrap();
        let signed = key.sign(Head { seq: 1, hash: Hash::ZERO }, Timestamp::UNIX_EPOCH);
        write_checkpoint(&path, &signed).unwrap();
        assert_eq!(read_checkpoint(&path).unwrap(), Some(signed));
        fs::write(&path, "x").unwrap();
        assert!(read_checkpoint(&path).is_err());
    }
}
