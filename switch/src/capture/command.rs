//! `crosspoint capture`: wiring; the text is made in `crosspoint_model::capture`.

use std::fs::{File, Permissions};
use std::io::{self, BufWriter, IsTerminal, Write, stdout};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::ValueEnum;
use crosspoint_model::capture::{
    CaptureError, Message, RATE_DEFAULT, Record, SNAPLEN_DEFAULT, Totals, Wanted,
};
use crosspoint_model::client::{ClientError, Closer, Frames};
use miette::Diagnostic;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::capture::pcapng::Writer;
use crate::completions::ports;
use crate::control;

/// The exit status after a second interrupt: 128 plus the signal's number.
const INTERRUPTED: i32 = 130;

/// Frames and their verdicts: lines for people, or a file for Wireshark.
#[derive(clap::Args)]
pub(crate) struct Capture {
    /// The port, and the queue if only one is wanted; `any` or nothing for all ports
    #[arg(value_name = "PORT[:QUEUE]", add = ports())]
    place: Option<String>,
    /// Only frames that match this filter, in tcpdump's syntax: `tcp port 80 and host 10.0.0.1`
    #[arg(value_name = "EXPRESSION")]
    expression: Vec<String>,
    /// The same filter, for captures without a named port
    #[arg(long, value_name = "EXPRESSION", conflicts_with = "expression")]
    filter: Option<String>,
    /// Write pcapng to this file; `-` for standard output, as in `capture -w - | wireshark -k -i -`
    #[arg(short, long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// Frames that come from ports (rx), copies that go to ports (tx), or both
    #[arg(long, value_enum, default_value_t)]
    direction: Way,
    /// Only frames that are dropped
    #[arg(long)]
    dropped: bool,
    /// Bytes kept of each frame
    #[arg(short, long, value_name = "BYTES", default_value_t = SNAPLEN_DEFAULT)]
    snaplen: u32,
    /// End after this many frames
    #[arg(short, long, value_name = "N")]
    count: Option<u64>,
    /// Frames per second that each worker inspects; frames above this rate are only counted
    #[arg(long, value_name = "N", default_value_t = RATE_DEFAULT)]
    rate: u64,
    /// End after this time: `10s`, `500ms`, `5m`
    #[arg(long, value_name = "TIME", value_parser = duration)]
    duration: Option<Duration>,
    #[command(flatten)]
    socket: crate::control::Socket,
}

/// Direction of frames.
#[derive(Clone, Copy, Default, ValueEnum)]
enum Way {
    Rx,
    Tx,
    #[default]
    Both,
}

/// A number of ms, s, m or h.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "a time such as 10s, 500ms or 5m".to_owned();
    let units = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)];
    let found = units
        .iter()
        .find_map(|(unit, ms)| Some((text.strip_suffix(unit)?, ms)));
    let (number, ms) = found.ok_or_else(wrong)?;
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let ms = number.checked_mul(*ms).filter(|ms| *ms > 0);
    ms.map(Duration::from_millis).ok_or_else(wrong)
}

/// `PORT`, `PORT:QUEUE` or `any`.
fn place(text: Option<&str>) -> Result<(Option<String>, Option<u16>), CaptureError> {
    match text {
        None | Some("any") => Ok((None, None)),
        Some(text) => match text.rsplit_once(':') {
            None => Ok((Some(text.to_owned()), None)),
            Some(("any", _)) => Err(CaptureError::new(
                format!("`{text}`: only a port's name is followed by a queue"),
                "for all queues of all ports: crosspoint capture any",
            )),
            Some((port, queue)) => match queue.parse() {
                Ok(queue) => Ok((Some(port.to_owned()), Some(queue))),
                Err(_) => Err(CaptureError::new(
                    format!("`{text}`: `{queue}` is not the number of a queue"),
                    format!("for example: crosspoint capture {port}:0"),
                )),
            },
        },
    }
}

pub(crate) fn complain(error: &ClientError) -> ExitCode {
    eprintln!("error: {error}");
    if let Some(help) = error.help() {
        eprintln!("help: {help}");
    }
    ExitCode::FAILURE
}

pub(crate) fn refuse(why: &CaptureError) -> ExitCode {
    eprintln!("error: {why}\nhelp: {}", why.help);
    ExitCode::from(control::MISUSE)
}

/// Makes the first SIGINT or SIGTERM, or the end of the time, close the capture in order, and a second signal end the
/// process at once.
pub(crate) fn end_by_signal(closer: Closer, after: Option<Duration>) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let closer = std::sync::Arc::new(closer);
    if let Some(after) = after {
        let closer = closer.clone();
        std::thread::spawn(move || {
            std::thread::sleep(after);
            closer.close();
        });
    }
    std::thread::spawn(move || {
        let mut signals = signals.forever();
        if signals.next().is_some() {
            closer.close();
        }
        if signals.next().is_some() {
            std::process::exit(INTERRUPTED);
        }
    });
    Ok(())
}

