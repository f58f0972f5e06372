//! See `patch_surface::classify`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| patch_surface::classify(bytes));
