//! dpkg's order of versions (`deb-version(7)`), made after `lib/dpkg/version.c` and compared with the real one in a
//! test. No crate is used because the one that exists differs from dpkg (`1a` and `1a0`, unusual epochs).

use std::cmp::Ordering;

/// A version in its three parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts<'a> {
    /// What precedes the first `:`; 0 if there is none.
    pub epoch: u64,
    /// The middle.
    pub upstream: &'a str,
    /// What follows the last `-`; empty if there is none, which equals `0`.
    pub revision: &'a str,
}

/// Takes a version apart. It never fails: an epoch that is not a number belongs to the upstream version, as nothing
/// better can be said of it.
#[must_use]
pub fn parts(version: &str) -> Parts<'_> {
    let version = version.trim();
    let (epoch, rest) = match version.split_once(':') {
        Some((epoch, rest)) => match epoch.parse() {
            Ok(epoch) => (epoch, rest),
            Err(_) => (0, version),
        },
        None => (0, version),
    };
    let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, ""));
    Parts { epoch, upstream, revision }
}

/// Compares two versions as `dpkg --compare-versions` does.
#[must_use]
pub fn compare(a: &str, b: &str) -> Ordering {
    let (a, b) = (parts(a), parts(b));
    a.epoch
        .cmp(&b.epoch)
        .then_with(|| compare_part(a.upstream.as_bytes(), b.upstream.as_bytes()))
        .then_with(|| compare_part(a.revision.as_bytes(), b.revision.as_bytes()))
}

/// Where a character stands: `~` before the end, the end and digits before letters, letters before all else.
fn weight(character: Option<&u8>) -> i32 {
    match character {
        Some(b'~') => -1,
        None => 0,
        Some(c) if c.is_ascii_digit() => 0,
        Some(c) if c.is_ascii_alphabetic() => i32::from(*c),
        Some(c) => i32::from(*c) + 256,
    }
}

/// Parts without digits and numbers in turn, from the left. An empty number is zero.
fn compare_part(mut a: &[u8], mut b: &[u8]) -> Ordering {
    while !a.is_empty() || !b.is_empty() {
        let is_text = |s: &[u8]| s.first().is_some_and(|c| !c.is_ascii_digit());
        while is_text(a) || is_text(b) {
            match weight(a.first()).cmp(&weight(b.first())) {
                Ordering::Equal => {
                    a = a.get(1..).unwrap_or_default();
                    b = b.get(1..).unwrap_or_default();
                }
                other => return other,
            }
        }
        let (number_a, rest_a) = number(a);
        let (number_b, rest_b) = number(b);
        // Of two numbers without leading zeros the longer one is the greater: no number is too large.
        match number_a.len().cmp(&number_b.len()).then_with(|| number_a.cmp(number_b)) {
            Ordering::Equal => (a, b) = (rest_a, rest_b),
            other => return other,
        }
    }
    Ordering::Equal
}

/// The digits at the beginning without leading zeros, and the rest.
fn number(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|c| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    let zeros = digits.iter().take_while(|c| **c == b'0').count();
    (&digits[zeros..], rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn versions_order_as_debian_says() {
        for (older, newer) in [
            ("1.0~rc1", "1.0"),
            ("1.0~~", "1.0~"),
            ("1.0~~a", "1.0~"),
            ("1.0", "1.0a"),
            ("1.0a", "1.0+"),
            ("1.9", "1.10"),
            ("1.0-1", "1.0-1.1"),
            ("1.0-1~bpo", "1.0-1"),
            ("9.9", "1:0.1"),
            ("1.0", "1.0-1"),
            ("1.0-2", "1.1-1"),
            ("2.36-9+deb12u7", "2.36-9+deb12u10"),
            ("1-2-3", "1-3-1"),
            ("1.0", "1.0.0"),
            ("99999999999999999999", "100000000000000000000"),
            ("6.1.0-26", "6.1.0-28"),
        ] {
            assert_eq!(compare(older, newer), Ordering::Less, "{older} {newer}");
            assert_eq!(compare(newer, older), Ordering::Greater, "{newer} {older}");
        }
    }

    #[test]
    fn some_different_texts_are_the_same_version() {
        for (a, b) in [
            ("1.0", "1.0-0"),
            ("0:1.0", "1.0"),
            ("1.00", "1.0"),
            ("1a", "1a0"),
            ("1.01-01", "1.1-1"),
            ("1.0", "1.0-"),
        ] {
            assert_eq!(compare(a, b), Ordering::Equal, "{a} {b}");
        }
    }

    proptest! {
        #[test]
        fn the_order_is_total(a in "[0-2a.~+:-]{0,8}", b in "[0-2a.~+:-]{0,8}", c in "[0-2a.~+:-]{0,8}") {
            prop_assert_eq!(compare(&a, &b), compare(&b, &a).reverse());
            prop_assert_eq!(compare(&a, &a), Ordering::Equal);
            let mut three = [a, b, c];
            three.sort_by(|x, y| compare(x, y));
            prop_assert_ne!(compare(&three[0], &three[2]), Ordering::Greater);
            if compare(&three[0], &three[1]).is_eq() && compare(&three[1], &three[2]).is_eq() {
                prop_assert!(compare(&three[0], &three[2]).is_eq());
            }
        }

        #[test]
        fn any_text_is_compared(a in ".*", b in ".*") {
            prop_assert_eq!(compare(&a, &b), compare(&b, &a).reverse());
        }
    }
}
