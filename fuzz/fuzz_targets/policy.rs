//! See `patch_surface::policy`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| patch_surface::policy(bytes));
