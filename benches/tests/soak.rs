//! A minute of the soak, with the `crosspoint` program that lies beside the bench: `cargo test --workspace` builds both.

use std::process::Command;

/// Needs root, for a network namespace.
#[test]
fn no_promise_is_broken_in_a_minute_of_disturbances() {
    let mut soak = Command::new(env!("CARGO_BIN_EXE_crosspoint-bench"));
    let status = soak.args(["soak", "--minutes", "1"]).status();
    assert!(status.expect("the bench starts").success());
}
