//! See `patch_surface::argv`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| patch_surface::argv(bytes));
