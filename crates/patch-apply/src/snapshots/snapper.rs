//! snapper: which of its configurations is for the root, its command lines, and what it prints.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::Deserialize;

use crate::apt::argv::Argv;

/// The tool.
const PROGRAM: &str = "/usr/bin/snapper";

/// Where its configurations are, below the root.
const CONFIGS: &str = "etc/snapper/configs";

/// Where its snapshots of the root are.
pub const DIRECTORY: &str = "/.snapshots";

/// The key of the userdata that names the job.
pub const JOB: &str = "linux-patch-job";

/// The largest configuration that is read, in bytes.
const LARGEST: u64 = 64 << 10;

/// The configuration whose subvolume is the root, if snapper is there and has one.
#[must_use]
pub fn configured(root: &Path) -> Option<String> {
    if !root.join(PROGRAM.trim_start_matches('/')).is_file() {
        return None;
    }
    let mut names: Vec<String> = fs::read_dir(root.join(CONFIGS))
        .ok()?
        .flatten()
        .filter(|entry| entry.metadata().is_ok_and(|meta| meta.is_file() && meta.len() <= LARGEST))
        .filter(|entry| fs::read_to_string(entry.path()).is_ok_and(|text| is_for_root(&text)))
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| is_name(name))
        .collect();
    names.sort();
    names.into_iter().next()
}

/// Whether a text is the name of a configuration, and cannot be read as an option.
fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 64
        && !text.starts_with(['-', '.'])
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b))
}

/// Whether a configuration is for the root on btrfs.
fn is_for_root(text: &str) -> bool {
    let value = |key: &str| {
        let line = text.lines().rev().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix('='));
        line.map(|value| value.trim().trim_matches(['"', '\'']).to_owned())
    };
    value("SUBVOLUME").as_deref() == Some("/") && value("FSTYPE").as_deref() == Some("btrfs")
}

fn argv(config: &str, words: &[&str]) -> Argv {
    // Without D-Bus: its daemon may be away, or be what is being changed.
    let all = ["--no-dbus", "-c", config].into_iter().chain(words.iter().copied());
    Argv::new(PROGRAM, all.map(str::to_owned).collect())
}

/// Makes a snapshot, which snapper's own cleanup removes by number; prints its number.
#[must_use]
pub fn create(config: &str, job: &str) -> Argv {
    let (description, userdata) = (format!("before linux-patch job {job}"), format!("{JOB}={job}"));
    argv(
        config,
        &[
            "create",
            "--type",
            "single",
            "--cleanup-algorithm",
            "number",
            "--print-number",
            "--description",
            &description,
            "--userdata",
            &userdata,
        ],
    )
}

/// Lists all snapshots, with their userdata.
#[must_use]
pub fn list(config: &str) -> Argv {
    let mut argv = argv(config, &["list", "--disable-used-space", "--columns", "number,userdata"]);
    argv.args.insert(0, "--jsonout".to_owned());
    argv
}

/// What a person runs to have the files of a snapshot again.
#[must_use]
pub fn undo(config: &str, number: u64) -> String {
    format!("snapper -c {config} undochange {number}..0")
}

/// Removes one.
#[must_use]
pub fn delete(config: &str, number: u64) -> Argv {
    argv(config, &["delete", &number.to_string()])
}

/// Where a snapshot of the root is seen.
#[must_use]
pub fn path(number: u64) -> PathBuf {
    format!("{DIRECTORY}/{number}/snapshot").into()
}

/// Reads the number of a new snapshot.
#[must_use]
pub fn parse_number(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|number| *number > 0)
}

/// The numbers of a job's snapshots in a list. None if the list is not understood.
#[must_use]
pub fn parse_list(text: &str, job: &str) -> Option<Vec<u64>> {
    #[derive(Deserialize)]
    struct Entry {
        number: u64,
        userdata: Option<std::collections::BTreeMap<String, String>>,
    }
    let lists: std::collections::BTreeMap<String, Vec<Entry>> = serde_json::from_str(text).ok()?;
    let is_jobs = |entry: &Entry| {
        entry.number > 0
            && entry.userdata.as_ref().and_then(|data| data.get(JOB)).is_some_and(|value| value == job)
    };
    Some(lists.into_values().flatten().filter(is_jobs).map(|entry| entry.number).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIST: &str = r#"{
  "root": [
    {"number": 0, "userdata": null},
    {"number": 1, "userdata": {"linux-patch-job": "abc"}},
    {"number": 2, "userdata": {"important": "yes"}}
  ]
}"#;

    #[test]
    fn the_roots_configuration_is_found() {
        let root = tempfile::tempdir().unwrap();
        let configs = root.path().join(CONFIGS);
        fs::create_dir_all(&configs).unwrap();
        fs::create_dir_all(root.path().join("usr/bin")).unwrap();
        let put = |name: &str, subvolume: &str| {
            let text = format!("# snapper\nSUBVOLUME=\"{subvolume}\"\nFSTYPE=\"btrfs\"\n");
            fs::write(configs.join(name), text).unwrap();
        };
        put("home", "/home");
        put("-root", "/");
        fs::write(root.path().join("usr/bin/snapper"), "").unwrap();
        assert_eq!(configured(root.path()), None);
        put("root", "/");
        assert_eq!(configured(root.path()).as_deref(), Some("root"));
        fs::remove_file(root.path().join("usr/bin/snapper")).unwrap();
        assert_eq!(configured(root.path()), None, "snapper is not there");
        assert!(!is_for_root("SUBVOLUME=\"/\"\nFSTYPE=\"lvm(ext4)\"\n"));
    }

    #[test]
    fn what_it_prints_is_read() {
        assert_eq!(parse_number("12\n"), Some(12));
        assert_eq!((parse_number("0"), parse_number("")), (None, None));
        assert_eq!(parse_list(LIST, "abc"), Some(vec![1]));
        assert_eq!(parse_list(LIST, "abd"), Some(Vec::new()));
        assert_eq!(parse_list("No permissions.", "abc"), None);
    }

    #[test]
    fn command_lines_are_as_the_manual_has_them() {
        let create = create("root", "abc").to_string();
        assert!(create.starts_with(
            "/usr/bin/snapper --no-dbus -c root create --type single --cleanup-algorithm number"
        ));
        assert!(create.ends_with("--userdata linux-patch-job=abc"), "{create}");
        assert!(list("root").to_string().starts_with("/usr/bin/snapper --jsonout --no-dbus -c root list"));
        assert_eq!(delete("root", 7).to_string(), "/usr/bin/snapper --no-dbus -c root delete 7");
    }

    proptest! {
        #[test]
        fn whatever_it_prints_is_no_reason_to_panic(text in "\\PC*") {
            let _ = (parse_number(&text), parse_list(&text, "x"), is_for_root(&text), is_name(&text));
        }
    }
}
