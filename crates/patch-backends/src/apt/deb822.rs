//! The format of dpkg's and apt's files: stanzas of `Field: value`, separated by blank lines (`deb822(5)`).
//!
//! Works on bytes, copies nothing, and takes whatever comes: a line that is neither a field nor a continuation is
//! passed over.

use std::borrow::Cow;

use memchr::{memchr, memmem};

/// The stanzas of a text, without the blank lines between them.
pub fn stanzas(text: &[u8]) -> impl Iterator<Item = Stanza<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        while let Some(b'\n') = rest.first() {
            rest = &rest[1..];
        }
        if rest.is_empty() {
            return None;
        }
        let end = memmem::find(rest, b"\n\n").unwrap_or(rest.len());
        let (stanza, after) = rest.split_at(end);
        rest = after;
        Some(Stanza(stanza))
    })
}

/// One stanza.
#[derive(Debug, Clone, Copy)]
pub struct Stanza<'a>(&'a [u8]);

impl<'a> Stanza<'a> {
    /// A stanza of exactly these bytes.
    #[must_use]
    pub fn new(text: &'a [u8]) -> Self {
        Self(text)
    }

    /// Its fields in their order: the name, and the value without the white space around it. A value of several lines
    /// keeps its line feeds and the space that begins each continuation.
    pub fn fields(self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            loop {
                if rest.is_empty() {
                    return None;
                }
                let mut end = line_end(rest, 0);
                let colon = memchr(b':', &rest[..end]);
                // Continuations belong to the field, and to a malformed line just as well.
                while matches!(rest.get(end + 1), Some(b' ' | b'\t')) {
                    end = line_end(rest, end + 1);
                }
                let (field, after) = rest.split_at(end);
                rest = after.get(1..).unwrap_or_default();
                if let Some(colon) = colon.filter(|c| *c > 0 && field[0] > b' ') {
                    return Some((&field[..colon], field[colon + 1..].trim_ascii()));
                }
            }
        })
    }

    /// The value of the first field of that name, whatever its case.
    #[must_use]
    pub fn get(self, name: &str) -> Option<&'a [u8]> {
        self.fields().find(|(n, _)| n.eq_ignore_ascii_case(name.as_bytes())).map(|(_, value)| value)
    }

    /// The same as text; bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn text(self, name: &str) -> Option<Cow<'a, str>> {
        self.get(name).map(String::from_utf8_lossy)
    }
}

fn line_end(text: &[u8], from: usize) -> usize {
    text.get(from..).and_then(|rest| memchr(b'\n', rest)).map_or(text.len(), |at| from + at)
}

/// A number in a field; anything else is none.
#[must_use]
pub fn number(value: &[u8]) -> Option<u64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_keep_their_continuations() {
        let text = b"A: 1\nLong: first\n second\n .\n\tthird\nno field\n: nameless\n odd\nB:2\n\n\n\nC: 3";
        let all: Vec<Vec<(&[u8], &[u8])>> = stanzas(text).map(|s| s.fields().collect()).collect();
        assert_eq!(
            all,
            [
                vec![(&b"A"[..], &b"1"[..]), (b"Long", b"first\n second\n .\n\tthird"), (b"B", b"2")],
                vec![(b"C", b"3")]
            ]
        );
        assert_eq!(Stanza::new(text).text("long").unwrap().lines().count(), 4);
        assert_eq!(Stanza::new(b"").get("A"), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_to_their_end(text in proptest::collection::vec(prop_oneof![
            Just(b'\n'), Just(b':'), Just(b' '), Just(b'A'), any::<u8>()], 0..200)) {
            let bytes: usize = stanzas(&text).flat_map(Stanza::fields).map(|(n, v)| n.len() + v.len()).sum();
            prop_assert!(bytes <= text.len());
        }
    }
}
