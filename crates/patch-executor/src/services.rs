//! Units and their state, and which of them still run code that has been replaced on disk.

use std::{collections::BTreeMap, path::Path};

use patch_apply::apt::argv;
use patch_backends::stale;
use patch_types::{
    ErrorCode, ErrorDetail,
    api::{Service, ServiceList},
    stale::{Owner, StaleOwner},
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

/// Units with a process that maps a program or library which no longer is on disk, and which ones. What cannot be read
/// has nothing to say. The time that this takes is bounded.
pub(crate) fn stale_units() -> BTreeMap<String, Vec<String>> {
    let owners = stale::processes(Path::new("/")).map(|report| report.owners).unwrap_or_default();
    let unit = |owner: StaleOwner| match owner.owner {
        Owner::Unit { name } => Some((name, owner.files)),
        _ => None,
    };
    owners.into_iter().filter_map(unit).collect()
}

/// The service that a process belongs to, by the text of its control group.
pub(crate) fn unit_of(cgroup: &str) -> Option<String> {
    match stale::owner(0, 0, cgroup, false) {
        Owner::Unit { name } if name.ends_with(".service") => Some(name),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_service_of_the_system_is_one() {
        assert_eq!(unit_of("0::/system.slice/lp-daemon.service\n").as_deref(), Some("lp-daemon.service"));
        assert_eq!(unit_of("0::/user.slice/user-0.slice/user@0.service/app.slice/x.service\n"), None);
        assert_eq!(unit_of("0::/init.scope\n"), None);
    }
}
