//! See `patch_surface::compliance`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| patch_surface::compliance(bytes));
