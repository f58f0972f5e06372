//! Who, besides root, may change what a path leads to: each directory and each link on the way decides that as well.
//!
//! A path is followed as the kernel follows it, a name at a time. Looking only at the name that is configured and at where it
//! ends would leave out what lies between: a link that leads to a link lies in a directory, too, and whoever may write there
//! has it lead elsewhere.

use std::{
    collections::{BTreeSet, VecDeque},
    ffi::{OsStr, OsString},
    fs::{self, Metadata},
    os::unix::fs::MetadataExt as _,
    path::{Component, Path, PathBuf},
};

use nix::unistd::{Uid, User};

/// The bits of a mode by which others than the owner may change something. Where there is a list of further users, the group's
/// bits tell the most that any of them may do.
const OTHERS_WRITE: u32 = 0o022;
/// In a directory with this bit only the owner of a file may replace it; but everybody may make one that is not there.
const STICKY: u32 = 0o1000;
/// As many links are followed as the kernel follows.
const MAX_LINKS: usize = 40;

/// A look at several paths; what several of them have in common is told once.
pub(super) struct Reach<'a> {
    root: &'a Path,
    /// Who may own things besides root.
    accepted: u32,
    examined: BTreeSet<PathBuf>,
}

impl<'a> Reach<'a> {
    /// Of the system below `root`. A user besides root may own what is there: a tree of whoever tries it is that one's own.
    pub(super) fn new(root: &'a Path, accepted: u32) -> Self {
        Self { root, accepted, examined: BTreeSet::new() }
    }

    /// Where others than root may change what a file is, each with what to do. What cannot be looked at is left out: it cannot
    /// be used either.
    pub(super) fn problems(&mut self, file: &Path) -> Vec<String> {
        let mut problems = Vec::new();
        let Ok(below) = file.strip_prefix(self.root) else { return problems };
        let mut here = self.root.to_owned();
        let mut rest = steps(below);
        let mut links = 0;
        // Whose the directories above another root are says nothing of the system that it becomes.
        if self.root == Path::new("/") {
            problems.extend(fs::symlink_metadata(&here).ok().and_then(|meta| self.judge(&here, &meta)));
        }
        while let Some(step) = rest.pop_front() {
            if step == ".." {
                if here != self.root {
                    here.pop();
                }
                continue;
            }
            let next = here.join(&step);
            // What is not there is nobody's, but for whoever may make it: its directory was judged.
            let Ok(meta) = fs::symlink_metadata(&next) else { break };
            problems.extend(self.judge(&next, &meta));
            if !meta.is_symlink() {
                here = next;
                continue;
            }
            links += 1;
            let Some(target) = fs::read_link(&next).ok().filter(|_| links <= MAX_LINKS) else { break };
            let mut ahead = if target.is_absolute() {
                // Beyond another root the kernel goes on, but what is there is not the system that is looked at.
                let Ok(below) = target.strip_prefix(self.root) else { break };
                here = self.root.to_owned();
                steps(below)
            } else {
                steps(&target)
            };
            ahead.append(&mut rest);
            rest = ahead;
        }
        problems
    }

    fn judge(&mut self, path: &Path, meta: &Metadata) -> Option<String> {
        self.examined.insert(path.to_owned()).then(|| self.may_be_changed(path, meta)).flatten()
    }

    /// Whether somebody else than root, or the other accepted owner, may change a part of the way to a file, and what to do.
    fn may_be_changed(&self, path: &Path, meta: &Metadata) -> Option<String> {
        let (what, mode) = (path.display(), meta.mode());
        if ![0, self.accepted].contains(&meta.uid()) {
            let owner = User::from_uid(Uid::from_raw(meta.uid())).ok().flatten();
            let owner = owner.map_or_else(|| format!("user {}", meta.uid()), |user| user.name);
            // A link itself, not what it names.
            let option = if meta.is_symlink() { "-h " } else { "" };
            return Some(format!(
                "{what} belongs to {owner}, who may change it: chown {option}root:root {what}"
            ));
        }
        // The mode of a link says nothing.
        if meta.is_symlink() || mode & OTHERS_WRITE == 0 {
            return None;
        }
        let bits = mode & 0o7777;
        if meta.is_dir() && mode & STICKY != 0 {
            // Such directories are everybody's on purpose. It is told once, of all files whose way leads through it.
            return Some(format!(
                "{what} may be written by others than root (its mode is {bits:o}): whenever a file there is missing, or is being \
                 replaced, somebody else may put one in its place: move what is configured there to /etc/linux_patch_api"
            ));
        }
        Some(format!("{what} may be changed by others than root (its mode is {bits:o}): chmod go-w {what}"))
    }
}

