//! See `patch_surface::snapshots`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| patch_surface::snapshots(bytes));
