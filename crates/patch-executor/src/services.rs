//! Units and their state, and which of them still run code that has been replaced on disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use patch_apply::apt::argv;
use patch_types::{
    ErrorCode, ErrorDetail,
    api::{Service, ServiceList},
};
use serde::Deserialize;

use crate::solver;

/// The most replaced files that are named for a unit.
const NAMED_FILES: usize = 5;

/// One unit as `systemctl list-units --output=json` prints it.
#[derive(Debug, Deserialize)]
struct Unit {
    unit: String,
    load: String,
    active: String,
    sub: String,
    description: String,
}

/// All services with their state.
pub(crate) fn list() -> Result<ServiceList, ErrorDetail> {
    let said = solver::capture(&argv::list_services())?;
    let not_understood = |what: String| {
        ErrorDetail::new(ErrorCode::ServiceUnhealthy, format!("systemctl could not list the units: {what}"))
    };
    if said.code != Some(0) {
        return Err(not_understood(said.stderr.trim().to_owned()));
    }
    let units: Vec<Unit> =
        serde_json::from_str(&said.stdout).map_err(|error| not_understood(error.to_string()))?;
    let mut stale = stale_units();
    let mut services: Vec<Service> = units
        .into_iter()
        .map(|unit| {
            let replaced = stale.remove(&unit.unit).unwrap_or_default();
            Service {
                runs_old_code: !replaced.is_empty(),
                replaced_files: replaced.into_iter().take(NAMED_FILES).collect(),
                name: unit.unit,
                description: unit.description,
                active_state: unit.active,
                sub_state: unit.sub,
                load_state: unit.load,
            }
        })
        .collect();
    services.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(ServiceList { total: services.len(), services })
}

/// Units with a process that maps a program or library which no longer is on disk. Only `/proc` is read: nothing that
/// an unprivileged user could have planted elsewhere.
fn stale_units() -> BTreeMap<String, BTreeSet<String>> {
    let mut units: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let Ok(processes) = fs::read_dir("/proc") else { return units };
    for entry in processes.flatten() {
        if !entry.file_name().to_str().is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit())) {
            continue;
        }
        // Processes come and go; one that is gone has nothing to say.
        let Ok(maps) = fs::read(entry.path().join("maps")) else { continue };
        let replaced = replaced_files(&String::from_utf8_lossy(&maps));
        if replaced.is_empty() {
            continue;
        }
        if let Ok(cgroup) = fs::read_to_string(entry.path().join("cgroup"))
            && let Some(unit) = unit_of(&cgroup)
        {
            units.entry(unit.to_owned()).or_default().extend(replaced);
        }
    }
    units
}

/// Executable mappings of deleted files below the directories that packages install programs and libraries to.
fn replaced_files(maps: &str) -> BTreeSet<String> {
    maps.lines()
        .filter_map(|line| {
            let path = line.strip_suffix(" (deleted)")?;
            let mut fields = path.splitn(6, ' ');
            let permissions = fields.nth(1)?;
            let path = fields.nth(3)?.trim_start();
            let installed =
                ["/usr/", "/lib", "/bin/", "/sbin/", "/opt/"].iter().any(|dir| path.starts_with(dir));
            (permissions.contains('x') && installed).then(|| path.to_owned())
        })
        .collect()
}

/// The innermost service of a process's cgroup.
pub(crate) fn unit_of(cgroup: &str) -> Option<&str> {
    cgroup
        .lines()
        .filter(|line| line.starts_with("0::") || line.contains(":name=systemd:"))
        .find_map(|line| line.rsplit('/').find(|part| part.ends_with(".service")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_replaced_programs_and_libraries_count() {
        let maps = "\
55d0-55d1 r-xp 00000000 00:1b 123                        /usr/sbin/lp-daemon (deleted)
7f00-7f01 r--p 00000000 00:1b 124                        /usr/lib/libx.so (deleted)
7f02-7f03 rw-s 00000000 00:05 125                        /dev/zero (deleted)
7f04-7f05 r-xp 00000000 00:05 126                        /memfd:jit (deleted)
7f06-7f07 r-xp 00000000 00:1b 127                        /usr/lib/libc.so.6
7f08-7f09 r-xp 00000000 00:00 0                          [vdso]";
        assert_eq!(replaced_files(maps).into_iter().collect::<Vec<_>>(), ["/usr/sbin/lp-daemon"]);
    }

    #[test]
    fn the_unit_is_the_innermost_service() {
        assert_eq!(unit_of("0::/system.slice/lp-daemon.service\n"), Some("lp-daemon.service"));
        assert_eq!(
            unit_of("0::/user.slice/user-0.slice/user@0.service/app.slice/x.service\n"),
            Some("x.service")
        );
        assert_eq!(unit_of("0::/init.scope\n"), None);
    }
}
