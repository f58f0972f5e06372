//! See `patch_surface::solver`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| patch_surface::solver(bytes));
