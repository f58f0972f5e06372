//! Strangers cost next to nothing, and slow clients starve nobody.

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use system_tests::{
    hostile::{
        Stage,
        flood::{Layer, scan, slow},
    },
    trials::trial,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("s3_a_scan_from_an_address_off_the_list_costs_nothing", a_scan_costs_nothing),
        trial("s7_slow_clients_at_four_layers_starve_nobody", slow_clients_starve_nobody),
    ]
}

fn a_scan_costs_nothing() -> Result<()> {
    let scan = scan(Stage::new(&[])?, 3000)?;
    println!("{scan:?}");
    ensure!(scan.growth_kib <= 4 * 1024 && scan.lines <= 5, "{scan:?}");
    Ok(())
}

/// On a machine that other tests share the good client's time is told by a bound that only starving breaks; the promise
/// itself is measured by `cargo xtask hostile`.
fn slow_clients_starve_nobody() -> Result<()> {
    let stage = Stage::new(&[])?;
    for layer in Layer::ALL {
        let slow = slow(&stage, layer, 300, 40)?;
        println!("{slow:?}");
        ensure!(slow.is_within(1000.0), "{slow:?}");
        ensure!(slow.growth_kib <= 16 * 1024, "{slow:?}");
    }
    Ok(())
}
