//! Whether the running kernel is the newest installed one.

use std::{fs, path::Path};

use patch_types::stale::KernelCode;

use crate::{
    apt::{Database, versions},
    system,
};

/// How many names of a directory are looked at.
const MOST_NAMES: usize = 10_000;

/// Which kernel runs below a root, and whether a newer one of its flavour is installed: among the images in `/boot` and
/// beside the modules, in dpkg's order of versions; or, by `database`, whether its package was updated since the boot.
/// In a container the kernel is somebody else's, so nothing is said.
#[must_use]
pub fn kernel(root: &Path, database: Option<&Database>) -> KernelCode {
    let running = system::kernel_release(root);
    if root.join("run/systemd/container").exists() {
        return KernelCode { running, ..KernelCode::default() };
    }
    let installed = newest(&running, &installed(root));
    let banner = fs::read_to_string(root.join("proc/version")).unwrap_or_default();
    let updated = database.and_then(|database| system::newer_kernel(&running, banner.trim(), database));
    judge(running, installed, updated)
}

fn judge(running: String, installed: Option<String>, updated: Option<String>) -> KernelCode {
    let newer = installed
        .as_ref()
        .filter(|installed| versions::compare(split(installed).0, split(&running).0).is_gt())
        .map(|installed| format!("the kernel {installed} is installed and {running} is running"));
    let known = installed.is_some() || updated.is_some();
    let reason = newer.or(updated);
    KernelCode { old: known.then_some(reason.is_some()), reason, running, installed }
}

/// The releases whose image is installed. Modules without an image, which removed packages leave, do not count.
fn installed(root: &Path) -> Vec<String> {
    let names = |path: &str| {
        let entries = fs::read_dir(root.join(path)).into_iter().flatten().flatten().take(MOST_NAMES);
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect::<Vec<_>>()
    };
    let images = names("boot").into_iter().filter_map(|name| {
        let release = ["vmlinuz-", "vmlinux-"].iter().find_map(|prefix| name.strip_prefix(prefix))?;
        let left_over = [".old", ".bak", ".dpkg-new", ".dpkg-tmp", ".sig", ".hmac"];
        (!left_over.iter().any(|suffix| release.ends_with(suffix))).then(|| release.to_owned())
    });
    let beside = names("lib/modules").into_iter().filter(|release| {
        fs::symlink_metadata(root.join("lib/modules").join(release).join("vmlinuz"))
            .is_ok_and(|meta| meta.is_file())
    });
    images.chain(beside).filter(|release| release.starts_with(|c: char| c.is_ascii_digit())).collect()
}

/// The newest release of the running one's flavour.
fn newest(running: &str, installed: &[String]) -> Option<String> {
    let (_, flavour) = split(running);
    installed
        .iter()
        .filter(|release| split(release).1 == flavour)
        .max_by(|a, b| versions::compare(split(a).0, split(b).0))
        .cloned()
}

/// Version and flavour; releases without one have the empty flavour.
fn split(release: &str) -> (&str, &str) {
    system::release_parts(release).unwrap_or((release, ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(running: &str, files: &[&str]) -> KernelCode {
        let root = tempfile::tempdir().unwrap();
        for file in files.iter().chain(&["proc/sys/kernel/osrelease"]) {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, if file.ends_with("osrelease") { running } else { "" }).unwrap();
        }
        kernel(root.path(), None)
    }

    #[test]
    fn the_newest_image_of_the_flavour_decides() {
        let old = code(
            "6.1.0-9-amd64",
            &[
                "boot/vmlinuz-6.1.0-9-amd64",
                "boot/vmlinuz-6.1.0-28-amd64",
                "boot/vmlinuz-6.9.0-1-cloud-amd64",
            ],
        );
        assert_eq!((old.old, old.installed.as_deref()), (Some(true), Some("6.1.0-28-amd64")));
        assert!(old.reason.unwrap().contains("6.1.0-9-amd64 is running"));
        let left_over =
            ["boot/vmlinuz-6.1.0-28-amd64", "boot/vmlinuz-6.1.0-30-amd64.old", "boot/initrd.img-7.0-amd64"];
        assert_eq!(code("6.1.0-28-amd64", &left_over).old, Some(false));
        // An image beside its modules, and modules without one.
        assert_eq!(
            code("6.6.0", &["lib/modules/6.6.1/vmlinuz", "lib/modules/6.7.0/modules.dep"]).installed.unwrap(),
            "6.6.1"
        );
        // Booted newer than what is installed.
        assert_eq!(code("6.9.0-1-amd64", &["boot/vmlinuz-6.1.0-28-amd64"]).old, Some(false));
    }

    #[test]
    fn where_no_kernel_is_installed_nothing_is_said() {
        assert_eq!(code("6.1.0-9-amd64", &[]).old, None);
        assert_eq!(code("6.1.0-9-azure", &["boot/vmlinuz-6.1.0-28-amd64"]).old, None);
        let inside = code("6.1.0-9-amd64", &["boot/vmlinuz-6.1.0-28-amd64", "run/systemd/container"]);
        assert_eq!((inside.old, inside.running.as_str()), (None, "6.1.0-9-amd64"));
        let hostile =
            code("6.1.0-9-amd64", &["boot/vmlinuz-", "boot/vmlinuz--amd64", "boot/vmlinuz-x-amd64"]);
        assert_eq!(hostile.old, None);
    }

    #[test]
    fn an_updated_package_of_the_running_release_counts() {
        let code = judge("6.1.0-9-amd64".into(), Some("6.1.0-9-amd64".into()), Some("updated".into()));
        assert_eq!((code.old, code.reason.as_deref()), (Some(true), Some("updated")));
    }
}
