//! Which hosts the agent takes back to a snapshot by itself: those for which it is one exchange of one name. For all others the
//! snapshot is there, and going back to it a person's: half of a system must never boot with the other half of another one.

use std::path::{Path, PathBuf};

use patch_apply::snapshots::{Mounted, System, volumes};

/// How many subvolumes are named.
const NAMED: usize = 5;

/// What stands in the way in how the system lies on its file system.
pub(super) fn of_layout(system: &System) -> Option<String> {
    match system.members.as_slice() {
        [root] if volumes::is_top(root) => Some(
            "/ is the top of its file system and not a subvolume with a name, so there is nothing to exchange".to_owned(),
        ),
        [_] => None,
        all => Some(format!(
            "the system lies on {} subvolumes ({}), which cannot be exchanged in one step",
            all.len(),
            all.iter().map(|member| member.point.display().to_string()).collect::<Vec<_>>().join(", ")
        )),
    }
}

/// Subvolumes within the system that have something in them: they would stay behind with what the host runs from.
pub(super) fn of_nested(filled: &[PathBuf]) -> Option<String> {
    if filled.is_empty() {
        return None;
    }
    let named: Vec<String> = filled.iter().take(NAMED).map(|path| path.display().to_string()).collect();
    let more = filled.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Some(format!(
        "subvolumes with data lie within the system, and would stay behind: {}{more}",
        named.join(", ")
    ))
}

/// Options by which another subvolume is mounted than the one whose name is exchanged.
fn of_options<'a>(options: impl Iterator<Item = &'a str>, root: &Mounted) -> Option<String> {
    let name = |text: &str| text.trim_matches('/').to_owned();
    for option in options {
        if option.starts_with("subvolid=") {
            return Some(format!(
                "it is mounted by its number ({option}), which does not change with its name"
            ));
        }
        if let Some(named) = option.strip_prefix("subvol=")
            && name(named) != name(&root.part.to_string_lossy())
        {
            return Some(format!(
                "{option} is what is mounted at boot, and the host runs from {}",
                root.part.display()
            ));
        }
    }
    None
}

/// What stands in the way on the kernel's command line.
pub(super) fn of_command_line(line: &str, root: &Mounted) -> Option<String> {
    let flags = line.split_whitespace().filter_map(|word| word.trim_matches('"').strip_prefix("rootflags="));
    of_options(flags.flat_map(|flags| flags.trim_matches('"').split(',')), root)
        .map(|why| format!("the kernel's command line: {why}"))
}

/// What stands in the way in a table of mounts, `whose` says which one.
pub(super) fn of_table(text: &str, whose: &str, root: &Mounted) -> Option<String> {
    let of_root = text.lines().filter_map(|line| {
        let mut fields = line.split_whitespace();
        let source = fields.next().filter(|source| !source.starts_with('#'))?;
        (Path::new(fields.next()?) == root.point).then(|| (source, fields.nth(1).unwrap_or_default()))
    });
    of_options(of_root.flat_map(|(_, options)| options.split(',')), root).map(|why| format!("{whose}: {why}"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mounted(point: &str, part: &str) -> Mounted {
        Mounted {
            point: point.into(),
            kind: "btrfs".to_owned(),
            source: "/dev/vda2".to_owned(),
            part: part.into(),
            number: Some(256),
        }
    }

    fn system(members: &[(&str, &str)]) -> System {
        System {
            members: members.iter().map(|(point, part)| mounted(point, part)).collect(),
            left_out: Vec::new(),
        }
    }

    #[test]
    fn only_one_subvolume_with_a_name_is_exchanged() {
        assert_eq!(of_layout(&system(&[("/", "/@")])), None);
        assert!(of_layout(&system(&[("/", "/")])).unwrap().contains("top of its file system"));
        let two = of_layout(&system(&[("/", "/@"), ("/var", "/@/var")])).unwrap();
        assert!(two.contains("2 subvolumes (/, /var)"), "{two}");
        assert!(of_layout(&system(&[])).is_some());
    }

    #[test]
    fn subvolumes_with_data_are_named() {
        assert_eq!(of_nested(&[]), None);
        let paths: Vec<PathBuf> = (0..7).map(|n| format!("/srv/{n}").into()).collect();
        let told = of_nested(&paths).unwrap();
        assert!(told.contains("/srv/0") && told.ends_with("/srv/4 and 2 more"), "{told}");
    }

    #[test]
    fn what_boots_must_be_what_is_exchanged() {
        let root = mounted("/", "/@");
        for fine in [
            "root=/dev/vda2 ro quiet",
            "rootflags=subvol=@ ro",
            "rootflags=noatime,subvol=/@",
            "\"rootflags=subvol=@\"",
        ] {
            assert_eq!(of_command_line(fine, &root), None, "{fine}");
        }
        for (wrong, words) in [
            ("ro rootflags=subvolid=256", "by its number (subvolid=256)"),
            ("rootflags=ssd,subvol=@old", "subvol=@old"),
        ] {
            let why = of_command_line(wrong, &root).unwrap();
            assert!(why.starts_with("the kernel's command line: ") && why.contains(words), "{why}");
        }
        let table = |options: &str| {
            format!(
                "# /dev/vda2 / btrfs subvolid=9 0 0\n\nUUID=1 /home btrfs subvolid=7 0 0\nUUID=1 / btrfs {options} 0 1\n"
            )
        };
        assert_eq!(of_table(&table("defaults,subvol=@"), "/etc/fstab", &root), None);
        let why =
            of_table(&table("defaults,subvolid=256,subvol=@"), "/etc/fstab of the snapshot", &root).unwrap();
        assert!(why.starts_with("/etc/fstab of the snapshot: ") && why.contains("subvolid=256"), "{why}");
    }

    proptest! {
        #[test]
        fn any_text_is_read(text in "\\PC*", options in "[a-z=,/@0-9\" ]{0,40}") {
            let root = mounted("/", "/@");
            let _ = (of_command_line(&text, &root), of_table(&text, "x", &root));
            let _ = of_command_line(&format!("rootflags={options}"), &root);
            let _ = of_table(&format!("a / b {options}"), "x", &root);
        }
    }
}
