//! Reads that need root: the answer is the last event. They change nothing and leave nothing but the event file, which
//! is pruned soon.

use patch_apply::apt::argv::{self, Task};
use patch_backends::apt::{self, Evidence, Indexes, Inventory, OperationKind, Policy};
use patch_types::{
    ErrorCode, ErrorDetail, EventKind, JobStatus, Operation, PackageName, Plan, Query, RollbackMode,
    TakenBack,
    api::{Cause, CauseKind, WhyNot},
    compliance::InVersion,
    event::{Ended, QueryResult},
    operation::{ApplyPatches, Install, MAX_PACKAGES, PackageSpec},
};

use crate::{
    back,
    ceiling::{self, Ceiling},
    events::Events,
    paths::Paths,
    reboot, services, snapshots, solver, turn,
};

/// What is asked.
#[derive(Debug)]
pub(crate) enum Asked {
    /// A typed query.
    Query(Query),
    /// A dry run.
    Plan(Operation),
}

/// Answers, as the last event.
pub(crate) fn run(paths: &Paths, asked: &Asked, mut events: Events) {
    let answer = match asked {
        Asked::Query(query) => answer(paths, query),
        Asked::Plan(operation) => {
            let before = turn::under_way(paths);
            let plan = match operation {
                Operation::Rollback(rollback) if rollback.mode == RollbackMode::Snapshot => {
                    // What is listed are names of files that only root may see.
                    Ceiling::load(paths.root())
                        .and_then(|ceiling| ceiling.admits(operation))
                        .and_then(|()| snapshots::plan(paths, rollback))
                }
                Operation::Rollback(rollback) => back::plan(paths, rollback),
                _ => solver::plan(paths, operation).map(|planned| planned.plan),
            };
            // Also one that began while the solver was looking.
            plan.map(|plan| {
                QueryResult::Plan(Plan { during: before.or_else(|| turn::under_way(paths)), ..plan })
            })
        }
    };
    let ended = match answer {
        Ok(answer) => Ended {
            status: JobStatus::Completed,
            outcome: None,
            exit_code: None,
            error: None,
            results: Vec::new(),
            answer: Some(answer),
        },
        Err(error) => Ended {
            status: JobStatus::Failed,
            outcome: None,
            exit_code: None,
            error: Some(error),
            results: Vec::new(),
            answer: None,
        },
    };
    events.emit(EventKind::Ended(Box::new(ended)));
}

fn answer(paths: &Paths, query: &Query) -> Result<QueryResult, ErrorDetail> {
    let root = paths.root();
    match query {
        Query::Patches => {
            let inventory = solver::inventory(root)?;
            Ok(QueryResult::Patches(solver::patches(paths, &inventory)?))
        }
        Query::Package { name } => {
            let facts = Facts::gather(paths, name)?;
            // Why it is not upgraded takes two runs of the solver, so it is asked only where there is something to ask.
            let causes = if facts.is_behind(name) { facts.why_not(paths, name)?.causes } else { Vec::new() };
            apt::detail(name, &facts.inventory, facts.policy(name), &facts.indexes, causes)
                .map(|detail| QueryResult::Package(Box::new(detail)))
                .ok_or_else(|| unknown(name))
        }
        Query::WhyNot { name } => {
            let facts = Facts::gather(paths, name)?;
            if !facts.is_known(name) {
                return Err(unknown(name));
            }
            facts.why_not(paths, name).map(QueryResult::WhyNot)
        }
        Query::Services => services::list().map(QueryResult::Services),
        Query::RebootWindow => reboot::window(paths).map(QueryResult::RebootWindow),
        Query::Evidence { packages, since } => {
            let inventory = solver::inventory(root)?;
            let packages = packages.get(..packages.len().min(MAX_PACKAGES)).unwrap_or_default();
            let mut evidence = apt::fixes::evidence(root, &inventory.database, packages, *since);
            let patching = Operation::ApplyPatches(ApplyPatches::default());
            let admitted = Ceiling::load(root).and_then(|ceiling| ceiling.admits(&patching));
            evidence.frozen = admitted.err().map(|error| error.message);
            evidence.barred = solver::taken_back(paths)
                .into_iter()
                .map(|TakenBack { name, architecture, version, .. }| InVersion {
                    name,
                    architecture,
                    version,
                })
                .collect();
            Ok(QueryResult::Evidence(Box::new(evidence)))
        }
    }
}

