//! See `patch_surface::apt_indexes`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| patch_surface::apt_indexes(bytes));
