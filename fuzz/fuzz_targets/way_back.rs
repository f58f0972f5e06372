//! See `patch_surface::way_back`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| patch_surface::way_back(bytes));
