//! Copies of frames for captures and traces: from the engine's taps to a client of the control socket.
//!
//! The engine's [`Tap`](crosspoint_engine::observe::tap::Tap) copies the first bytes of frames and their verdicts. This module takes
//! them from its slots and sends them, on a separate thread. A client that reads too slowly makes the tap miss frames; they
//! are counted, and no worker waits. What is said on the socket: [`crosspoint_model::capture`].

mod records;
mod scene;
mod serve;
mod watch;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crosspoint_engine::observe::tap::TAPS_MAX;
use crosspoint_model::capture::CaptureError;
pub(crate) use serve::{Client, capture, trace as follow};

use crate::dataplane::Dataplane;

/// Number of captures that run.
static RUNNING: AtomicUsize = AtomicUsize::new(0);
/// Whether a successor of this process has the guests.
static IS_REPLACED: AtomicBool = AtomicBool::new(false);

/// Ends all captures, since a successor has the guests, and waits at most for `time` until each client has been told.
pub(crate) fn end_all(dataplane: &Dataplane, time: Duration) {
    IS_REPLACED.store(true, Ordering::SeqCst);
    dataplane.end_taps();
    let deadline = Instant::now() + time;
    while RUNNING.load(Ordering::SeqCst) > 0 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn too_many() -> CaptureError {
    CaptureError::new(
        format!("{TAPS_MAX} captures and traces are running, which is the maximum"),
        "end one of them; a trace counts as two",
    )
}
