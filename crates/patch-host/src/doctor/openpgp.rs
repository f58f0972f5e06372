//! OpenPGP key files, as far as it takes to say when their keys expire (RFC 4880 and RFC 9580, keys of version 4).
//!
//! Signatures are not checked: whoever could forge an expiry here could as well replace the key.

use base64::{Engine, engine::general_purpose::STANDARD};

/// A primary key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    /// When it expires, in seconds since 1970; none if never.
    pub(super) expires: Option<u64>,
    /// Whether it was revoked.
    pub(super) revoked: bool,
}

/// The primary keys of a file, binary or in armour.
pub(super) fn keys(file: &[u8]) -> Vec<Key> {
    let dearmoured = dearmour(file);
    let mut rest = dearmoured.as_deref().unwrap_or(file);
    let mut keys: Vec<Key> = Vec::new();
    let mut created = 0;
    let mut is_primary = false;
    while let Some((tag, body, after)) = packet(rest) {
        rest = after;
        match tag {
            6 => {
                is_primary = false;
                if let Some((4, at)) = body.first().copied().zip(number(body.get(1..5))) {
                    created = at;
                    is_primary = true;
                    keys.push(Key { expires: None, revoked: false });
                }
            }
            // What follows a subkey is about the subkey.
            14 => is_primary = false,
            2 if is_primary => {
                if let (Some(key), Some((kind, lifetime))) = (keys.last_mut(), signature(body)) {
                    key.revoked |= kind == 0x20;
                    // Of several certifications the longest counts: a key's owner extends it by a new one.
                    if let (0x10..=0x13 | 0x1f, Some(lifetime)) = (kind, lifetime) {
                        let until = created.saturating_add(lifetime);
                        key.expires = Some(key.expires.map_or(until, |known| known.max(until)));
                    }
                }
            }
            _ => {}
        }
    }
    keys
}

fn dearmour(file: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(file).ok()?;
    let mut bytes = Vec::new();
    for block in text.split("-----BEGIN PGP PUBLIC KEY BLOCK-----").skip(1) {
        let block = block.split("-----END").next()?;
        let lines = block.lines().map(str::trim);
        let body: String =
            lines.filter(|line| !line.is_empty() && !line.contains(':') && !line.starts_with('=')).collect();
        bytes.extend(STANDARD.decode(body).ok()?);
    }
    (!bytes.is_empty()).then_some(bytes)
}

fn number(bytes: Option<&[u8]>) -> Option<u64> {
    Some(bytes?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn split(bytes: &[u8], at: u64) -> Option<(&[u8], &[u8])> {
    bytes.split_at_checked(usize::try_from(at).ok()?)
}

/// The first packet: its tag, its body, and what follows.
fn packet(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (head, rest) = bytes.split_first()?;
    let (tag, length, rest) = if head & 0xc0 == 0xc0 {
        let (length, rest) = new_length(rest)?;
        (head & 0x3f, length, rest)
    } else if head & 0x80 != 0 {
        let size = match head & 3 {
            0 => 1,
            1 => 2,
            2 => 4,
            _ => return None,
        };
        let (length, rest) = split(rest, size)?;
        (head >> 2 & 0xf, number(Some(length))?, rest)
    } else {
        return None;
    };
    let (body, rest) = split(rest, length)?;
    Some((tag, body, rest))
}

/// A length of the newer form, which subpackets have as well.
fn new_length(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let (first, rest) = bytes.split_first()?;
    match first {
        0..192 => Some((u64::from(*first), rest)),
        192..224 => {
            let (second, rest) = rest.split_first()?;
            Some(((u64::from(*first) - 192) * 256 + u64::from(*second) + 192, rest))
        }
        255 => {
            let (length, rest) = split(rest, 4)?;
            Some((number(Some(length))?, rest))
        }
        _ => None,
    }
}

/// The kind of a signature, and the lifetime in seconds that it gives to a key.
fn signature(body: &[u8]) -> Option<(u8, Option<u64>)> {
    if body.first() != Some(&4) {
        return None;
    }
    let kind = *body.get(1)?;
    let length = number(body.get(4..6))?;
    let (mut hashed, _) = split(body.get(6..)?, length)?;
    let mut lifetime = None;
    while let Some((length, rest)) = new_length(hashed) {
        let Some((subpacket, rest)) = split(rest, length) else { break };
        hashed = rest;
        if let Some((kind, value)) = subpacket.split_first()
            && kind & 0x7f == 9
        {
            lifetime = number(Some(value)).filter(|lifetime| *lifetime > 0);
        }
    }
    Some((kind, lifetime))
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A key that was made at 1000 and lives for so long, in the form of a file; nothing in it is signed.
    pub(crate) fn file(lifetime: u32, revoked: bool) -> Vec<u8> {
        let key = [&[4][..], &1000_u32.to_be_bytes(), &[22, 0, 0]].concat();
        let signature = |kind: u8, lifetime: u32| {
            let subpacket = [&[5, 9][..], &lifetime.to_be_bytes()].concat();
            [&[4, kind, 22, 8, 0, 6][..], &subpacket, &[0, 0, 0, 0]].concat()
        };
        let packet = |tag: u8, body: &[u8]| [&[0xc0 | tag, u8::try_from(body.len()).unwrap()], body].concat();
        let mut file = packet(6, &key);
        file.extend(packet(13, b"somebody"));
        file.extend(packet(2, &signature(0x13, lifetime)));
        if revoked {
            file.extend(packet(2, &signature(0x20, 0)));
        }
        file.extend(packet(14, &key));
        file.extend(packet(2, &signature(0x18, 1)));
        file
    }

    #[test]
    fn expiry_and_revocation_are_found() {
        assert_eq!(keys(&file(500, false)), [Key { expires: Some(1500), revoked: false }]);
        assert_eq!(keys(&file(0, true)), [Key { expires: None, revoked: true }]);
        let armoured = format!(
            "-----BEGIN PGP PUBLIC KEY BLOCK-----\nComment: x\n\n{}\n=AAAA\n-----END PGP PUBLIC KEY BLOCK-----\n",
            STANDARD.encode(file(500, false))
        );
        assert_eq!(keys(armoured.as_bytes()), keys(&file(500, false)));
        assert_eq!(keys(b"no key"), []);
    }

    proptest! {
        #[test]
        fn no_file_ends_the_program(file in prop::collection::vec(any::<u8>(), 0..200), cut in 0..80_usize) {
            keys(&file);
            let whole = self::file(77, true);
            keys(whole.get(..cut.min(whole.len())).unwrap());
        }
    }
}
