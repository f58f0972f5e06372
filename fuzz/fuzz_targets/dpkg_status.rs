//! See `patch_surface::dpkg_status`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| patch_surface::dpkg_status(bytes));
