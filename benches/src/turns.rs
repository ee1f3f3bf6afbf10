//! Parts common to all plans: switches in turn, the generator's thread, the file of `--json`.

use crate::backend::Switch;
use crate::error::BenchError;
use crate::machine::Machine;
use crate::options::{PlanOptions, RunOptions};
use crate::threads::{PRIORITY_MEASURE, Thread, pin};
use crate::watch::REALTIME;
use serde::Serialize;
use std::path::Path;

/// The switches named on the command line, crosspoint first.
pub fn switches(run: &RunOptions) -> Result<Vec<Switch>, BenchError> {
    let mut list = Vec::new();
    if !run.skip_crosspoint {
        list.push(Switch::Crosspoint);
    }
    list.extend(run.peers()?.into_iter().map(Switch::Peer));
    list.extend(run.against.iter().cloned().map(Switch::Running));
    Ok(list)
}

/// In order in even rounds, in reverse order in odd ones, so that drift of the machine favours no switch.
pub fn in_turn<T>(switches: &[T], round: u32) -> Box<dyn Iterator<Item = &T> + '_> {
    if round.is_multiple_of(2) {
        Box::new(switches.iter())
    } else {
        Box::new(switches.iter().rev())
    }
}

/// Runs `work` on the generator's core, on a separate thread: processes that are started later must not inherit the core.
pub fn on_generator_core<T: Send>(
    plan: &PlanOptions,
    realtime: bool,
    work: impl FnOnce() -> Result<T, BenchError> + Send,
) -> Result<T, BenchError> {
    on_core(plan.generator_core, realtime, work)
}

/// The same on `core`.
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

/// The file of `--json`.
#[derive(Serialize)]
struct Run<'a, T: ?Sized> {
    arguments: Vec<String>,
    tsc_hz: f64,
    machine: &'a Machine,
    trials: &'a T,
}

/// Writes the file, if it is asked for.
pub fn write_json<T: Serialize>(
    plan: &PlanOptions,
    machine: &Machine,
    trials: &[T],
) -> Result<(), BenchError> {
    write_file(plan.json.as_deref(), machine, trials)
}

/// Writes `trials` of any type to `path`, if there is one.
pub fn write_file<T: Serialize + ?Sized>(
    path: Option<&Path>,
    machine: &Machine,
    trials: &T,
) -> Result<(), BenchError> {
    let Some(path) = path else {
        return Ok(());
    };
    let run = Run {
        arguments: std::env::args().collect(),
        tsc_hz: machine.tsc_hz,
        machine,
        trials,
    };
    let written = serde_json::to_string_pretty(&run)
        .map_err(std::io::Error::from)
        .and_then(|text| std::fs::write(path, text + "\n"));
    written.map_err(BenchError::io(path.display().to_string()))
}
