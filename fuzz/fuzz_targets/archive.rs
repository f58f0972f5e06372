//! See `patch_surface::archive`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| patch_surface::archive(bytes));
