//! The sheets as text, for scripts.

use std::io::{self, Write, stdout};
use std::thread;

use super::draw::{row, sheet_heading};
use super::model::Model;
use super::{Options, TopError};
use crate::api::{Client, Request};

/// Prints `count` refreshes of the view, or all until nobody reads; the first when one interval has passed, so that each
/// has rates. Between two there is an empty line. No column is left out, and nothing cut off.
///
/// # Errors
///
/// Where the options name no column, or there is no daemon at the beginning. One that goes away later is told in place of
/// a refresh, and waited for.
pub fn batch(options: Options, count: Option<u64>) -> Result<(), TopError> {
    let mut model = Model::new(&options)?;
    let mut client = Client::new(&options.socket);
    model.take(Ok(client.request(&Request::Snapshot {})?));
    let mut printed = 0;
    while count.is_none_or(|count| printed < count) {
        thread::sleep(options.interval);
        let answer = client.request(&Request::Snapshot {});
        model.take(answer.map_err(|why| why.to_string()));
        let gap = if printed > 0 { "\n" } else { "" };
        if print(&format!("{gap}{}", text(&model))).is_err() {
            // Who reads only the beginning has read enough.
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
    if let Some(fault) = model.fault() {
        return format!("{fault}; trying again\n");
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
