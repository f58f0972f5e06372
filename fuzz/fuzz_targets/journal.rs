//! See `patch_surface::journal`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| patch_surface::journal(bytes));
