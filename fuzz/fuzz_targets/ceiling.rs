//! See `patch_surface::ceiling`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| patch_surface::ceiling(bytes));
