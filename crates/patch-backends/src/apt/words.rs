//! What apt and dpkg say, as it may be repeated: to clients, in logs and in mail.
//!
//! It holds what others wrote, a package's script for one, so nothing in it is for a terminal to obey; it may repeat an address
//! with a password; and it has no bounds.

use patch_types::{logins, terminal};

/// The most of it that a message repeats, in characters.
const MAX_WORDS: usize = 1500;

/// Several lines, whole.
#[must_use]
pub fn foreign(text: &str) -> String {
    terminal::text(&logins::hidden(text)).into_owned()
}

/// One line of bounded length, for a message.
#[must_use]
pub fn quoted(text: &str) -> String {
    let hidden = logins::hidden(text);
    let line = terminal::line(&hidden);
    match line.char_indices().nth(MAX_WORDS) {
        Some((end, _)) => format!("{} …", line.get(..end).unwrap_or_default()),
        None => line.into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_repeated_is_plain_bounded_and_without_passwords() {
        let said = "E: \u{1b}[31mFailed\u{1b}[0m to fetch https://me:s3cret@h/x\nE: more";
        assert_eq!(foreign(said), "E: Failed to fetch https://***@h/x\nE: more");
        assert_eq!(quoted(said), "E: Failed to fetch https://***@h/x E: more");
        let long = quoted(&"ä".repeat(MAX_WORDS + 1));
        assert!(long.chars().count() == MAX_WORDS + 2 && long.ends_with(" …"), "{long}");
        assert_eq!(quoted(&"ä".repeat(MAX_WORDS)).chars().count(), MAX_WORDS);
    }
}
