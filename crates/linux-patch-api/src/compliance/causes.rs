//! What keeps fixes from being installed.

use std::collections::BTreeMap;

use patch_backends::apt::versions;
use patch_types::{
    ErrorCode, PackageName, Query,
    api::{Cause, CauseKind, Patch, PatchState},
    compliance::Observations,
    event::QueryResult,
};

use crate::{executor::Executor, inventory::Inventory, policy::Waits};

/// Of how many packages root is asked why they are not patched. Each takes two runs of the solver.
const ASKED: usize = 10;

/// The causes by package, and what is not known. The solver's list, which is kept ready, tells of most; of what it neither
/// takes nor leaves out root is asked.
pub(super) async fn of(
    inventory: &Inventory,
    executor: &Executor,
    seen: &Observations,
) -> (BTreeMap<PackageName, Vec<Cause>>, Vec<String>) {
    let mut causes: BTreeMap<PackageName, Vec<Cause>> = BTreeMap::new();
    let open: Vec<_> = seen.fixes.iter().filter(|fix| fix.applied.is_none()).collect();
    if open.is_empty() {
        return (causes, Vec::new());
    }
    let patches = match inventory.patch_set().await {
        Ok(set) => set.patches,
        Err(error) => return (causes, vec![format!("what keeps fixes away: {}", error.message)]),
    };
    let mut asked = Vec::new();
    for fix in open {
        let of_it = |patch: &&Patch| {
            patch.name.name() == fix.name.name()
                && patch.architecture == fix.architecture
                && versions::compare(patch.available_version.as_str(), fix.version.as_str()).is_ge()
        };
        match patches.iter().find(of_it) {
            Some(patch) => {
                if let Some(cause) = cause(patch) {
                    causes.insert(fix.name.clone(), vec![cause]);
                }
            }
            None if !asked.contains(&&fix.name) => asked.push(&fix.name),
            None => {}
        }
    }
    let mut not_known = Vec::new();
    for name in asked.iter().take(ASKED) {
        match executor.query(Query::WhyNot { name: (*name).clone() }).await {
            Ok(QueryResult::WhyNot(why)) => {
                causes.insert((*name).clone(), why.causes);
            }
            Ok(_) => {
                not_known.push(format!("what keeps {name} away: the root side answered another question"));
            }
            // It went away meanwhile: the next look sees that.
            Err(error) if error.code == ErrorCode::PkgNotFound => {}
            Err(error) => not_known.push(format!("what keeps {name} away: {}", error.message)),
        }
    }
    for name in asked.iter().skip(ASKED) {
        let cause = Cause {
            kind: CauseKind::KeptBack,
            message: format!(
                "apt does not choose {name}, and neither do so many others that not each was asked about"
            ),
            next_step: format!("see why: GET /api/v1/patches/{name}/why-not"),
        };
        causes.insert((*name).clone(), vec![cause]);
    }
    (causes, not_known)
}

/// The causes, and for what nothing keeps away that the agent's own schedule does.
pub(super) fn with_schedule(
    causes: &BTreeMap<PackageName, Vec<Cause>>,
    seen: &Observations,
    waits: &Waits,
) -> BTreeMap<PackageName, Vec<Cause>> {
    let mut causes = causes.clone();
    for fix in seen.fixes.iter().filter(|fix| fix.applied.is_none()) {
        let known = causes.entry(fix.name.clone()).or_default();
        if known.iter().all(|cause| matches!(cause.kind, CauseKind::Ready)) {
            known.extend(waits.cause(&fix.name, true));
        }
    }
    causes
}

/// Why the solver leaves an update out; none if it takes it.
fn cause(patch: &Patch) -> Option<Cause> {
    let name = &patch.name;
    let (kind, next_step) = match patch.state {
        PatchState::Ready => return None,
        PatchState::Held => (
            CauseKind::Held,
            format!(
                "take it off hold: PUT /api/v1/packages/{name} {{\"hold\": false}}, or `apt-mark unhold {name}`"
            ),
        ),
        PatchState::TakenBack => (
            CauseKind::TakenBack,
            format!(
                "wait for a newer version, or let it be installed again, as root on the host: `linux-patch-host clear {name}={}`",
                patch.available_version
            ),
        ),
        PatchState::Phased => (
            CauseKind::Phased,
            format!(
                "wait, or install it by name: POST /api/v1/packages {{\"packages\": [{{\"name\": \"{name}\"}}]}}"
            ),
        ),
        PatchState::KeptBack => {
            (CauseKind::KeptBack, format!("see what it would take: GET /api/v1/patches/{name}/why-not"))
        }
    };
    let reason = patch.reason.clone().unwrap_or_else(|| "apt leaves it out".to_owned());
    Some(Cause { kind, message: format!("{name}: {reason}"), next_step })
}
