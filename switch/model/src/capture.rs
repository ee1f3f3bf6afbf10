//! Frames for people to read: `crosspoint capture` and `crosspoint trace`.
//!
//! The engine's [`Tap`](crosspoint_engine::observe::tap::Tap) copies the first bytes of frames and their verdicts. This module takes
//! them from its slots and sends them to a client of the control socket, on a separate thread. A client that reads too
//! slowly makes the tap miss frames; they are counted, and no worker waits.
//!
//! # On the control socket
//!
//! `{"capture":{...}}`, with the keys of [`Wanted`], is answered with a line: `{"ok":{...}}` with the keys of [`Begin`], or
//! an error. Messages follow until the client closes its sending half, or until the number of frames that it asked for has
//! been sent. A message is:
//!
//! | bytes | are |
//! |---|---|
//! | 4 | length of the header, little-endian |
//! | 4 | length of the frame's bytes, little-endian |
//! | as many | the header, a [`Message`] in JSON: `{"frame":{...}}`; the last is `{"end":{...}}` |
//! | as many | the frame's first bytes |
//!
//! `{"trace":{...}}`, with the keys of [`TraceWanted`], is answered with a line `{"ok":{...}}` for each frame, a
//! `Trace` (`trace.rs`); then the connection ends. Both are for root and the daemon's user only, since frames are
//! confidential.

mod decode;

use std::io::{self, Read, Write};

use crosspoint_packet::filter::Filter;
use crosspoint_packet::{MAX_FRAME_LEN, TAG_LEN};
pub use decode::line as decode;
use serde::{Deserialize, Serialize};

/// Default for the bytes kept of each frame.
pub const SNAPLEN_DEFAULT: u32 = 2048;
/// The most bytes kept of a frame: the longest frame.
pub const SNAPLEN_MAX: u32 = (MAX_FRAME_LEN + TAG_LEN) as u32;
/// Default for the frames per second that each worker inspects.
pub const RATE_DEFAULT: u64 = 10_000;
/// The most frames that one trace follows.
pub const TRACES_MAX: u64 = 10_000;
/// The longest header of a message.
const HEADER_MAX: u32 = 64 << 10;

/// Which frames are wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wanted {
    /// Of this port only.
    pub port: Option<String>,
    /// Of this queue of the port only.
    pub queue: Option<u16>,
    /// Those that come from ports.
    pub received: bool,
    /// Copies that go to ports.
    pub sent: bool,
    /// Only those that are dropped.
    pub dropped: bool,
    /// Bytes kept of each frame, 14 to [`SNAPLEN_MAX`].
    pub snaplen: u32,
    /// Number of frames; `None` for no limit.
    pub count: Option<u64>,
    /// Frames per second that each worker inspects.
    pub rate: u64,
    /// Only frames that this filter selects: see [`crosspoint_packet::filter`].
    pub filter: String,
}

impl Default for Wanted {
    fn default() -> Wanted {
        Wanted {
            port: None,
            queue: None,
            received: true,
            sent: true,
            dropped: false,
            snaplen: SNAPLEN_DEFAULT,
            count: None,
            rate: RATE_DEFAULT,
            filter: String::new(),
        }
    }
}

/// Which frames are to be traced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceWanted {
    /// The port that they come in on.
    pub port: String,
    /// Number of received frames to trace; at most [`TRACES_MAX`].
    #[serde(default = "one")]
    pub count: u64,
    /// Only frames that this filter selects.
    #[serde(default)]
    pub filter: String,
    /// This frame, in hexadecimal, instead of received ones: explains what would happen to it.
    #[serde(default)]
    pub frame: Option<String>,
}

fn one() -> u64 {
    1
}

/// First answer to a capture request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// Ports whose frames may appear. Ports may be added later.
    pub ports: Vec<PortInfo>,
    /// Bytes kept of each frame.
    pub snaplen: u32,
}

/// A port, as described to readers of the capture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortInfo {
    /// Its name.
    pub name: String,
    /// "vhost port, VLAN unaware".
    pub description: String,
}

/// A message of a capture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// A frame; its bytes follow the header.
    Frame(Record),
    /// The capture has ended.
    End(Totals),
}

/// A captured frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Time of capture: nanoseconds since 1970 (UTC).
    pub time_ns: u64,
    /// The port that it came from or goes to.
    pub port: String,
    /// That port's queue.
    pub queue: u16,
    /// The worker that handled it.
    pub worker: usize,
    /// Its number on that worker. Copies that were sent have the number of the received frame. Absent for a frame that was
    /// joined from several.
    pub serial: Option<u64>,
    /// Its direction.
    pub direction: Direction,
    /// What happened to it.
    pub verdict: Verdict,
    /// The whole frame's length, bytes.
    pub len: u32,
    /// Offload work that its sender has left to the receiver, if any.
    pub offload: Option<Offload>,
    /// Frames missed so far.
    pub missed: u64,
    /// Its first bytes, which follow the header.
    #[serde(skip)]
    pub bytes: Vec<u8>,
}

