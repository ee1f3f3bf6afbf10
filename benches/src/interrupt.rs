//! SIGINT and SIGTERM end a run between two trials, so that no switch is left polling. The second signal ends it at once.

use crate::error::BenchError;
use signal_hook::consts::{SIGINT, SIGTERM};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

static INTERRUPTED: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// A shell's exit status for a program that a signal ended, minus the signal's number.
const EXIT_BY_SIGNAL: i32 = 128;

/// From here on signals are only recorded.
pub fn catch() -> Result<(), BenchError> {
    let flag = INTERRUPTED.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM] {
        let exit = EXIT_BY_SIGNAL + signal;
        signal_hook::flag::register_conditional_shutdown(signal, exit, Arc::clone(flag))
            .map_err(BenchError::io("signals"))?;
        signal_hook::flag::register(signal, Arc::clone(flag)).map_err(BenchError::io("signals"))?;
    }
    Ok(())
}

/// Fails after a signal.
pub fn check() -> Result<(), BenchError> {
    let noted = |flag: &Arc<AtomicBool>| flag.load(Ordering::Relaxed);
    match INTERRUPTED.get().is_some_and(noted) {
        true => Err(BenchError::Interrupted),
        false => Ok(()),
    }
}
