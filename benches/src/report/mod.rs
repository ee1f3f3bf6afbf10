//! The files and tables of results.
//!
//! | module | what |
//! |---|---|
//! | [`table`] | the writer of tables |
//! | [`samples`] | values of trials, their groups, ratios and tables |
//! | [`results`], [`summary`] | the results of scenarios, and their report |

pub mod results;
pub mod samples;
pub mod summary;
pub mod table;

pub use results::{Missing, Results};
pub use samples::{Group, Sample, discards, groups, ratios, tables};
pub use table::{Table, fixed, number, percent};

use crate::error::BenchError;
use crate::lab::Machine;
use serde::Serialize;
use std::fs;
use std::path::Path;

/// Writes the results and their report into `directory`.
pub fn write(results: &Results, directory: &Path) -> Result<(), BenchError> {
    write_files(directory, results, &summary::report(results))
}

/// Writes results of any type, and the report made of them, into `directory`, which is created if it is missing.
pub fn write_files<T: Serialize + ?Sized>(
    directory: &Path,
    results: &T,
    report: &str,
) -> Result<(), BenchError> {
    let io = || BenchError::io(directory.display().to_string());
    fs::create_dir_all(directory).map_err(io())?;
    write_pretty(&directory.join("results.json"), results)?;
    fs::write(directory.join("report.md"), report).map_err(io())
}

/// The file of `--json`.
#[derive(Serialize)]
struct Run<'a, T: ?Sized> {
    arguments: Vec<String>,
    machine: &'a Machine,
    trials: &'a T,
}

/// Writes `trials` of any type to `path`, the file of `--json`.
pub fn write_json<T: Serialize + ?Sized>(
    path: &Path,
    machine: &Machine,
    trials: &T,
) -> Result<(), BenchError> {
    let run = Run {
        arguments: std::env::args().collect(),
        machine,
        trials,
    };
    write_pretty(path, &run)
}

fn write_pretty<T: Serialize + ?Sized>(path: &Path, value: &T) -> Result<(), BenchError> {
    let text = serde_json::to_string_pretty(value).map_err(std::io::Error::from);
    let written = text.and_then(|text| fs::write(path, text + "\n"));
    written.map_err(BenchError::io(path.display().to_string()))
}
