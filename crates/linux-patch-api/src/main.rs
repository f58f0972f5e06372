//! The agent's network side: mTLS REST API, jobs, inventory. Unprivileged, starts no process.

fn main() {}
