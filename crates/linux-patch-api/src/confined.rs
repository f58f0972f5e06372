//! What the daemon reads of the root side, the AppArmor profile has to let it read.

use std::{fs, path::Path};

/// The constants of `patch_types::executor` that are paths: name and value.
fn paths(source: &str) -> Vec<(&str, &str)> {
    source
        .lines()
        .filter_map(|line| line.strip_prefix("pub const ")?.strip_suffix("\";")?.split_once(": &str = \""))
        .filter(|(_, value)| value.contains('/'))
        .collect()
}

/// The texts of the daemon's files: what is below `cli` runs as whoever calls it, unconfined.
fn daemon(directory: &Path, files: &mut Vec<String>) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() && !path.ends_with("cli") {
            daemon(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(fs::read_to_string(path).unwrap());
        }
    }
}

fn is_allowed(profile: &str, path: &str) -> bool {
    profile.lines().filter_map(|line| line.trim().strip_suffix(',')?.rsplit_once(' ')).any(
        |(rule, rights)| {
            let rule = rule.strip_prefix("owner ").unwrap_or(rule);
            let matches = match (rule.split_once('{'), rule.strip_suffix("**")) {
                (Some((before, rest)), _) => rest
                    .strip_suffix('}')
                    .is_some_and(|ends| ends.split(',').any(|end| path.strip_prefix(before) == Some(end))),
                (None, Some(below)) => path.starts_with(below),
                (None, None) => path == rule.trim_end_matches('/'),
            };
            matches && rights.contains('r')
        },
    )
}

#[test]
fn the_profile_has_what_is_read_of_the_root_side() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let source = fs::read_to_string(crates.join("patch-types/src/executor.rs")).unwrap();
    let profile = fs::read_to_string(crates.join("../packaging/apparmor/usr.bin.linux-patch-api")).unwrap();
    let mut files = Vec::new();
    daemon(&crates.join("linux-patch-api/src"), &mut files);
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut read = 0;
    for (name, value) in paths(&source) {
        // A file with a constant of this name has its own.
        let has = |text: &&String| {
            text.split(|c| !is_word(c)).any(|word| word == name) && !text.contains(&format!("const {name}:"))
        };
        if files.iter().any(|text| has(&text)) {
            read += 1;
            let path = format!("/{}", value.trim_start_matches('/'));
            assert!(is_allowed(&profile, &path), "{name}: {path} is not in the AppArmor profile");
        }
    }
    assert!(read >= 5, "{read}");
    assert!(!is_allowed(&profile, "/var/lib/linux_patch_executor/record.jsonl"));
}
