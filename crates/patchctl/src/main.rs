//! The operator's command line for the agents.

fn main() {}
