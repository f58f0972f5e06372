//! btrfs: command lines of its tool, and what that prints.

use std::path::{Path, PathBuf};

use crate::apt::argv::Argv;

/// Where the tool is, the first that is there.
const PROGRAMS: &[&str] = &["/usr/bin/btrfs", "/usr/sbin/btrfs", "/bin/btrfs", "/sbin/btrfs"];

/// The number of the top of every file system.
pub const TOP: u64 = 5;

/// The inode of the root of every subvolume.
pub const SUBVOLUME_INODE: u64 = 256;

/// The tool.
///
/// # Errors
/// That it is not there.
pub fn program() -> Result<&'static str, String> {
    PROGRAMS
        .iter()
        .copied()
        .find(|path| Path::new(path).is_file())
        .ok_or_else(|| "the tool btrfs is not there; install the package btrfs-progs".to_owned())
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// Makes a snapshot. Paths are absolute, so none can be read as an option.
#[must_use]
pub fn snapshot(program: &'static str, from: &Path, to: &Path, read_only: bool) -> Argv {
    let mut args = words(&["subvolume", "snapshot"]);
    args.extend(read_only.then(|| "-r".to_owned()));
    args.extend([text(from), text(to)]);
    Argv::new(program, args)
}

/// Removes a subvolume that has none below it.
#[must_use]
pub fn delete(program: &'static str, path: &Path) -> Argv {
    let mut args = words(&["subvolume", "delete", "--commit-after"]);
    args.push(text(path));
    Argv::new(program, args)
}

/// Lists all subvolumes, asked at the top.
#[must_use]
pub fn list(program: &'static str, top: &Path) -> Argv {
    let mut args = words(&["subvolume", "list"]);
    args.push(text(top));
    Argv::new(program, args)
}

/// Asks about one subvolume.
#[must_use]
pub fn show(program: &'static str, path: &Path) -> Argv {
    let mut args = words(&["subvolume", "show"]);
    args.push(text(path));
    Argv::new(program, args)
}

/// Asks for the subvolume that is mounted where none is named.
#[must_use]
pub fn get_default(program: &'static str, top: &Path) -> Argv {
    let mut args = words(&["subvolume", "get-default"]);
    args.push(text(top));
    Argv::new(program, args)
}

/// Sets it.
#[must_use]
pub fn set_default(program: &'static str, number: u64, top: &Path) -> Argv {
    let mut args = words(&["subvolume", "set-default"]);
    args.extend([number.to_string(), text(top)]);
    Argv::new(program, args)
}

/// Brings everything to the disk.
#[must_use]
pub fn sync(program: &'static str, top: &Path) -> Argv {
    let mut args = words(&["filesystem", "sync"]);
    args.push(text(top));
    Argv::new(program, args)
}

/// One line of the list of subvolumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its number.
    pub number: u64,
    /// Its path from the top, relative.
    pub path: PathBuf,
}

/// Reads the list of subvolumes. None if a line is not understood: what is not known must not be passed over.
#[must_use]
pub fn parse_list(text: &str) -> Option<Vec<Listed>> {
    let line = |line: &str| {
        let rest = line.strip_prefix("ID ")?;
        let (number, rest) = rest.split_once(' ')?;
        let (_, path) = rest.split_once(" path ")?;
        (!path.is_empty()).then_some(Listed { number: number.parse().ok()?, path: path.into() })
    };
    text.lines().filter(|text| !text.trim().is_empty()).map(line).collect()
}

/// Reads the number of the default subvolume.
#[must_use]
pub fn parse_default(text: &str) -> Option<u64> {
    text.strip_prefix("ID ")?.split_whitespace().next()?.parse().ok()
}

/// What the tool says of one subvolume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Its UUID, which no other has.
    pub uuid: String,
    /// Its number.
    pub number: u64,
    /// Whether it cannot be written.
    pub is_read_only: bool,
}

