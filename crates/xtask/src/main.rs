//! The project's own commands: demo, test, bench, dist, openapi, check-deps, host.

fn main() {}
