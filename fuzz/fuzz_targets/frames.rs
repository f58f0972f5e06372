//! See `patch_surface::frames`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| patch_surface::frames(bytes));
