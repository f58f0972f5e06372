//! What a hostile reviewer tries: strangers, slow clients, a hostile network side, hostile repositories. Samples of what
//! `cargo xtask hostile` does in full.

mod conformance;
mod findings;
mod flood;
mod inside;
mod repository;

use std::process::ExitCode;

use system_tests::trials;

fn main() -> ExitCode {
    let mut all = Vec::new();
    all.extend(flood::trials());
    all.extend(findings::trials());
    all.extend(conformance::trials());
    all.extend(inside::trials());
    all.extend(repository::trials());
    trials::main(all)
}