/// A frame's direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From the port into the switch.
    Received,
    /// From the switch to the port.
    Sent,
}

/// What happened to a frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Received: it goes to the port of this name.
    Port(String),
    /// Received: it goes to every other port that carries its VLAN.
    Flood,
    /// Sent: the port took it.
    Delivered,
    /// It was dropped, for the reason with this label.
    Dropped(String),
}

impl Verdict {
    /// One word: "port", "flood", "delivered", or the reason.
    pub fn word(&self) -> &str {
        match self {
            Verdict::Port(_) => "port",
            Verdict::Flood => "flood",
            Verdict::Delivered => "delivered",
            Verdict::Dropped(reason) => reason,
        }
    }
}

/// Offload work left to the receiver, in virtio's terms (virtio 1.2, 5.1.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Offload {
    /// If a checksum is to be computed: the offset where it begins, in bytes from the frame's start, and the offset from
    /// there where it is to be stored.
    pub checksum: Option<(u16, u16)>,
    /// Kind of segmentation; 0 for none.
    pub gso_type: u8,
    /// Payload bytes per segment.
    pub gso_size: u16,
}

/// Numbers of frames of a capture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Sent to the client.
    pub captured: u64,
    /// Selected, but lost because the client read too slowly.
    pub missed: u64,
    /// Not inspected, because they exceeded the rate limit.
    pub over_rate: u64,
    /// Whether the capture ended because another process of the switch has taken over.
    #[serde(default)]
    pub is_replaced: bool,
}

/// Why a capture or a trace cannot start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct CaptureError {
    /// What is wrong.
    pub error: String,
    /// What to do about it.
    pub help: String,
}

impl CaptureError {
    /// An error, and what to do about it.
    pub fn new(error: impl Into<String>, help: impl Into<String>) -> CaptureError {
        CaptureError {
            error: error.into(),
            help: help.into(),
        }
    }
}

/// Reads a frame in hexadecimal, with or without colons, dashes and spaces between the digits.
///
/// # Errors
///
/// If there is another character, or half a byte.
pub fn frame_bytes(hex: &str) -> Result<Vec<u8>, CaptureError> {
    let wrong = |what: &str| {
        let help = "write two hexadecimal digits for each byte; colons, dashes and spaces may separate them";
        CaptureError::new(format!("the frame {what}"), help)
    };
    let digits: Option<Vec<u8>> = hex
        .chars()
        .filter(|c| !c.is_whitespace() && !matches!(c, ':' | '-'))
        .map(|c| c.to_digit(16).map(|digit| digit as u8))
        .collect();
    let digits = digits.ok_or_else(|| wrong("is not in hexadecimal"))?;
    if digits.is_empty() || digits.len() % 2 != 0 {
        return Err(wrong("has an odd number of hexadecimal digits, or none"));
    }
    let pairs = digits.chunks_exact(2);
    Ok(pairs
        .map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit))
        .collect())
}

/// Parses a filter. An error shows the filter with a mark under the wrong place.
pub fn filter(text: &str) -> Result<Filter, CaptureError> {
    Filter::parse(text).map_err(|wrong| {
        let mark = " ".repeat(wrong.column - 1) + &"^".repeat(wrong.width);
        CaptureError::new(
            format!("the filter is wrong: {wrong}"),
            format!("{}\n      {mark}", text.replace(['\n', '\t'], " ")),
        )
    })
}

impl Wanted {
    /// Checks everything that does not depend on the switch.
    pub fn check(&self) -> Result<Filter, CaptureError> {
        if self.queue.is_some() && self.port.is_none() {
            return Err(CaptureError::new(
                "a queue is named without its port",
                "name it as PORT:QUEUE",
            ));
        }
        if !self.received && !self.sent {
            return Err(CaptureError::new(
                "neither received nor sent frames are selected",
                "select one of them, or both",
            ));
        }
        if !(14..=SNAPLEN_MAX).contains(&self.snaplen) {
            return Err(CaptureError::new(
                format!("frames cannot be cut at {} bytes", self.snaplen),
                format!("choose from 14 to {SNAPLEN_MAX} bytes"),
            ));
        }
        if self.rate == 0 || self.count == Some(0) {
            return Err(CaptureError::new(
                "rate or count is 0, so no frame would be captured",
                "rate and count must be at least 1",
            ));
        }
        filter(&self.filter)
    }
}

/// The time of day (UTC), to a microsecond: `20:03:29.123456`.
pub fn time_of_day(ns: u64) -> String {
    let (seconds, micros) = (ns / 1_000_000_000 % 86400, ns / 1000 % 1_000_000);
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{micros:06}", seconds % 60)
}

impl std::fmt::Display for Record {
    /// One line: time, place, direction, verdict and contents.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let way = match self.direction {
            Direction::Received => "rx",
            Direction::Sent => "tx",
        };
        let verdict = match &self.verdict {
            Verdict::Port(port) => format!("to {port}"),
            Verdict::Flood => "flooded".to_owned(),
            Verdict::Delivered => "delivered".to_owned(),
            Verdict::Dropped(reason) => format!("dropped: {reason}"),
        };
        let (time, place) = (
            time_of_day(self.time_ns),
            format!("{}:{}", self.port, self.queue),
        );
        let what = decode(&self.bytes, self.len, false);
        write!(f, "{time} {place:<12} {way} {verdict:<16} {what}")
    }
}

