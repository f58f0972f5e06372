//! See `patch_surface::certificates`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| patch_surface::certificates(bytes));
