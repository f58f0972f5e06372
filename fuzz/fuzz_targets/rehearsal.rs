//! See `patch_surface::rehearsal`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| patch_surface::rehearsal(bytes));
