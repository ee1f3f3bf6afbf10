//! The daemon's side of captures and traces. Each runs on a separate thread.

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crosspoint_engine::observe::tap;
use crosspoint_engine::observe::tap::Slot;
use crosspoint_engine::observe::tap::Tap;
use crosspoint_model::capture::{
    self, Begin, CaptureError, Message, PortInfo, TRACES_MAX, Totals, TraceWanted, Wanted,
    frame_bytes, write_message,
};
use crosspoint_model::status::Status;
use crosspoint_model::trace::Trace;
use crosspoint_packet::filter::{BYTES_WANTED, Filter};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use super::records::{Scribe, Tapped};
use super::scene::Scene;
use super::{IS_REPLACED, RUNNING, too_many};
use crate::dataplane::Dataplane;

/// Memory of a capture's slots, bytes; and the limits of the number of slots, whatever the length of each.
const SLOTS_BYTES: usize = 16 << 20;
const SLOTS_MIN: usize = 256;
const SLOTS_MAX: usize = 8192;
/// Pause of a capture when no frame is there.
const REST: Duration = Duration::from_millis(5);
/// Longest wait for the client's socket alone; it bounds the delay when the daemon ends.
const LOOK: Duration = Duration::from_millis(100);
/// How long a client may read nothing of what is sent.
const STALL_MAX: Duration = Duration::from_secs(60);
/// Bytes that are sent together.
const BATCH: usize = 64 << 10;
/// Bytes kept of a traced frame: enough for all headers of a frame that is to be segmented.
const TRACE_BYTES: usize = 256;
/// Frames per second that each worker inspects for a trace.
const TRACE_RATE: u64 = 20_000;
/// Slots of a trace.
const TRACE_SLOTS: usize = 2048;
/// How long a trace waits for the verdicts of a frame's copies.
const COPIES_TIME: Duration = Duration::from_millis(20);

/// The client: its socket, and whether the daemon wants the job to end.
pub(crate) struct Client<'c> {
    pub(crate) socket: UnixStream,
    pub(crate) stop: &'c AtomicBool,
    /// The client's process and user, if the kernel knows them.
    pub(crate) pid: Option<i32>,
    pub(crate) uid: Option<u32>,
}

