//! Black-box tests of going back: the real root side, apt and dpkg in throw-away roots.
#![expect(clippy::disallowed_methods, reason = "one trial asks what a tool is linked to")]

mod broken_state;
mod driver;
mod exact;
mod failing;
mod kills;
mod limits;
mod rehearsal;
mod since;
mod snapshots;
mod traps;
mod ways;

use std::process::ExitCode;

use system_tests::trials;

fn main() -> ExitCode {
    let mut all = Vec::new();
    all.extend(driver::trials());
    all.extend(exact::trials());
    all.extend(traps::trials());
    all.extend(failing::trials());
    all.extend(since::trials());
    all.extend(ways::trials());
    all.extend(limits::trials());
    all.extend(kills::trials());
    all.extend(rehearsal::trials());
    all.extend(broken_state::trials());
    all.extend(snapshots::trials());
    trials::main(all)
}
