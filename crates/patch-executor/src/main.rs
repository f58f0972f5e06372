//! The root side: one operation a process, a journalled state machine.

fn main() {}