impl Capture {
    /// Shows frames until there are enough; exits with 0 if the capture ended in order.
    pub(crate) fn run(self) -> ExitCode {
        let filter = self
            .filter
            .clone()
            .unwrap_or_else(|| self.expression.join(" "));
        let (port, queue) = match place(self.place.as_deref()) {
            Ok(place) => place,
            Err(why) => return refuse(&why),
        };
        let wanted = Wanted {
            port,
            queue,
            received: !matches!(self.direction, Way::Tx),
            sent: !matches!(self.direction, Way::Rx),
            dropped: self.dropped,
            snaplen: self.snaplen,
            count: self.count,
            rate: self.rate,
            filter,
        };
        if let Err(why) = wanted.check() {
            return refuse(&why);
        }
        if self.write.as_deref() == Some(Path::new("-")) && stdout().is_terminal() {
            eprintln!(
                "error: a capture file cannot be written to a terminal\nhelp: name a file, or pipe it: crosspoint capture -w - | wireshark -k -i -"
            );
            return ExitCode::from(control::MISUSE);
        }
        let frames = match Frames::ask(&self.socket.socket, &wanted) {
            Ok(frames) => frames,
            Err(error) => return complain(&error),
        };
        let file = match &self.write {
            Some(path) if path != Path::new("-") => match create(path) {
                Ok(file) => Some(file),
                Err(why) => return no_file(path, &why),
            },
            _ => None,
        };
        let ready = frames
            .closer()
            .and_then(|closer| end_by_signal(closer, self.duration));
        let result = ready.and_then(|()| match (file, &self.write) {
            (Some(file), _) => write(frames, file, &wanted.filter),
            (None, Some(_)) => write(frames, stdout().lock(), &wanted.filter),
            (None, None) => print(frames),
        });
        match result {
            Ok(Some(totals)) => {
                eprintln!("{}", words(&totals, &wanted));
                ExitCode::SUCCESS
            }
            // The reader has closed the pipe.
            Ok(None) => ExitCode::SUCCESS,
            Err(why) => {
                eprintln!("error: the capture ended early: {why}");
                eprintln!(
                    "help: see whether the switch still runs (`crosspoint health`), and whether the file's disk is full"
                );
                ExitCode::FAILURE
            }
        }
    }
}

fn no_file(path: &Path, why: &io::Error) -> ExitCode {
    eprintln!("error: cannot write to {}: {why}", path.display());
    eprintln!("help: name a file of your own, in a folder that exists and that you may write to");
    ExitCode::FAILURE
}

/// Opens a file that only its owner may read, also if it existed before: frames are confidential.
fn create(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    let file = options.write(true).create(true).mode(0o600).open(path)?;
    let found = file.metadata()?;
    // Only a regular file stores anything; a pipe, for instance, does not.
    if found.is_file() {
        if found.uid() != rustix::process::geteuid().as_raw() {
            return Err(io::Error::other("it is another user's file"));
        }
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.set_len(0)?;
    }
    Ok(file)
}

fn words(totals: &Totals, wanted: &Wanted) -> String {
    let Totals {
        captured,
        missed,
        over_rate,
        is_replaced,
    } = totals;
    let mut text = format!("{captured} captured, {missed} missed, {over_rate} over the rate");
    if *is_replaced {
        text += "\nthe switch was upgraded, which ends captures: start it again for what follows";
    }
    if *missed > 0 {
        text += "\nhelp: frames were missed because they were read too slowly: write to a file, use a filter, or keep fewer bytes (--snaplen)";
    }
    if *over_rate > 0 {
        let rate = wanted.rate;
        text += &format!(
            "\nhelp: each worker looked at {rate} frames a second at most: raise --rate, or capture one port; a filter does not help"
        );
    }
    text
}

/// Passes each frame on, and returns the totals; `None` if the reader has closed the pipe.
fn each(
    frames: Frames,
    mut hand_on: impl FnMut(&Record, bool) -> io::Result<()>,
) -> io::Result<Option<Totals>> {
    let mut frames = frames;
    while let Some(message) = frames.next() {
        match message? {
            Message::End(totals) => return Ok(Some(totals)),
            Message::Frame(record) => match hand_on(&record, !frames.has_more()) {
                Err(why) if why.kind() == io::ErrorKind::BrokenPipe => return Ok(None),
                other => other?,
            },
        }
    }
    Err(io::Error::other("the switch closed the connection"))
}

fn print(frames: Frames) -> io::Result<Option<Totals>> {
    let mut out = BufWriter::new(stdout().lock());
    each(frames, |record, last| {
        writeln!(out, "{record}")?;
        if last { out.flush() } else { Ok(()) }
    })
}

fn write(frames: Frames, out: impl Write, filter: &str) -> io::Result<Option<Totals>> {
    let mut writer = Writer::new(BufWriter::new(out), &frames.begin, filter)?;
    // Written now, so that a reader of the growing file sees the ports at once.
    writer.flush()?;
    let totals = each(frames, |record, last| {
        writer.write(record)?;
        if last { writer.flush() } else { Ok(()) }
    })?;
    if let Some(totals) = &totals {
        writer.finish(totals)?;
    }
    Ok(totals)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_and_times_are_read() {
        let of = |text| place(Some(text));
        assert_eq!(of("web-1:3"), Ok((Some("web-1".to_owned()), Some(3))));
        assert_eq!(of("web-1"), Ok((Some("web-1".to_owned()), None)));
        assert_eq!(of("any"), Ok((None, None)));
        let refused = |text| of(text).expect_err("it is refused").to_string();
        assert!(refused("any:3").contains("a port's name"));
        for wrong in ["web-1:x", "web-1:", "web-1:70000"] {
            assert!(
                refused(wrong).contains("not the number of a queue"),
                "{wrong}"
            );
        }
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert!(
            ["5", "s", "-1s", "0s", "99999999999999999999h", "1d"]
                .iter()
                .all(|text| duration(text).is_err())
        );
    }
}