/// Reads what the tool says of one subvolume.
#[must_use]
pub fn parse_show(text: &str) -> Option<Shown> {
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.trim_start().strip_prefix(name)?.strip_prefix(':'));
        line.map(str::trim)
    };
    Some(Shown {
        uuid: field("UUID").filter(|uuid| uuid.len() == 36)?.to_owned(),
        number: field("Subvolume ID")?.parse().ok()?,
        is_read_only: field("Flags")
            .is_some_and(|flags| flags.split([' ', ',']).any(|flag| flag == "readonly")),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn command_lines_are_as_the_manual_has_them() {
        let (from, to) = (Path::new("/a b"), Path::new("/top/-x"));
        let program = "/usr/bin/btrfs";
        for (argv, expected) in [
            (snapshot(program, from, to, true), &["subvolume", "snapshot", "-r", "/a b", "/top/-x"][..]),
            (snapshot(program, from, to, false), &["subvolume", "snapshot", "/a b", "/top/-x"]),
            (delete(program, to), &["subvolume", "delete", "--commit-after", "/top/-x"]),
            (list(program, from), &["subvolume", "list", "/a b"]),
            (show(program, from), &["subvolume", "show", "/a b"]),
            (get_default(program, from), &["subvolume", "get-default", "/a b"]),
            (set_default(program, 257, from), &["subvolume", "set-default", "257", "/a b"]),
            (sync(program, from), &["filesystem", "sync", "/a b"]),
        ] {
            assert_eq!((argv.program, argv.args.as_slice()), (program, words(expected).as_slice()));
        }
    }

    #[test]
    fn what_the_tool_prints_is_read() {
        let listed = parse_list(
            "ID 256 gen 8 top level 5 path @\nID 258 gen 7 top level 256 path @/a b\nID 261 gen 8 top level 260 path @/.snapshots/1/snapshot\n",
        )
        .unwrap();
        assert_eq!(listed[1], Listed { number: 258, path: "@/a b".into() });
        assert_eq!(listed.len(), 3);
        assert_eq!(parse_list("ID 256 gen 8 top level 5 path @\nwhat is this"), None);
        assert_eq!(parse_list(""), Some(Vec::new()));
        assert_eq!(parse_default("ID 5 (FS_TREE)\n"), Some(TOP));
        assert_eq!(parse_default("ID 256 gen 8 top level 5 path @\n"), Some(256));
        assert_eq!(parse_default("ERROR: no"), None);
        let said = "s1\n\tName: \t\t\ts1\n\tUUID: \t\t\ta467f828-1a78-524c-bcd4-e50c4f0f6d61\n\tParent UUID: \t\t52885e0a-0ce4-114a-9315-879e25ab8c1d\n\
                    \tSubvolume ID: \t\t259\n\tTop level ID: \t\t5\n\tFlags: \t\t\treadonly\n\tSnapshot(s):\n";
        let shown = parse_show(said).unwrap();
        assert_eq!((shown.uuid.as_str(), shown.number), ("a467f828-1a78-524c-bcd4-e50c4f0f6d61", 259));
        assert!(shown.is_read_only && !parse_show(&said.replace("readonly", "-")).unwrap().is_read_only);
        assert_eq!(parse_show("ERROR: Not a Btrfs subvolume"), None);
    }

    proptest! {
        #[test]
        fn whatever_it_prints_is_no_reason_to_panic(text in "\\PC*") {
            let _ = (parse_list(&text), parse_default(&text), parse_show(&text));
            let _ = (parse_list(&format!("ID {text}")), parse_default(&format!("ID {text}")));
        }

        #[test]
        fn every_subvolume_of_a_list_is_read(all in prop::collection::vec((5_u64..9999, "[^\\n ]([^\\n]{0,20}[^\\n ])?"), 0..20)) {
            let text: String = all.iter().map(|(n, path)| format!("ID {n} gen 1 top level 5 path {path}\n")).collect();
            // A carriage return ends a line as well.
            prop_assume!(!text.contains('\r'));
            let listed = parse_list(&text).unwrap();
            let read: Vec<(u64, String)> = listed.into_iter().map(|l| (l.number, text_of(&l.path))).collect();
            prop_assert_eq!(read, all);
        }
    }

    fn text_of(path: &Path) -> String {
        path.to_str().unwrap().to_owned()
    }
}
