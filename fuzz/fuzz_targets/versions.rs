//! See `patch_surface::versions`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| patch_surface::versions(bytes));
