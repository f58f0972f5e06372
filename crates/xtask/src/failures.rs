//! What test harnesses print of the tests that failed, for the end of a run: there it is found without its whole output.

use std::fmt::Write as _;

/// How much of an error is told again, in characters.
const MOST: usize = 600;

/// Collects the failures from the harnesses' lines. Both that are used here, the compiler's and libtest-mimic, print a head with
/// the test's name above each error, and the bare names when all errors have been printed.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    known: Vec<Failure>,
    /// Whether the lines are those of the last one.
    is_within: bool,
}

#[derive(Debug)]
struct Failure {
    name: String,
    error: String,
    /// The characters of `error`.
    length: usize,
    /// Whether it begins with the panic that ended the test.
    is_reason: bool,
}

impl Failures {
    /// Takes note of a line.
    pub(crate) fn hear(&mut self, line: &str) {
        if let Some(name) = head(line) {
            self.known.push(Failure {
                name: name.to_owned(),
                error: String::new(),
                length: 0,
                is_reason: false,
            });
            self.is_within = true;
            return;
        }
        if line == "failures:" || line.starts_with("test result: ") {
            self.is_within = false;
        }
        if !self.is_within {
            return;
        }
        let Some(failure) = self.known.last_mut() else { return };
        // What the test printed before says less than why it failed.
        if !failure.is_reason && line.starts_with("thread '") && line.contains(" panicked at ") {
            (failure.error, failure.length, failure.is_reason) = (String::new(), 0, true);
        }
        if failure.length > MOST || (failure.error.is_empty() && line.trim().is_empty()) {
            return;
        }
        failure.length += line.chars().count() + 1;
        failure.error.push_str(line);
        failure.error.push('\n');
    }

    /// Takes note of something that failed without a harness.
    pub(crate) fn add(&mut self, name: &str, error: &anyhow::Error) {
        let error = format!("{error:#}");
        self.known.push(Failure {
            name: name.to_owned(),
            length: error.chars().count(),
            error,
            is_reason: false,
        });
    }

    /// What is told at the end; empty if nothing failed.
    pub(crate) fn summary(&self) -> String {
        let mut text = String::new();
        for Failure { name, error, .. } in &self.known {
            let cut = error.char_indices().nth(MOST).map(|(end, _)| error.get(..end).unwrap_or_default());
            let (shown, more) = cut.map_or((error.as_str(), ""), |cut| (cut, " …"));
            // Writing into a text does not fail.
            let _ = writeln!(text, "── failed: {name}\n{}{more}\n", shown.trim_end());
        }
        text
    }
}

/// The name in a head such as `---- NAME stdout ----`, or without what it is of.
fn head(line: &str) -> Option<&str> {
    let name = line.strip_prefix("---- ")?.strip_suffix(" ----")?;
    Some(name.strip_suffix(" stdout").or_else(|| name.strip_suffix(" stderr")).unwrap_or(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(output: &str) -> String {
        let mut failures = Failures::default();
        output.lines().for_each(|line| failures.hear(line));
        failures.summary()
    }

    #[test]
    fn the_compilers_harness_is_understood() {
        let output = "\
running 3 tests
.FF
failures:

---- tests::one stdout ----

thread 'tests::one' panicked at src/lib.rs:1:1:
assertion `left == right` failed

---- tests::two stdout ----
Error: \"no\"

failures:
    tests::one
    tests::two

test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s

running 1 test
.
";
        assert_eq!(
            heard(output),
            "── failed: tests::one\nthread 'tests::one' panicked at src/lib.rs:1:1:\nassertion `left == right` failed\n\n\
             ── failed: tests::two\nError: \"no\"\n\n"
        );
    }

    #[test]
    fn libtest_mimic_is_understood() {
        let output = "\
running 2 tests
iF
failures:

---- boots ----
with 4096 bytes left

Caused by:
    it did not boot

failures:
    boots

test result: FAILED. 0 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.00s
";
        assert_eq!(
            heard(output),
            "── failed: boots\nwith 4096 bytes left\n\nCaused by:\n    it did not boot\n\n"
        );
    }

    #[test]
    fn no_error_is_told_at_length_and_none_where_nothing_failed() {
        assert_eq!(heard("running 1 test\n.\ntest result: ok. 1 passed; 0 failed; 0 ignored\n"), "");
        let long = format!("---- a ----\n{}\n{}\n", "ä".repeat(700), "b".repeat(700));
        let told = heard(&long);
        assert_eq!(told.matches('ä').count(), MOST);
        assert!(told.ends_with(" …\n\n") && !told.contains('b'), "{told}");
        let many = format!("---- a ----\n{}", "line\n".repeat(1000));
        assert!(heard(&many).chars().count() < MOST + 30);
        let printed = format!(
            "---- a stdout ----\n{}thread 'a' (17) panicked at x.rs:1:2:\nwhy\n",
            "noise\n".repeat(1000)
        );
        assert_eq!(heard(&printed), "── failed: a\nthread 'a' (17) panicked at x.rs:1:2:\nwhy\n\n");
        let mut failures = Failures::default();
        failures.add("chaos", &anyhow::anyhow!("inner").context("round 3"));
        assert_eq!(failures.summary(), "── failed: chaos\nround 3: inner\n\n");
    }
}