/// The names of a path, one after the other.
fn steps(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some(OsStr::new("..").to_owned()),
            Component::Prefix(_) | Component::RootDir | Component::CurDir => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, lchown, symlink};

    use rustix::process::geteuid;

    use super::*;

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// A root with these directories, and a file in the last one.
    fn tree(directories: &[&str], file: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for directory in directories {
            fs::create_dir(root.path().join(directory)).unwrap();
            mode(&root.path().join(directory), 0o755);
        }
        fs::write(root.path().join(file), "").unwrap();
        mode(&root.path().join(file), 0o644);
        root
    }

    fn problems(root: &Path, file: &str) -> Vec<String> {
        Reach::new(root, geteuid().as_raw()).problems(&root.join(file))
    }

    #[test]
    fn a_link_between_links_lies_in_a_directory_too() {
        let root =
            tree(&["etc", "srv", "srv/shared", "srv/releases", "srv/releases/5"], "srv/releases/5/ca.pem");
        let at = |path: &str| root.path().join(path);
        // Neither the name that is configured nor where it ends is below /srv/shared.
        symlink("../srv/shared/current", at("etc/certs")).unwrap();
        symlink(at("srv/releases/5"), at("srv/shared/current")).unwrap();
        assert_eq!(problems(root.path(), "etc/certs/ca.pem"), Vec::<String>::new());
        for (bad, advice) in [(0o775, "chmod go-w"), (0o757, "chmod go-w"), (0o1777, "move ")] {
            mode(&at("srv/shared"), bad);
            let said = problems(root.path(), "etc/certs/ca.pem");
            assert_eq!(said.len(), 1, "{said:?}");
            let of = format!("{} may be ", at("srv/shared").display());
            assert!(said[0].starts_with(&of) && said[0].contains(advice), "{said:?}");
        }
        mode(&at("srv/shared"), 0o755);
        mode(&at("srv"), 0o777);
        let said = problems(root.path(), "etc/certs/ca.pem");
        assert!(
            said.len() == 1 && said[0].ends_with(&format!("chmod go-w {}", at("srv").display())),
            "{said:?}"
        );
    }

    #[test]
    fn a_directory_of_everybodys_is_no_place_for_what_is_trusted() {
        let root = tree(&["tmp"], "tmp/ca.pem");
        mode(&root.path().join("tmp"), 0o1777);
        // What is there, and what may come to be there.
        for file in ["tmp/ca.pem", "tmp/none.pem"] {
            let said = problems(root.path(), file);
            assert_eq!(said.len(), 1, "{said:?}");
            let advice = "move what is configured there to /etc/linux_patch_api";
            assert!(said[0].contains("1777") && said[0].ends_with(advice), "{said:?}");
        }
        // Of several files the directory is told once: what it says must be meant for all of them.
        let mut reach = Reach::new(root.path(), geteuid().as_raw());
        let files = ["tmp/ca.pem", "tmp/none.pem"].map(|file| root.path().join(file));
        let said: Vec<_> = files.iter().flat_map(|file| reach.problems(file)).collect();
        assert!(said.len() == 1 && !said[0].contains(".pem"), "{said:?}");
    }

    #[test]
    fn ways_without_an_end_end() {
        let root = tree(&["etc"], "etc/file");
        symlink("b", root.path().join("etc/a")).unwrap();
        symlink("a", root.path().join("etc/b")).unwrap();
        symlink("../../../etc/file", root.path().join("etc/up")).unwrap();
        symlink("/nowhere/that/is/below", root.path().join("etc/out")).unwrap();
        for file in ["etc/a", "etc/up", "etc/out", "etc/none/file", "etc/file/x", "etc/../etc/./up"] {
            assert_eq!(problems(root.path(), file), Vec::<String>::new(), "{file}");
        }
        mode(&root.path().join("etc/file"), 0o666);
        assert_eq!(problems(root.path(), "etc/up").len(), 1);
    }

    #[test]
    fn what_several_have_in_common_is_told_once() {
        let root = tree(&["etc"], "etc/file");
        mode(&root.path().join("etc"), 0o777);
        let mut reach = Reach::new(root.path(), geteuid().as_raw());
        let count = |said: Vec<String>| said.len();
        assert_eq!(count(reach.problems(&root.path().join("etc/file"))), 1);
        assert_eq!(count(reach.problems(&root.path().join("etc/other"))), 0);
    }

    /// Another user's, which only root can make.
    #[test]
    fn a_link_on_the_way_is_its_owners() {
        if !geteuid().is_root() {
            return;
        }
        let root = tree(&["etc", "srv"], "srv/ca.pem");
        symlink("../srv", root.path().join("etc/certs")).unwrap();
        lchown(root.path().join("etc/certs"), Some(1), Some(1)).unwrap();
        let said = problems(root.path(), "etc/certs/ca.pem");
        let advice = format!("chown -h root:root {}", root.path().join("etc/certs").display());
        assert!(said.len() == 1 && said[0].ends_with(&advice), "{said:?}");
    }
}
