//! See `patch_surface::status_fd`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| patch_surface::status_fd(bytes));
