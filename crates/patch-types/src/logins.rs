//! Names and passwords in addresses, as `https://user:password@host/` in a list of sources: apt may repeat them, and what apt
//! says goes to clients, logs and mail.

use std::borrow::Cow;

/// What stands in their place.
const HIDDEN: &str = "***";

/// The same text, with the name and the password of each address replaced.
#[must_use]
pub fn hidden(text: &str) -> Cow<'_, str> {
    let mut out = String::new();
    // Up to here `text` is in `out`.
    let mut done = 0;
    let mut at = 0;
    while let Some(found) = text.get(at..).and_then(|rest| rest.find("://")) {
        let begin = at + found + 3;
        let is_scheme =
            text.get(..at + found).is_some_and(|t| t.ends_with(|c: char| c.is_ascii_alphanumeric()));
        let rest = text.get(begin..).unwrap_or_default();
        // Up to where neither a host's name nor a port goes on.
        let end = rest.find(ends_authority);
        let authority = rest.get(..end.unwrap_or(rest.len())).unwrap_or_default();
        at = begin;
        // A password may hold an `@`, a host's name may not.
        if let Some((login, _)) = authority.rsplit_once('@').filter(|_| is_scheme) {
            out.push_str(text.get(done..begin).unwrap_or_default());
            out.push_str(HIDDEN);
            at = begin + login.len();
            done = at;
        }
    }
    if done == 0 {
        return Cow::Borrowed(text);
    }
    out.push_str(text.get(done..).unwrap_or_default());
    Cow::Owned(out)
}

/// The same of the beginning of a text, the rest of which is lost: what may be the beginning of a name and a password at its
/// end is replaced, too. Where an address ends with the text, the `@` may be in what is lost.
#[must_use]
pub fn hidden_in_beginning(text: &str) -> String {
    let cut = text.rfind("://").map(|found| found + 3);
    match cut.and_then(|begin| text.split_at_checked(begin)) {
        Some((before, rest)) if !rest.contains(ends_authority) => format!("{}{HIDDEN}", hidden(before)),
        _ => hidden(text).into_owned(),
    }
}

/// Neither a host's name nor a port goes on with it.
fn ends_authority(c: char) -> bool {
    c.is_whitespace() || c.is_control() || "/?#\"'<>\\`".contains(c)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_cut_within_a_password_is_none() {
        for (said, shown) in [
            ("a http://u:p@h/x https://me:s3c", "a http://***@h/x https://***"),
            ("https://me:s3cret@ho", "https://***"),
            ("https://", "https://***"),
            ("http://u:p@h/x and no more", "http://***@h/x and no more"),
            ("nothing", "nothing"),
        ] {
            assert_eq!(hidden_in_beginning(said), shown);
        }
    }

    #[test]
    fn names_and_passwords_are_not_repeated() {
        for (said, shown) in [
            ("Err:1 https://me:s3cret@deb.example stable", "Err:1 https://***@deb.example stable"),
            ("Failed to fetch http://token@h:80/x  403", "Failed to fetch http://***@h:80/x  403"),
            ("a ftp://u:p@ss@h/ and \"https://v:q@i\", end", "a ftp://***@h/ and \"https://***@i\", end"),
            ("tor+https://u:p@h", "tor+https://***@h"),
            ("https://u:p@h\nhttps://w:r@j", "https://***@h\nhttps://***@j"),
            ("https://:@h", "https://***@h"),
        ] {
            assert_eq!(hidden(said), shown);
        }
        for plain in [
            "",
            "://",
            "a@b",
            "https://h/a@b",
            "https://h?a@b",
            "https://h:80 me@h",
            "://u:p@h",
            "mailto:a@b",
        ] {
            assert!(matches!(hidden(plain), Cow::Borrowed(same) if same == plain), "{plain}");
        }
    }

    proptest! {
        #[test]
        fn nothing_else_is_changed(before in "[a-z @:/]{0,12}", login in "[a-z:@%!;,]{0,12}", after in "[a-z]{1,8}(/[a-z@ ]{0,9})?") {
            let said = format!("{before} https://{login}@{after}");
            let shown = hidden(&said);
            let tail = format!(" https://***@{after}");
            prop_assert!(shown.ends_with(&tail), "{shown}");
        }

        #[test]
        fn what_was_hidden_stays_so(text in "(https?://|[a-z@:/ \n]){0,24}") {
            let once = hidden(&text).into_owned();
            prop_assert_eq!(hidden(&once).into_owned(), once.clone());
        }
    }
}
