//! `/proc/PID/cgroup`: what a process belongs to.
//!
//! A control group's path is systemd's word up to the first part that is no slice; what follows may have been named by
//! whom the group was delegated to, a user for one, and is no name of a unit of the system.

use patch_types::{settings::is_unit_name, stale::Owner};

/// What a process belongs to: `cgroup` is the text of its file, and `elsewhere` whether it is in another namespace of
/// process ids than this program.
#[must_use]
pub fn owner(pid: u32, uid: u32, cgroup: &str, elsewhere: bool) -> Owner {
    if pid == 1 {
        return Owner::Init;
    }
    let path = path(cgroup);
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    let slices = parts.iter().take_while(|part| part.ends_with(".slice")).count();
    let (slices, below) = parts.split_at(slices);
    let inside = |(runtime, id): (&str, &str), uid| Owner::Container {
        runtime: runtime.to_owned(),
        id: super::shown(id.as_bytes()),
        uid,
    };
    if let Some(found) = container(slices, below) {
        return inside(found, None);
    }
    let unknown = || inside(("unknown", ""), None);
    let user = slices.iter().find_map(|part| {
        part.strip_prefix("user-").and_then(|rest| rest.strip_suffix(".slice"))?.parse::<u32>().ok()
    });
    let mut rest = below.iter();
    let Some(first) = rest.next() else {
        return if elsewhere { unknown() } else { Owner::Process { uid } };
    };
    let name = unescaped(first);
    match (user, name) {
        (_, "init.scope") => Owner::Init,
        (Some(uid), _) if name.starts_with("user@") && name.ends_with(".service") => {
            let unit = rest.find(|part| !part.ends_with(".slice")).copied();
            // Who has a group of his own calls what is below it whatever he likes: a container of his own at best.
            if let Some(id) = unit.and_then(|unit| podman(unit)) {
                return inside(("podman", id), Some(uid));
            }
            let unit = unit.map(unescaped).filter(|unit| *unit != "init.scope" && is_unit_name(unit));
            Owner::UserManager { uid, unit: unit.map(str::to_owned) }
        }
        (Some(uid), _) => match name.strip_prefix("session-").and_then(|rest| rest.strip_suffix(".scope")) {
            Some(session) => Owner::Session { uid, session: super::shown(session.as_bytes()) },
            None => Owner::Process { uid },
        },
        // Runtimes whose containers stay in their own group.
        (None, "docker.service" | "containerd.service" | "podman.service" | "crio.service") if elsewhere => {
            unknown()
        }
        (None, _) if is_unit_name(name) => Owner::Unit { name: name.to_owned() },
        (None, _) if elsewhere => unknown(),
        (None, _) => Owner::Process { uid },
    }
}

/// systemd's own hierarchy, or else the unified one, or else any; the first that says more than the root.
fn path(cgroup: &str) -> &str {
    let lines = || {
        cgroup.lines().filter_map(|line| {
            let (_, rest) = line.split_once(':')?;
            rest.split_once(':')
        })
    };
    let says = |(_, path): &(&str, &str)| *path != "/" && path.starts_with('/');
    let of = |controller: &str| lines().filter(says).find(|(name, _)| *name == controller);
    let (_, path) = of("name=systemd").or_else(|| of("")).or_else(|| lines().find(says)).unwrap_or(("", "/"));
    // The group was removed, while its last process ends.
    path.strip_suffix(" (deleted)").unwrap_or(path)
}

/// systemd puts `_` before names that would be taken for something of the kernel's.
fn unescaped(part: &str) -> &str {
    part.strip_prefix('_').unwrap_or(part)
}

