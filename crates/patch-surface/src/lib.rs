//! Every parser of foreign bytes behind one signature. `fuzz/` calls these functions with what a fuzzer makes up, this
//! crate's test with what earlier runs found worth keeping. A function here panics when a parser does, or when it breaks
//! a promise that is stated beside the assertion. It is part of no product.

#![expect(clippy::expect_used, reason = "a broken promise is told by a panic")]

mod apt;
mod door;
mod root;
mod running;

pub use apt::{
    apt_indexes, classify, compliance, dpkg_status, host_facts, logs, policy, solver, status_fd, versions,
};
pub use door::{allow_list, bodies, certificates, config, http, revocation};
pub use root::{
    archive, argv, audit, ceiling, events, frames, hook, journal, names, rehearsal, snapshots, way_back,
};
pub use running::stale;

/// A target: what foreign bytes can reach.
pub type Target = fn(&[u8]);

/// All targets by name, in the order in which they are run.
pub const TARGETS: &[(&str, Target)] = &[
    ("http", http),
    ("bodies", bodies),
    ("names", names),
    ("argv", argv),
    ("config", config),
    ("ceiling", ceiling),
    ("allow_list", allow_list),
    ("certificates", certificates),
    ("revocation", revocation),
    ("frames", frames),
    ("events", events),
    ("journal", journal),
    ("way_back", way_back),
    ("snapshots", snapshots),
    ("audit", audit),
    ("rehearsal", rehearsal),
    ("archive", archive),
    ("hook", hook),
    ("status_fd", status_fd),
    ("classify", classify),
    ("solver", solver),
    ("policy", policy),
    ("dpkg_status", dpkg_status),
    ("apt_indexes", apt_indexes),
    ("versions", versions),
    ("host_facts", host_facts),
    ("stale", stale),
    ("logs", logs),
    ("compliance", compliance),
];

/// The bytes as text, wherever the caller of a parser makes text of them.
fn text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}
