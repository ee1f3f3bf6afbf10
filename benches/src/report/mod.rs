//! The files and tables of results.
//!
//! | module | what |
//! |---|---|
//! | [`table`] | the writer of tables |
//! | [`samples`] | values of any kind, and their tables |
//! | [`results`], [`values`] | the results file of scenarios, and values taken from it |
//! | [`summary`], [`throughput`], [`plot`] | its report: all of it, the tables of rates, the plots |

pub mod plot;
pub mod results;
pub mod samples;
pub mod summary;
pub mod table;
pub mod throughput;
mod values;

use crate::error::BenchError;
use crate::lab::machine::Machine;
use clap::Args;
use results::Results;
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};

/// Name of the results file.
const RESULTS: &str = "results.json";
/// Name of the report beside it.
const REPORT: &str = "report.md";

/// Options of `report`.
#[derive(Args, Clone, Debug)]
pub struct ReportOptions {
    /// A file written by `--out`
    #[arg(value_name = "results.json")]
    pub results: PathBuf,
    /// Write report.md, results.json and plots to this directory
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,
}

/// Runs `crosspoint-bench report`.
pub fn run(options: &ReportOptions) -> Result<(), BenchError> {
    write(&Results::read(&options.results)?, &options.out)
}

/// Writes the results, their report and its plots into `directory`, which is created if it is missing.
pub fn write(results: &Results, directory: &Path) -> Result<(), BenchError> {
    let plots = plot::all(results);
    write_files(directory, results, &summary::report(results, &plots))?;
    for plot in &plots {
        let path = directory.join(&plot.file);
        fs::write(&path, &plot.svg).map_err(BenchError::io(path.display().to_string()))?;
    }
    Ok(())
}

/// Writes results of any type, and the report made of them.
pub fn write_files<T: Serialize + ?Sized>(
    directory: &Path,
    results: &T,
    report: &str,
) -> Result<(), BenchError> {
    let io = || BenchError::io(directory.display().to_string());
    fs::create_dir_all(directory).map_err(io())?;
    write_pretty(&directory.join(RESULTS), results)?;
    fs::write(directory.join(REPORT), report).map_err(io())
}

/// The file of `--json`.
#[derive(Serialize)]
struct Run<'a, T: ?Sized> {
    arguments: Vec<String>,
    tsc_hz: f64,
    machine: &'a Machine,
    trials: &'a T,
}

/// Writes `trials` of any type to `path`, the file of `--json`, if there is one.
pub fn write_json<T: Serialize + ?Sized>(
    path: Option<&PathBuf>,
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
    write_pretty(path, &run)
}

fn write_pretty<T: Serialize + ?Sized>(path: &Path, value: &T) -> Result<(), BenchError> {
    let text = serde_json::to_string_pretty(value).map_err(std::io::Error::from);
    let written = text.and_then(|text| fs::write(path, text + "\n"));
    written.map_err(BenchError::io(path.display().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use results::tests::made_up;

    #[test]
    fn what_is_written_is_read_again_and_renders_the_same() {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let results = made_up();
        write(&results, first.path()).unwrap();
        let file = first.path().join(RESULTS);
        assert_eq!(Results::read(&file).unwrap(), results);
        let again = ReportOptions {
            results: file,
            out: second.path().into(),
        };
        run(&again).unwrap();
        for entry in fs::read_dir(first.path()).unwrap() {
            let name = entry.unwrap().file_name();
            let read = |directory: &Path| fs::read(directory.join(&name)).unwrap();
            assert_eq!(read(first.path()), read(second.path()), "{name:?}");
        }
    }
}
