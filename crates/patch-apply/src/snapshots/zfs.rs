//! ZFS: snapshots of datasets, several in one step; command lines of its tool, and what it prints.

use std::path::Path;

use crate::apt::argv::Argv;

/// Where the tool is, the first that is there.
const PROGRAMS: &[&str] = &["/usr/sbin/zfs", "/sbin/zfs", "/usr/bin/zfs"];

/// What the names of ours begin with; the job's id follows.
const PREFIX: &str = "linux-patch-";

/// The tool.
///
/// # Errors
/// That it is not there.
pub fn program() -> Result<&'static str, String> {
    PROGRAMS
        .iter()
        .copied()
        .find(|path| Path::new(path).is_file())
        .ok_or_else(|| "the tool zfs is not there; install the package zfsutils-linux".to_owned())
}

/// Whether a text is the name of a dataset, and cannot be read as an option.
#[must_use]
pub fn is_dataset(text: &str) -> bool {
    let known = |b: u8| b.is_ascii_alphanumeric() || b"_-:. /".contains(&b);
    (1..=255).contains(&text.len())
        && text.bytes().all(known)
        && text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
        && !text.ends_with('/')
}

/// What a dataset's snapshot before a job is called.
#[must_use]
pub fn name(dataset: &str, job: &str) -> String {
    format!("{dataset}@{PREFIX}{job}")
}

/// Makes snapshots, all at one moment.
#[must_use]
pub fn snapshot(program: &'static str, names: &[String]) -> Argv {
    let args = ["snapshot".to_owned()].into_iter().chain(names.iter().cloned());
    Argv::new(program, args.collect())
}

/// Lists a dataset's snapshots by name.
#[must_use]
pub fn list(program: &'static str, dataset: &str) -> Argv {
    let args = ["list", "-H", "-p", "-t", "snapshot", "-o", "name", "-d", "1", dataset];
    Argv::new(program, args.map(str::to_owned).to_vec())
}

/// Removes a snapshot, and nothing else: a name without `@` would be a dataset.
#[must_use]
pub fn destroy(program: &'static str, name: &str) -> Option<Argv> {
    let (dataset, snapshot) = name.split_once('@')?;
    (is_dataset(dataset) && snapshot.starts_with(PREFIX) && !snapshot.contains(['@', '%', ',', '/']))
        .then(|| Argv::new(program, vec!["destroy".to_owned(), name.to_owned()]))
}

/// What a person types to go back to one, from a system that does not run from it. Younger snapshots go with it.
#[must_use]
pub fn rollback(name: &str) -> String {
    format!("zfs rollback -r {name}")
}

/// Reads a list of names.
#[must_use]
pub fn parse_list(text: &str) -> Vec<&str> {
    text.lines().filter(|line| line.contains('@')).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn command_lines_are_as_the_manual_has_them() {
        let program = "/usr/sbin/zfs";
        let names = [name("rpool/ROOT/debian", "x"), name("rpool/ROOT/debian/var", "x")];
        assert_eq!(
            snapshot(program, &names).to_string(),
            "/usr/sbin/zfs snapshot rpool/ROOT/debian@linux-patch-x rpool/ROOT/debian/var@linux-patch-x"
        );
        assert_eq!(
            list(program, "rpool/a").to_string(),
            "/usr/sbin/zfs list -H -p -t snapshot -o name -d 1 rpool/a"
        );
        assert_eq!(destroy(program, &names[0]).unwrap().args, ["destroy", "rpool/ROOT/debian@linux-patch-x"]);
        for bad in
            ["rpool/ROOT", "rpool@theirs", "rpool@linux-patch-a%b", "-r@linux-patch-x", "@linux-patch-x"]
        {
            assert_eq!(destroy(program, bad), None, "{bad}");
        }
        assert_eq!(rollback("a@linux-patch-x"), "zfs rollback -r a@linux-patch-x");
        assert_eq!(
            parse_list("rpool/a@one\nrpool/a@linux-patch-x\n"),
            ["rpool/a@one", "rpool/a@linux-patch-x"]
        );
        assert!(parse_list("no datasets available\n").is_empty());
    }

    proptest! {
        #[test]
        fn what_is_destroyed_is_a_snapshot_of_ours(text in "[a-z/@%, -]{0,40}") {
            if let Some(argv) = destroy("/usr/sbin/zfs", &text) {
                let (dataset, snapshot) = argv.args[1].split_once('@').unwrap();
                prop_assert!(!dataset.starts_with('-') && snapshot.starts_with(PREFIX));
                prop_assert_eq!(argv.args.len(), 2);
            }
        }
    }
}
