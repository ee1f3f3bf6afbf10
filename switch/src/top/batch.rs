//! The tables as text, for scripts.

use std::io::{self, Write, stdout};
use std::thread;
use std::time::SystemTime;

use crosspoint_model::client::Client;
use crosspoint_model::request::Request;

use super::draw::{row, sheet_heading};
use super::model::Model;
use super::{Options, TopError};

/// Prints `count` refreshes of the view, or refreshes until the reader closes the pipe. The first comes after one interval,
/// so that each has rates. An empty line separates two. No column is left out, and no cell is cut off.
///
/// # Errors
///
/// The options name a column that does not exist, or there is no daemon at the beginning. If the daemon goes away later, its
/// error is printed in place of a refresh, and it is waited for.
pub fn batch(options: Options, count: Option<u64>) -> Result<(), TopError> {
    let mut model = Model::new(&options)?;
    let mut client = Client::new(&options.socket);
    model.take(
        Ok(client.request(&Request::Snapshot {})?),
        SystemTime::now(),
    );
    let mut printed = 0;
    while count.is_none_or(|count| printed < count) {
        thread::sleep(options.interval);
        let answer = client.request(&Request::Snapshot {});
        model.take(answer.map_err(|why| why.to_string()), SystemTime::now());
        let gap = if printed > 0 { "\n" } else { "" };
        if print(&format!("{gap}{}", text(&model))).is_err() {
            // The reader has closed the pipe.
            return Ok(());
        }
        printed += 1;
    }
    Ok(())
}

fn print(text: &str) -> io::Result<()> {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// One refresh.
pub(super) fn text(model: &Model) -> String {
    if let Some(fault) = model.fault_text() {
        return format!("{fault}\n");
    }
    let sheet = model.sheet();
    let widths = sheet.widths();
    let [first, second] = model.summary();
    let heading = sheet_heading(&sheet, model.order(), &widths);
    let lines = sheet.lines.iter().map(|line| {
        let cells = line.cells.iter().map(|cell| cell.text.as_str());
        row(&sheet, cells, &widths)
    });
    let all = [first, second, heading].into_iter().chain(lines);
    all.map(|line| line + "\n").collect()
}