/// Writes a message.
pub fn write_message(message: &Message, bytes: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    let begin = out.len();
    out.extend([0; 4]);
    out.extend((bytes.len() as u32).to_le_bytes());
    serde_json::to_writer(&mut *out, message)?;
    let header = (out.len() - begin - 8) as u32;
    if let Some(place) = out.get_mut(begin..begin + 4) {
        place.copy_from_slice(&header.to_le_bytes());
    }
    out.write_all(bytes)
}

/// Reads a message; a frame's bytes are in its record. `None` at the end of the stream.
pub fn read_message(from: &mut impl Read) -> io::Result<Option<Message>> {
    let mut lengths = [[0; 4]; 2];
    let [header, bytes] = &mut lengths;
    match from.read(&mut header[..1])? {
        0 => return Ok(None),
        _ => from.read_exact(&mut header[1..])?,
    }
    from.read_exact(bytes)?;
    let [header, bytes] = lengths.map(u32::from_le_bytes);
    if header > HEADER_MAX || bytes > SNAPLEN_MAX {
        return Err(io::Error::other("a message is longer than any may be"));
    }
    let mut buffer = vec![0; header as usize];
    from.read_exact(&mut buffer)?;
    let mut message = serde_json::from_slice(&buffer)?;
    buffer.resize(bytes as usize, 0);
    from.read_exact(&mut buffer)?;
    if let Message::Frame(record) = &mut message {
        record.bytes = buffer;
    }
    Ok(Some(message))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record() -> impl Strategy<Value = Record> {
        let word = || "[a-z\"\\\\é0-9-]{1,20}";
        let verdict = prop_oneof![
            word().prop_map(Verdict::Port),
            Just(Verdict::Flood),
            Just(Verdict::Delivered),
            word().prop_map(Verdict::Dropped),
        ];
        let serial = proptest::option::of(any::<u64>());
        let bytes = prop::collection::vec(any::<u8>(), 0..200);
        let numbers = (any::<u64>(), any::<u16>(), 0..64_usize, any::<u32>());
        (word(), verdict, serial, bytes, any::<bool>(), numbers).prop_map(
            |(port, verdict, serial, bytes, sent, (time_ns, queue, worker, len))| Record {
                time_ns,
                port,
                queue,
                worker,
                serial,
                direction: if sent {
                    Direction::Sent
                } else {
                    Direction::Received
                },
                verdict,
                len,
                offload: sent.then_some(Offload {
                    checksum: Some((queue, 16)),
                    gso_type: 1,
                    gso_size: queue,
                }),
                missed: time_ns / 3,
                bytes,
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(records in prop::collection::vec(record(), 0..8), captured: u64) {
            let mut stream = Vec::new();
            for record in &records {
                write_message(&Message::Frame(record.clone()), &record.bytes, &mut stream).unwrap();
            }
            let end = Message::End(Totals { captured, ..Totals::default() });
            write_message(&end, &[], &mut stream).unwrap();
            let mut from = &stream[..];
            for record in records {
                prop_assert_eq!(read_message(&mut from).unwrap(), Some(Message::Frame(record)));
            }
            prop_assert_eq!(read_message(&mut from).unwrap(), Some(end));
            prop_assert_eq!(read_message(&mut from).unwrap(), None);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut from = &bytes[..];
            while let Ok(Some(_)) = read_message(&mut from) {}
            let header = [&20_u32.to_le_bytes()[..], &[0; 4], &bytes].concat();
            let _ = read_message(&mut &header[..]);
        }
    }

    #[test]
    fn a_request_has_these_keys_and_the_rest_is_said() {
        let wanted: Wanted = serde_json::from_str(r#"{"port":"web-1","filter":"arp"}"#).unwrap();
        assert_eq!((wanted.rate, wanted.sent), (RATE_DEFAULT, true));
        assert!(wanted.check().is_ok());
        assert!(serde_json::from_str::<Wanted>(r#"{"prot":"web-1"}"#).is_err());
        let wrong = |change: fn(&mut Wanted)| {
            let mut wanted = Wanted::default();
            change(&mut wanted);
            wanted.check().unwrap_err()
        };
        assert!(wrong(|w| w.queue = Some(1)).help.contains("PORT:QUEUE"));
        assert!(
            wrong(|w| (w.received, w.sent) = (false, false))
                .error
                .contains("neither")
        );
        assert!(wrong(|w| w.snaplen = 13).help.contains("65554"));
        assert!(wrong(|w| w.count = Some(0)).help.contains("at least 1"));
        let error = wrong(|w| w.filter = "tcp prot 80".to_owned());
        assert_eq!(error.help, "tcp prot 80\n          ^^^^");
    }
}
