//! The difference of two texts, as `diff -u` writes it.

/// How many lines stay around a change.
const CONTEXT: usize = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Edit<'a> {
    Same(&'a str),
    Gone(&'a str),
    New(&'a str),
}

/// The unified difference of a file that is there or not; empty if there is none. `name` is absolute.
pub(super) fn unified(name: &str, old: Option<&str>, new: Option<&str>) -> String {
    if old == new {
        return String::new();
    }
    let label = |text: Option<&str>| text.map_or("/dev/null", |_| name).to_owned();
    let mut out = format!("--- {}\n+++ {}\n", label(old), label(new));
    let edits = edits(old.unwrap_or_default(), new.unwrap_or_default());
    let is_change = |edit: &Edit<'_>| !matches!(edit, Edit::Same(_));
    let mut at = 0;
    while let Some(first) = edits.iter().skip(at).position(is_change).map(|offset| at + offset) {
        let from = first.saturating_sub(CONTEXT).max(at);
        // A hunk goes on for as long as changes are near to each other.
        let mut to = first + 1;
        while let Some(next) = edits.iter().skip(to).take(2 * CONTEXT + 1).position(is_change) {
            to += next + 1;
        }
        let to = (to + CONTEXT).min(edits.len());
        out.push_str(&hunk(&edits, from, to));
        at = to;
    }
    out
}

fn hunk(edits: &[Edit<'_>], from: usize, to: usize) -> String {
    let count = |edits: &[Edit<'_>], is_old: bool| {
        let counts = |edit: &&Edit<'_>| match edit {
            Edit::Same(_) => true,
            Edit::Gone(_) => is_old,
            Edit::New(_) => !is_old,
        };
        edits.iter().filter(counts).count()
    };
    let (before, inside) = (edits.get(..from).unwrap_or_default(), edits.get(from..to).unwrap_or_default());
    let range = |is_old: bool| {
        let (start, lines) = (count(before, is_old), count(inside, is_old));
        format!("{},{lines}", if lines == 0 { start } else { start + 1 })
    };
    let mut out = format!("@@ -{} +{} @@\n", range(true), range(false));
    for edit in inside {
        let (sign, line) = match edit {
            Edit::Same(line) => (' ', line),
            Edit::Gone(line) => ('-', line),
            Edit::New(line) => ('+', line),
        };
        out.push(sign);
        out.push_str(line);
        if !line.ends_with('\n') {
            out.push_str("\n\\ No newline at end of file\n");
        }
    }
    out
}

/// By the longest common subsequence: the files are short.
fn edits<'a>(old: &'a str, new: &'a str) -> Vec<Edit<'a>> {
    let mut old: Vec<&str> = old.split_inclusive('\n').collect();
    let mut new: Vec<&str> = new.split_inclusive('\n').collect();
    let same = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let head: Vec<_> = old.drain(..same).map(Edit::Same).collect();
    new.drain(..same);
    // Above that many pairs everything is shown as replaced: correct, and quick.
    if old.len().saturating_mul(new.len()) > 4_000_000 {
        return head
            .into_iter()
            .chain(old.into_iter().map(Edit::Gone))
            .chain(new.into_iter().map(Edit::New))
            .collect();
    }
    let width = new.len() + 1;
    let mut lengths = vec![0_u32; (old.len() + 1) * width];
    let at = |lengths: &[u32], i: usize, j: usize| lengths.get(i * width + j).copied().unwrap_or(0);
    for (i, a) in old.iter().enumerate().rev() {
        for (j, b) in new.iter().enumerate().rev() {
            let length = if a == b {
                at(&lengths, i + 1, j + 1) + 1
            } else {
                at(&lengths, i + 1, j).max(at(&lengths, i, j + 1))
            };
            if let Some(cell) = lengths.get_mut(i * width + j) {
                *cell = length;
            }
        }
    }
    let mut edits = head;
    let (mut i, mut j) = (0, 0);
    loop {
        match (old.get(i), new.get(j)) {
            (Some(a), Some(b)) if a == b => {
                edits.push(Edit::Same(a));
                (i, j) = (i + 1, j + 1);
            }
            (Some(a), b) if b.is_none() || at(&lengths, i + 1, j) >= at(&lengths, i, j + 1) => {
                edits.push(Edit::Gone(a));
                i += 1;
            }
            (_, Some(b)) => {
                edits.push(Edit::New(b));
                j += 1;
            }
            (_, None) => return edits,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, process::Command};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn files_that_come_go_and_change() {
        assert_eq!(unified("/f", Some("a\n"), Some("a\n")), "");
        assert_eq!(unified("/f", None, Some("a\nb\n")), "--- /dev/null\n+++ /f\n@@ -0,0 +1,2 @@\n+a\n+b\n");
        assert_eq!(unified("/f", Some("a\n"), None), "--- /f\n+++ /dev/null\n@@ -1,1 +0,0 @@\n-a\n");
        let old = "1\n2\n3\n4\n5\n6\n7\n8\n9\n10\n11\n12\n";
        let new = "1\n2\n3\n4\nfive\n6\n7\n8\n9\n10\n11\n12\n13";
        assert_eq!(
            unified("/f", Some(old), Some(new)),
            "--- /f\n+++ /f\n@@ -2,7 +2,7 @@\n 2\n 3\n 4\n-5\n+five\n 6\n 7\n 8\n\
             @@ -10,3 +10,4 @@\n 10\n 11\n 12\n+13\n\\ No newline at end of file\n"
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// `patch` makes the new text of the old one.
        #[test]
        #[expect(clippy::disallowed_methods, reason = "the judge is a program")]
        fn patch_understands_it(old in "([abc]\n){0,25}", new in "([abc]\n){0,25}") {
            prop_assume!(!old.is_empty() && !new.is_empty() && old != new);
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join("f"), &old).unwrap();
            fs::write(dir.path().join("d"), unified("/f", Some(&old), Some(&new))).unwrap();
            let mut patch = Command::new("patch");
            let output = patch.current_dir(dir.path()).args(["--silent", "f", "d"]).output().unwrap();
            prop_assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
            prop_assert_eq!(fs::read_to_string(dir.path().join("f")).unwrap(), new);
        }
    }
}
