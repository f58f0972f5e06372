//! See `patch_surface::audit`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| patch_surface::audit(bytes));
