//! S12: the agent is what its document says; and its TLS is what ours has to be.

use anyhow::Result;
use libtest_mimic::Trial;
use system_tests::{
    hostile::{Stage, tools},
    trials::trial,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("s12_schemathesis_finds_no_drift", schemathesis_finds_no_drift),
        trial("s3_sslyze_finds_tls_1_3_alone", sslyze_finds_tls_1_3_alone),
    ]
}

/// The same each time, so that a run that fails says something about the change.
const SEED: u64 = 20_261_122;

/// A few examples of every operation; `cargo xtask hostile schemathesis` has all phases, from another seed each time.
fn schemathesis_finds_no_drift() -> Result<()> {
    let stage = Stage::new(&["lp-plain=1.0-1", "lp-conf"])?;
    println!("{}", tools::schemathesis(&stage, 2, SEED, "examples,fuzzing")?);
    stage.assert_alive()
}

fn sslyze_finds_tls_1_3_alone() -> Result<()> {
    let stage = Stage::new(&[])?;
    println!("{}", tools::sslyze(&stage)?);
    stage.assert_alive()
}
