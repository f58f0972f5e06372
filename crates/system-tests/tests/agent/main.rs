//! Black-box tests of the agent: the real packages on real hosts, spoken to over real TLS.
#![expect(clippy::disallowed_methods, reason = "clients and tools are processes of their own")]

mod changing;
mod fixture;
mod lifecycle;

use std::process::ExitCode;

use system_tests::trials;

fn main() -> ExitCode {
    let mut all = Vec::new();
    all.extend(changing::trials());
    all.extend(lifecycle::trials());
    trials::main(all)
}
