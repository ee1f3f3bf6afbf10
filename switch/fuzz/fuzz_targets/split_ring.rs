//! See [`ring`]: split rings.
#![no_main]

mod ring;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| ring::input(bytes, false));
