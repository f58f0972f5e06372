//! See `patch_surface::revocation`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| patch_surface::revocation(bytes));