fn unknown(name: &PackageName) -> ErrorDetail {
    let message = format!(
        "package {name} is neither installed nor in any index; check the spelling, or refresh the indexes if it is new"
    );
    ErrorDetail::new(ErrorCode::PkgNotFound, message).with("package", name.as_str())
}

/// What is known of one package without the solver.
struct Facts {
    inventory: Inventory,
    policies: Vec<Policy>,
    indexes: Indexes,
}

impl Facts {
    fn gather(paths: &Paths, name: &PackageName) -> Result<Self, ErrorDetail> {
        let inventory = solver::inventory(paths.root())?;
        let said = solver::capture(&argv::policy(paths.root(), name))?;
        let indexes = Indexes::for_package(&inventory, name).map_err(|error| solver::unreadable(&error))?;
        Ok(Self { inventory, policies: apt::policy::parse(&said.stdout), indexes })
    }

    /// apt answers in its own spelling (`libc6` for `libc6:amd64` on amd64); only one package was asked about.
    fn policy(&self, name: &PackageName) -> Option<&Policy> {
        self.policies.iter().find(|policy| policy.name == name.as_str()).or_else(|| self.policies.first())
    }

    fn is_known(&self, name: &PackageName) -> bool {
        self.inventory.database.get(name).is_some() || !self.indexes.versions(name.name()).is_empty()
    }

    /// Whether it is installed, and some archive offers something newer.
    fn is_behind(&self, name: &PackageName) -> bool {
        let Some(installed) = self.inventory.database.get(name).filter(|package| package.is_present()) else {
            return false;
        };
        self.indexes.newest(name.name(), installed.architecture()).is_some_and(|newest| {
            apt::versions::compare(newest.version.as_str(), installed.version_text()).is_gt()
        })
    }

    fn why_not(&self, paths: &Paths, name: &PackageName) -> Result<WhyNot, ErrorDetail> {
        let root = paths.root();
        let patching = solver::simulation(
            root,
            &Task::UpgradeAll { allow_removals: false },
            OperationKind::ApplyPatches,
        )?;
        // What apt would do if the package were insisted upon names the removal or the dependency that is in the way.
        let insisted = Task::Install(Install {
            packages: vec![PackageSpec { name: name.clone(), version: None }],
            no_recommends: true,
            allow_downgrade: false,
            reinstall: false,
        });
        let alone = apt::simulate::parse(&solver::capture(&argv::simulate(root, &insisted))?.text());
        let taken_back = solver::taken_back(paths);
        let evidence = Evidence {
            taken_back: &taken_back,
            inventory: &self.inventory,
            policy: self.policy(name),
            indexes: &self.indexes,
            patching: &patching,
            alone: Some(&alone),
            last_update_check: apt::last_update_check(root),
            now: jiff::Timestamp::now(),
        };
        let mut answer = apt::why_not(name, &evidence);
        let forbidden = Ceiling::load(root)
            .and_then(|ceiling| ceiling.admits(&Operation::ApplyPatches(ApplyPatches::default())))
            .err();
        let there_is_none =
            |kind| matches!(kind, CauseKind::UpToDate | CauseKind::NotInstalled | CauseKind::NoCandidate);
        if let Some(error) = forbidden
            && !answer.causes.iter().any(|cause| there_is_none(cause.kind))
        {
            answer.causes.retain(|cause| cause.kind != CauseKind::Ready);
            let next_step =
                format!("root decides that on the host: see /{} and the freeze file", ceiling::FILE);
            answer.causes.insert(0, Cause { kind: CauseKind::Frozen, message: error.message, next_step });
        }
        Ok(answer)
    }
}
