//! See `patch_surface::stale`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| patch_surface::stale(bytes));
