//! Signing heads of the network side's audit trail.
//!
//! The key and the last head are kept here, where the network side writes nothing: it can go on with its trail, but it
//! cannot take back what lies before a head that was signed without that showing.

use std::{fs::OpenOptions, os::unix::fs::OpenOptionsExt as _};

use anyhow::Context;
use jiff::Timestamp;
use patch_audit::{
    AuditEvent, AuditKind, Caller, Head, Key, MAX_SEQ, keep_head, read_checkpoint, write_checkpoint,
};
use patch_types::{ErrorCode, ErrorDetail, api::AuditHead, executor::Checkpoint};
use rustix::fs::{FlockOperation, flock};

use crate::{
    paths::Paths,
    record::{self, Refused},
};

/// How many records a trail may have grown by since the last signature. Nothing writes so many in ten minutes, or on an
/// agent that the root side does not answer in years; but one signature of a number near the end would be the last.
const MAX_JUMP: u64 = 100_000_000;

/// Signs a head, or refuses one that contradicts the last that was signed.
///
/// # Errors
/// `SIGNATURE_ERROR` when the head contradicts it; whatever keeps the key or the head from being read or kept.
pub(crate) fn sign(paths: &Paths, head: &AuditHead) -> anyhow::Result<Checkpoint> {
    let wanted = Head::try_from(head)
        .map_err(|error| ErrorDetail::new(ErrorCode::InvalidRequest, error.to_string()))?;
    let lock = paths.state().join("checkpoint.lock");
    // Whoever can open a file can hold its lock.
    let lock = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&lock)
        .with_context(|| format!("cannot open {}", lock.display()))?;
    flock(&lock, FlockOperation::LockExclusive).context("cannot wait for another checkpoint")?;

    let kept = paths.checkpoint();
    let last = read_checkpoint(&kept).with_context(|| format!("cannot read {}", kept.display()))?;
    if let Some(last) = &last {
        if last.head == *head {
            return Ok(last.clone());
        }
        if head.seq <= last.head.seq {
            let reason = format!(
                "record {} was signed before at {}, and a trail that ends with another record {} contradicts that: it was \
                 cut off, or written anew. See `linux-patch-api audit verify`",
                last.head.seq, last.at, head.seq
            );
            let kind = AuditKind::CheckpointRefused {
                head_seq: head.seq,
                head_hash: head.hash.clone(),
                reason: reason.clone(),
            };
            record::refusal(paths, Refused::Signature, AuditEvent::new(kind, &Caller::local()));
            return Err(ErrorDetail::new(ErrorCode::SignatureError, reason).into());
        }
    }
    let from = last.map_or(0, |last| last.head.seq);
    let highest = if from == 0 { MAX_SEQ / 2 } else { from.saturating_add(MAX_JUMP) };
    if head.seq > highest {
        let reason = format!(
            "record {} is further from the last signed one, {from}, than any trail grows; `linux-patch-api audit verify` tells \
             whether it is there. If it is, remove {} as root",
            head.seq,
            kept.display()
        );
        let kind = AuditKind::CheckpointRefused {
            head_seq: head.seq,
            head_hash: head.hash.clone(),
            reason: reason.clone(),
        };
        record::refusal(paths, Refused::Signature, AuditEvent::new(kind, &Caller::local()));
        return Err(ErrorDetail::new(ErrorCode::SignatureError, reason).into());
    }
    let secret = paths.state().join("checkpoint.key");
    let key =
        Key::open(&secret, &paths.checkpoint_keys()).context("the key for checkpoints cannot be used")?;
    let checkpoint = key.sign(wanted, Timestamp::now());
    // First where it stays: whoever has many signed must not make the earlier ones forgotten.
    let heads = paths.checkpoint_heads();
    let is_kept =
        keep_head(&heads, &checkpoint).with_context(|| format!("cannot add to {}", heads.display()))?;
    write_checkpoint(&kept, &checkpoint).with_context(|| format!("cannot keep {}", kept.display()))?;
    if is_kept {
        record::note(paths, vec![AuditEvent::new((&checkpoint).into(), &Caller::local())]);
    }
    drop(lock);
    Ok(checkpoint)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use patch_audit::{Hash, PublicKeys};

    use super::*;

    fn head(seq: u64, text: &str) -> AuditHead {
        Head { seq, hash: Hash::of(text.as_bytes()) }.into()
    }

    #[test]
    fn a_head_that_contradicts_the_last_one_is_not_signed_and_that_is_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::below(dir.path().to_owned());
        fs::create_dir_all(paths.state()).unwrap();
        let first = sign(&paths, &head(5, "a")).unwrap();
        assert_eq!(sign(&paths, &head(5, "a")).unwrap(), first, "asked again");
        for contradiction in [head(5, "b"), head(4, "a"), head(1, "z")] {
            let error = sign(&paths, &contradiction).unwrap_err();
            assert_eq!(error.downcast_ref::<ErrorDetail>().unwrap().code, ErrorCode::SignatureError);
        }
        let next = sign(&paths, &head(6, "c")).unwrap();
        let keys = PublicKeys::read(&paths.checkpoint_keys()).unwrap();
        assert!(keys.check(&first).is_some() && keys.check(&next).is_some());
        assert!(sign(&paths, &head(u64::MAX, "x")).is_err());
        assert!(sign(&paths, &head(7 + MAX_JUMP, "x")).is_err());
        assert!(sign(&paths, &head(7, "d")).is_ok(), "signing goes on");
        assert!(sign(&paths, &AuditHead { seq: 9, hash: "\n".into() }).is_err());
        let record = fs::read_to_string(paths.record()).unwrap();
        assert_eq!(record.matches("\"event\":\"checkpoint\"").count(), 1, "one in so many seconds");
        assert_eq!(record.matches("\"event\":\"checkpoint_refused\"").count(), 5);
    }
}
