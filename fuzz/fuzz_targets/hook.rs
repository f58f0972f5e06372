//! See `patch_surface::hook`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| patch_surface::hook(bytes));
