//! Changing packages: argv, run, classify. Used by the root side only.
