//! See `patch_surface::host_facts`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| patch_surface::host_facts(bytes));
