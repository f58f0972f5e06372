//! See `patch_surface::bodies`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| patch_surface::bodies(bytes));
