//! The schedule of a run: switches in turn, and work on a chosen core.

use crate::error::BenchError;
use crate::lab::{PRIORITY_MEASURE, Thread, pin};

/// Error text if the permission is missing.
pub const REALTIME: &str = "--realtime needs CAP_SYS_NICE";

/// In order in even rounds, in reverse order in odd ones, so that drift of the machine favours no switch.
pub fn in_turn<T>(switches: &[T], round: u32) -> Box<dyn Iterator<Item = &T> + '_> {
    if round.is_multiple_of(2) {
        Box::new(switches.iter())
    } else {
        Box::new(switches.iter().rev())
    }
}

/// Runs `work` on `core`, under `SCHED_FIFO` if `realtime`, on a separate thread: processes that are started later must not inherit the core.
pub fn on_core<T: Send>(
    core: usize,
    realtime: bool,
    work: impl FnOnce() -> Result<T, BenchError> + Send,
) -> Result<T, BenchError> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            pin(core).map_err(BenchError::io(format!("core {core}")))?;
            if realtime {
                let set = Thread::current().set_fifo(PRIORITY_MEASURE);
                set.map_err(BenchError::io(REALTIME))?;
            }
            work()
        });
        thread.join().expect("the release profile aborts on panics")
    })
}
