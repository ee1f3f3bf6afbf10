//! vhost-user sessions of arbitrary messages and descriptors: the switch's own session code, on a socket pair, with a
//! dataplane that has one worker and two honest guests. After every session nothing of it remains, its port is down, and
//! the honest guests exchange frames as before.
#![no_main]

mod reader;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| reader::input(bytes));