impl Client<'_> {
    /// Whether the client has closed its sending half, or the daemon ends. Waits for at most `wait`.
    fn has_ended(&mut self, wait: Duration) -> bool {
        let mut byte = [0; 64];
        if self.stop.load(Ordering::Relaxed) || !self.is_ready(PollFlags::IN, wait) {
            return self.stop.load(Ordering::Relaxed);
        }
        match self.socket.read(&mut byte) {
            // What the client sends is ignored.
            Ok(n) => n == 0,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }

    fn is_ready(&self, what: PollFlags, wait: Duration) -> bool {
        let mut fds = [PollFd::from_borrowed_fd(self.socket.as_fd(), what)];
        let wait = Timespec::try_from(wait).ok();
        poll(&mut fds, wait.as_ref()).is_ok_and(|ready| ready > 0)
    }

    /// Sends all bytes, however slowly the client reads, as long as it reads at all.
    fn send(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        let mut last = Instant::now();
        while !bytes.is_empty() {
            match self.socket.write(bytes) {
                Ok(sent) => {
                    bytes = bytes.get(sent..).unwrap_or(&[]);
                    last = Instant::now();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.stop.load(Ordering::Relaxed) || last.elapsed() > STALL_MAX {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                    self.is_ready(PollFlags::OUT, LOOK);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn send_ok(&mut self, ok: &impl Serialize) -> io::Result<()> {
        let mut line = serde_json::to_vec(&serde_json::json!({ "ok": ok }))?;
        line.push(b'\n');
        self.send(&line)
    }

    fn refuse(&mut self, why: &CaptureError) -> io::Result<()> {
        let mut line =
            serde_json::to_vec(&serde_json::json!({ "error": why.error, "help": why.help }))?;
        line.push(b'\n');
        self.send(&line)
    }
}

/// Sends a client the frames that it asked for, until it has enough.
pub(crate) fn capture(
    dataplane: &Dataplane,
    wanted: &Wanted,
    client: &mut Client<'_>,
) -> io::Result<()> {
    let (tapped, info) = match begin(dataplane, wanted) {
        Ok(begun) => begun,
        Err(why) => return client.refuse(&why),
    };
    let (pid, uid) = (client.pid, client.uid);
    let port = wanted.port.as_deref().unwrap_or("any").escape_debug();
    tracing::info!(pid, uid, %port, filter = %wanted.filter.escape_debug(), "a capture has started");
    RUNNING.fetch_add(1, Ordering::SeqCst);
    let result = show(dataplane, wanted, (tapped, &info), client);
    RUNNING.fetch_sub(1, Ordering::SeqCst);
    match &result {
        Ok(Totals {
            captured,
            missed,
            over_rate,
            ..
        }) => tracing::info!(pid, captured, missed, over_rate, "a capture has ended"),
        Err(why) => tracing::info!(
            pid,
            "a capture has ended, because its client no longer reads it: {why}"
        ),
    }
    result.map(|_| ())
}

fn show(
    dataplane: &Dataplane,
    wanted: &Wanted,
    (tapped, info): (Tapped<'_>, &Begin),
    client: &mut Client<'_>,
) -> io::Result<Totals> {
    client.send_ok(info)?;
    let mut stream = Stream {
        scribe: Scribe::new(dataplane),
        snaplen: wanted.snaplen as usize,
        left: wanted.count.unwrap_or(u64::MAX),
        batch: Vec::with_capacity(2 * BATCH),
        captured: 0,
    };
    // Removal of the port ends its captures.
    while stream.left > 0 && !client.has_ended(Duration::ZERO) && !tapped.tap().has_ended() {
        stream.fill(tapped.tap())?;
        match stream.batch.is_empty() {
            true if client.has_ended(REST) => break,
            true => {}
            false => client.send(&stream.batch)?,
        }
    }
    let tap = tapped.end();
    loop {
        stream.fill(&tap)?;
        if stream.batch.is_empty() {
            break;
        }
        client.send(&stream.batch)?;
    }
    let counts = tap.counts();
    let totals = Totals {
        captured: stream.captured,
        missed: counts.missed,
        over_rate: counts.over_rate,
        is_replaced: IS_REPLACED.load(Ordering::SeqCst),
    };
    stream.batch.clear();
    write_message(&Message::End(totals), &[], &mut stream.batch)?;
    client.send(&stream.batch)?;
    Ok(totals)
}

/// A running capture.
struct Stream<'f> {
    scribe: Scribe<'f>,
    snaplen: usize,
    /// Number of frames still to be sent.
    left: u64,
    batch: Vec<u8>,
    captured: u64,
}

impl Stream<'_> {
    /// Makes one batch of messages from the frames that are there.
    fn fill(&mut self, tap: &Tap) -> io::Result<()> {
        self.batch.clear();
        self.scribe.tend();
        let missed = tap.counts().missed;
        while self.left > 0 && self.batch.len() < BATCH {
            let Some(slot) = tap.next() else { break };
            let kept = slot.bytes.len().min(self.snaplen);
            let message = Message::Frame(self.scribe.record(&slot, missed));
            let bytes = slot.bytes.get(..kept).unwrap_or(&[]);
            let written = write_message(&message, bytes, &mut self.batch);
            tap.give_back(slot);
            written?;
            self.left -= 1;
            self.captured += 1;
        }
        Ok(())
    }
}

fn begin<'f>(
    dataplane: &'f Dataplane,
    wanted: &Wanted,
) -> Result<(Tapped<'f>, Begin), CaptureError> {
    let filter = wanted.check()?;
    let status = dataplane.status();
    let port = match &wanted.port {
        Some(name) => Some(port_number(dataplane, &status, name)?),
        None => None,
    };
    if let (Some(name), Some(queue)) = (&wanted.port, wanted.queue) {
        check_queue(&status, name, queue)?;
    }
    let snaplen = wanted.snaplen as usize;
    let has_filter = filter != Filter::ALL;
    // The filter reads the kept bytes.
    let kept = if has_filter {
        snaplen.max(BYTES_WANTED)
    } else {
        snaplen
    };
    let slots = (SLOTS_BYTES / kept).clamp(SLOTS_MIN, SLOTS_MAX);
    let tap = tap::Wanted {
        port,
        queue: wanted.queue,
        received: wanted.received,
        sent: wanted.sent,
        dropped_only: wanted.dropped,
        snap_len: kept,
        rate_max: wanted.rate,
        filter: has_filter.then(|| boxed(filter)),
    };
    let tapped = Tapped::new(dataplane, tap, slots).ok_or_else(too_many)?;
    let is_wanted = |name: &str| wanted.port.as_ref().is_none_or(|port| port == name);
    let ports = status.ports.iter().filter(|port| is_wanted(&port.name));
    let info = ports.map(|port| PortInfo {
        name: port.name.clone(),
        description: format!("{} port, VLAN {}", port.kind, port.vlan),
    });
    let info = Begin {
        ports: info.collect(),
        snaplen: wanted.snaplen,
    };
    Ok((tapped, info))
}

/// Refuses a queue that the port does not have: its capture would stay empty.
fn check_queue(status: &Status, name: &str, queue: u16) -> Result<(), CaptureError> {
    let port = status.ports.iter().find(|port| port.name == name);
    let queues = port.map_or(0, |port| port.queues.len());
    match usize::from(queue) < queues {
        true => Ok(()),
        false => Err(CaptureError::new(
            format!("port {name:?} has no queue {queue}"),
            match queues {
                0 => "it has no queues".to_owned(),
                1 => "it has queue 0 only".to_owned(),
                _ => format!("its queues are 0 to {}", queues - 1),
            },
        )),
    }
}

fn boxed(filter: Filter) -> tap::Filter {
    Box::new(move |bytes, len| filter.matches_beginning(bytes, len))
}

fn port_number(dataplane: &Dataplane, status: &Status, name: &str) -> Result<u16, CaptureError> {
    dataplane.port_number(name).ok_or_else(|| {
        let names: Vec<&str> = status.ports.iter().map(|port| &*port.name).collect();
        CaptureError::new(
            format!("no port is named {name:?}"),
            format!("the ports are {}", names.join(", ")),
        )
    })
}

/// Explains to a client what happens to the frames that it asked for.
pub(crate) fn trace(
    dataplane: &Dataplane,
    wanted: &TraceWanted,
    client: &mut Client<'_>,
) -> io::Result<()> {
    let mut following = match begin_trace(dataplane, wanted) {
        Err(why) => return client.refuse(&why),
        Ok(Job::MadeUp(trace)) => return client.send_ok(&trace),
        Ok(Job::Follow(following)) => following,
    };
    let (pid, uid, port) = (client.pid, client.uid, wanted.port.escape_debug());
    tracing::info!(pid, uid, %port, filter = %wanted.filter.escape_debug(), "a trace has started");
    while following.left > 0 && !following.has_ended() && !client.has_ended(REST) {
        for trace in following.look() {
            client.send_ok(&trace)?;
        }
    }
    Ok(())
}

enum Job<'f> {
    MadeUp(Box<Trace>),
    Follow(Box<Following<'f>>),
}

fn begin_trace<'f>(
    dataplane: &'f Dataplane,
    wanted: &TraceWanted,
) -> Result<Job<'f>, CaptureError> {
    let filter = capture::filter(&wanted.filter)?;
    if !(1..=TRACES_MAX).contains(&wanted.count) {
        let error = format!("{} frames cannot be traced", wanted.count);
        return Err(CaptureError::new(
            error,
            format!("ask for 1 to {TRACES_MAX}"),
        ));
    }
    let status = dataplane.status();
    let port = port_number(dataplane, &status, &wanted.port)?;
    let known = status
        .ports
        .into_iter()
        .find(|known| known.name == wanted.port);
    let vlans = known.map_or(String::new(), |port| port.vlan);
    if let Some(hex) = &wanted.frame {
        let bytes = frame_bytes(hex)?;
        let (view, tick, tick_length) = dataplane.picture();
        let scene = Scene {
            view: &view,
            tick,
            tick_length,
        };
        return Ok(Job::MadeUp(Box::new(scene.made_up(port, &bytes, &vlans))));
    }
    // Copies go to any port, and may differ from the received frame: a tag was added or removed.
    let tap = |received: bool| tap::Wanted {
        port: received.then_some(port),
        queue: None,
        received,
        sent: !received,
        dropped_only: false,
        snap_len: TRACE_BYTES,
        rate_max: TRACE_RATE,
        filter: received.then(|| boxed(filter.clone())),
    };
    let sent = Tapped::new(dataplane, tap(false), TRACE_SLOTS).ok_or_else(too_many)?;
    let received = Tapped::new(dataplane, tap(true), TRACE_SLOTS).ok_or_else(too_many)?;
    Ok(Job::Follow(Box::new(Following {
        dataplane,
        scribe: Scribe::new(dataplane),
        received,
        sent,
        vlans,
        left: wanted.count,
        waiting: VecDeque::new(),
        copies: HashMap::new(),
    })))
}

/// Frames that are being traced.
struct Following<'f> {
    dataplane: &'f Dataplane,
    scribe: Scribe<'f>,
    received: Tapped<'f>,
    sent: Tapped<'f>,
    vlans: String,
    left: u64,
    /// Frames whose copies may still arrive, and since when.
    waiting: VecDeque<(Instant, Box<Slot>)>,
    /// Copies of these frames, by worker and number. Slots go back to the tap in the same box.
    #[expect(clippy::vec_box)]
    copies: HashMap<(usize, u64), Vec<Box<Slot>>>,
}

