//! See `patch_surface::allow_list`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| patch_surface::allow_list(bytes));
