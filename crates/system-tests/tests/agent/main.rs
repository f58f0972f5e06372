//! Black-box tests of the agent: the real packages on real hosts, spoken to over real TLS.
#![expect(clippy::disallowed_methods, reason = "clients and tools are processes of their own")]

mod audit;
mod back;
mod bad_input;
mod certificates;
mod changing;
mod cli;
mod cloud;
mod compliance;
mod configuration;
mod documentation;
mod door;
mod hardening;
mod lifecycle;
mod monitoring;
mod openssl;
mod package;
mod policy;
mod prometheus;
mod reading;
mod reboot_api;
mod reboot_window;
mod recovery;
mod rehearsal;
mod restarts;
mod snapshots;
mod stale;
mod streaming;
mod unattended;

use std::process::ExitCode;

use system_tests::{agent as fixture, trials};

fn main() -> ExitCode {
    let mut all = Vec::new();
    all.extend(reading::trials());
    all.extend(bad_input::trials());
    all.extend(door::trials());
    all.extend(certificates::trials());
    all.extend(streaming::trials());
    all.extend(audit::trials());
    all.extend(cli::trials());
    all.extend(compliance::trials());
    all.extend(configuration::trials());
    all.extend(changing::trials());
    all.extend(back::trials());
    all.extend(recovery::trials());
    all.extend(snapshots::trials());
    all.extend(stale::trials());
    all.extend(documentation::trials());
    all.extend(lifecycle::trials());
    all.extend(hardening::trials());
    all.extend(reboot_api::trials());
    all.extend(reboot_window::trials());
    all.extend(rehearsal::trials());
    all.extend(restarts::trials());
    all.extend(package::trials());
    all.extend(monitoring::trials());
    all.extend(unattended::trials());
    all.extend(policy::trials());
    all.extend(cloud::trials());
    trials::main(all)
}