impl Following<'_> {
    /// Whether the port has been removed and no trace is pending.
    fn has_ended(&self) -> bool {
        self.received.tap().has_ended() && self.waiting.is_empty()
    }

    /// Takes what the taps have recorded, and explains the frames whose waiting time has passed.
    fn look(&mut self) -> Vec<Trace> {
        self.scribe.tend();
        // Copies are taken first: the tap recorded the frame of each before its copies, so that frame is then there.
        let copies: Vec<Box<Slot>> = std::iter::from_fn(|| self.sent.tap().next()).collect();
        let room = self.left.saturating_sub(self.waiting.len() as u64);
        for _ in 0..room {
            let Some(slot) = self.received.tap().next() else {
                break;
            };
            if let Some(serial) = slot.serial {
                self.copies.insert((slot.worker, serial), Vec::new());
            }
            self.waiting.push_back((Instant::now(), slot));
        }
        for slot in copies {
            let serial = slot.serial.map(|serial| (slot.worker, serial));
            match serial.and_then(|serial| self.copies.get_mut(&serial)) {
                Some(copies) => copies.push(slot),
                None => self.sent.tap().give_back(slot),
            }
        }
        let mut traces = Vec::new();
        while let Some((since, slot)) = self.waiting.pop_front() {
            if since.elapsed() < COPIES_TIME {
                self.waiting.push_front((since, slot));
                break;
            }
            traces.push(self.explain(slot));
        }
        traces
    }

    fn explain(&mut self, slot: Box<Slot>) -> Trace {
        let serial = slot.serial.map(|serial| (slot.worker, serial));
        let copies = serial.and_then(|serial| self.copies.remove(&serial));
        let copies = copies.unwrap_or_default();
        let (view, tick, tick_length) = self.dataplane.picture();
        let scene = Scene {
            view: &view,
            tick,
            tick_length,
        };
        let trace = scene.seen(&slot, self.scribe.time_ns(slot.tsc), &copies, &self.vlans);
        copies
            .into_iter()
            .for_each(|copy| self.sent.tap().give_back(copy));
        self.received.tap().give_back(slot);
        self.left -= 1;
        trace
    }
}