fn is_id(text: &str) -> bool {
    text.len() >= 12 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// The id of a container of Podman's, by the name of its group.
fn podman(part: &str) -> Option<&str> {
    part.strip_suffix(".scope").unwrap_or(part).strip_prefix("libpod-").filter(|id| is_id(id))
}

/// The runtime and the container's id, by the names that runtimes give their groups: `slices` are the first parts of the
/// path, and `below` what follows. Only the first part below the slices has a name of the host's, and what is in it only
/// where that first part is a runtime's own.
fn container<'a>(slices: &[&'a str], below: &[&'a str]) -> Option<(&'static str, &'a str)> {
    let (first, inside) = below.split_first()?;
    let next = inside.first().copied();
    let name = first.strip_suffix(".scope");
    if slices.iter().any(|slice| slice.starts_with("kubepods") || slice.contains("-kubepods")) {
        let name = name.unwrap_or(first);
        let id = name.rsplit('-').next().filter(|id| is_id(id));
        return Some(("kubernetes", id.unwrap_or_default()));
    }
    if let Some(name) = name {
        // What watches a container is no part of it.
        for (prefix, runtime) in
            [("docker-", "docker"), ("cri-containerd-", "kubernetes"), ("crio-", "kubernetes")]
        {
            if let Some(id) = name.strip_prefix(prefix).filter(|id| is_id(id)) {
                return Some((runtime, id));
            }
        }
        if let Some(machine) = name.strip_prefix("machine-") {
            let guest = machine.strip_prefix("qemu\\x2d");
            return Some(guest.map_or(("nspawn", machine), |guest| ("qemu", guest)));
        }
    }
    if let Some(id) = podman(first) {
        return Some(("podman", id));
    }
    if let Some(name) = first.strip_prefix("lxc.payload.") {
        return Some(("lxc", name));
    }
    if let Some(name) = first.strip_prefix("systemd-nspawn@").and_then(|rest| rest.strip_suffix(".service")) {
        return (next == Some("payload")).then_some(("nspawn", name));
    }
    match (*first, next) {
        ("lxc" | "lxc.payload", Some(name)) => Some(("lxc", name)),
        ("docker", Some(id)) if is_id(id) => Some(("docker", id)),
        // A class of service, the pod, the container.
        ("kubepods", Some(_)) => {
            let id = inside.iter().take(3).find(|part| !part.starts_with("pod") && is_id(part));
            Some(("kubernetes", id.copied().unwrap_or_default()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    fn unit(name: &str) -> Owner {
        Owner::Unit { name: name.to_owned() }
    }

    fn inside(runtime: &str, id: &str) -> Owner {
        Owner::Container { runtime: runtime.to_owned(), id: id.to_owned(), uid: None }
    }

    #[test]
    fn units_sessions_and_containers_are_told_apart() {
        let manager = |unit: Option<&str>| Owner::UserManager { uid: 1000, unit: unit.map(str::to_owned) };
        for (path, expected) in [
            ("/system.slice/ssh.service", unit("ssh.service")),
            ("/system.slice/system-getty.slice/getty@tty1.service", unit("getty@tty1.service")),
            ("/system.slice/_cpu.service", unit("cpu.service")),
            ("/system.slice/ssh.service (deleted)", unit("ssh.service")),
            ("/system.slice/run-r1.scope", unit("run-r1.scope")),
            ("/a.service", unit("a.service")),
            ("/init.scope", Owner::Init),
            // Delegated: what is inside has no unit's name, whatever it says.
            ("/system.slice/a.service/ssh.service", unit("a.service")),
            (
                "/user.slice/user-1000.slice/session-3.scope",
                Owner::Session { uid: 1000, session: "3".into() },
            ),
            ("/user.slice/user-1000.slice/user@1000.service/init.scope", manager(None)),
            ("/user.slice/user-1000.slice/user@1000.service/app.slice/a.service", manager(Some("a.service"))),
            ("/user.slice/user-1000.slice/user@1000.service/ssh.service", manager(Some("ssh.service"))),
            ("/user.slice/user-1000.slice/user@1000.service/\u{1b}x", manager(None)),
            // Of a user, whoever it runs as.
            ("/user.slice/user-1000.slice/run-r1.scope", Owner::Process { uid: 1000 }),
            ("/", Owner::Process { uid: 7 }),
            ("/system.slice", Owner::Process { uid: 7 }),
            ("/../../x", Owner::Process { uid: 7 }),
            ("/system.slice/-x.service", Owner::Process { uid: 7 }),
        ] {
            assert_eq!(owner(9, 7, &format!("0::{path}\n"), false), expected, "{path}");
        }
        for (path, expected) in [
            (format!("/system.slice/docker-{ID}.scope"), inside("docker", ID)),
            (format!("/docker/{ID}"), inside("docker", ID)),
            (format!("/machine.slice/libpod-{ID}.scope/container"), inside("podman", ID)),
            (
                format!(
                    "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/cri-containerd-{ID}.scope"
                ),
                inside("kubernetes", ID),
            ),
            (format!("/kubepods/besteffort/pod12-3/{ID}"), inside("kubernetes", ID)),
            (format!("/kubepods/podab12-0123456789ab/{ID}/x"), inside("kubernetes", ID)),
            (
                format!(
                    "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod1.slice/crio-{ID}.scope/x"
                ),
                inside("kubernetes", ID),
            ),
            ("/lxc.payload.web/system.slice/ssh.service".to_owned(), inside("lxc", "web")),
            ("/lxc/web/x".to_owned(), inside("lxc", "web")),
            (
                "/machine.slice/machine-web.scope/payload/system.slice/ssh.service".to_owned(),
                inside("nspawn", "web"),
            ),
            (
                "/machine.slice/systemd-nspawn@web.service/payload/init.scope".to_owned(),
                inside("nspawn", "web"),
            ),
            (r"/machine.slice/machine-qemu\x2d1\x2ddb.scope/libvirt".to_owned(), inside("qemu", r"1\x2ddb")),
            ("/system.slice/docker.service".to_owned(), inside("unknown", "")),
            ("/system.slice/ssh.service".to_owned(), unit("ssh.service")),
            ("/".to_owned(), inside("unknown", "")),
        ] {
            assert_eq!(owner(9, 7, &format!("0::{path}\n"), true), expected, "{path}");
        }
        // What watches a container belongs to the host.
        assert_eq!(
            owner(9, 7, &format!("0::/machine.slice/libpod-conmon-{ID}.scope\n"), false),
            unit(&format!("libpod-conmon-{ID}.scope"))
        );
    }

    #[test]
    fn nobody_passes_off_his_processes_as_a_container_of_the_hosts() {
        let rootless = Owner::Container { runtime: "podman".into(), id: ID.into(), uid: Some(1) };
        let manager = "/user.slice/user-1.slice/user@1.service";
        for path in [
            format!("{manager}/user.slice/libpod-{ID}.scope"),
            format!("{manager}/user.slice/user-libpod_pod_1.slice/libpod-{ID}.scope/container"),
            format!("{manager}/libpod-{ID}"),
        ] {
            assert_eq!(owner(9, 7, &format!("0::{path}\n"), true), rootless, "{path}");
        }
        for inside in [
            format!("docker-{ID}.scope"),
            format!("docker/{ID}"),
            format!("cri-containerd-{ID}.scope"),
            format!("crio-{ID}.scope"),
            format!("kubepods/besteffort/pod1/{ID}"),
            format!("kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope"),
            "lxc.payload.web/init.scope".to_owned(),
            "lxc/web".to_owned(),
            "machine-web.scope".to_owned(),
            r"machine-qemu\x2d1.scope".to_owned(),
            "systemd-nspawn@web.service/payload".to_owned(),
        ] {
            for (group, expected) in [
                (manager, None),
                ("/user.slice/user-1.slice/session-2.scope", Some("session 2 of user 1")),
                ("/system.slice/lp.service", Some("lp.service")),
            ] {
                let owner = owner(9, 7, &format!("0::{group}/{inside}\n"), true);
                let is_the_users = matches!(owner, Owner::UserManager { uid: 1, .. });
                assert!(
                    expected.map_or(is_the_users, |expected| owner.to_string() == expected),
                    "{group}/{inside}: {owner}"
                );
            }
            let owner = owner(9, 7, &format!("0::/system.slice/lp.service/libpod-{ID}\n"), true);
            assert_eq!(owner, unit("lp.service"));
        }
    }

    #[test]
    fn the_hierarchies_of_older_hosts_are_read() {
        let hybrid = "12:pids:/system.slice/x\n1:name=systemd:/system.slice/ssh.service\n0::/\n";
        assert_eq!(owner(9, 0, hybrid, false), unit("ssh.service"));
        let without = format!("3:cpu:/docker/{ID}\n2:pids:/docker/{ID}\n");
        assert_eq!(owner(9, 0, &without, true), inside("docker", ID));
        assert_eq!(owner(1, 0, "0::/system.slice/x.service\n", false), Owner::Init);
        assert_eq!(owner(9, 3, "", false), Owner::Process { uid: 3 });
    }

    proptest! {
        #[test]
        fn whoever_has_a_delegated_group_cannot_be_taken_for_a_unit(path in "(/[a-z@.-]{1,12}(\\.service|\\.scope|\\.slice)?){0,4}") {
            let text = format!("0::/user.slice/user-1000.slice/user@1000.service{path}\n");
            let of_the_hosts =
                matches!(owner(9, 1000, &text, false), Owner::Unit { .. } | Owner::Init | Owner::Container { uid: None, .. });
            prop_assert!(!of_the_hosts, "{}", text);
            let text = format!("0::/system.slice/lp.service{path}\n");
            prop_assert_eq!(owner(9, 1000, &text, true), unit("lp.service"));
        }

        #[test]
        fn any_text_is_taken(text in ".{0,200}", line in "[0-9]:[a-z=]{0,8}:.{0,60}", elsewhere in any::<bool>()) {
            for text in [text, line] {
                if let Owner::Unit { name } = owner(9, 0, &text, elsewhere) {
                    prop_assert!(is_unit_name(&name));
                }
            }
        }
    }
}
