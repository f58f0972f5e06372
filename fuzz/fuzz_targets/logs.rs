//! See `patch_surface::logs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| patch_surface::logs(bytes));
