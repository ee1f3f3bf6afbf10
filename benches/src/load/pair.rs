//! Two guests in this process, and frames from the first to the second that are distinguished from all others.

use super::{addresses, connect};
use crate::error::BenchError;
use crosspoint_guest::pump::FrameHead;
use crosspoint_guest::{Guest, GuestOptions, RxPump, Sent, TxPump, TxPumpOptions};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest wait for a path in both directions.
const LEARN_MAX: Duration = Duration::from_secs(10);
/// After this long without a frame, none is in flight.
const QUIET: Duration = Duration::from_millis(20);

/// One guest with its pumps.
struct End {
    tx: TxPump,
    rx: RxPump,
    _guest: Guest,
}

/// Two guests, connected.
pub struct Pair {
    ends: [End; 2],
}

impl Pair {
    /// Connects both guests, and waits until the switch has learned both addresses. Frames have `frame_len`
    /// bytes, without frame check sequence, and are sent in bursts of up to 64.
    pub fn connect(sockets: &[PathBuf], frame_len: usize) -> Result<Self, BenchError> {
        let end = |number: usize| -> Result<End, BenchError> {
            let mut guest = connect::to_listener(&sockets[number], &GuestOptions::default())?;
            let pump = TxPumpOptions {
                frame_len,
                source: addresses::of(number),
                destination: addresses::of(1 - number),
                batch: 64,
                ..TxPumpOptions::default()
            };
            let (tx, rx) = (guest.take_tx_pump(0, &pump)?, guest.take_rx_pump(0, true)?);
            Ok(End {
                tx,
                rx,
                _guest: guest,
            })
        };
        let mut this = Self {
            ends: [end(0)?, end(1)?],
        };
        this.learn(&sockets[0])?;
        Ok(this)
    }

    fn learn(&mut self, socket: &Path) -> Result<(), BenchError> {
        let deadline = Instant::now() + LEARN_MAX;
        let mut arrived = [0, 0];
        while arrived.contains(&0) {
            if Instant::now() > deadline {
                let what = format!("frames do not arrive; at the two guests: {arrived:?}");
                return Err(BenchError::backend(&socket.display().to_string(), what));
            }
            for (number, arrived) in arrived.iter_mut().enumerate() {
                self.ends[1 - number].tx.poll_stamped(1, 0)?;
                std::thread::sleep(Duration::from_millis(1));
                *arrived += self.receive_at(number, |_| ())?;
            }
        }
        self.settle()
    }

    /// Sends up to `limit` frames (up to 64) from the first guest.
    pub fn send(&mut self, limit: usize, stamp: u64) -> Result<Sent, BenchError> {
        Ok(self.ends[0].tx.poll_stamped(limit, stamp)?)
    }

    /// Passes up to 64 frames that have arrived from the first guest at the second to `see`. Returns their number.
    pub fn receive(&mut self, see: impl FnMut(&FrameHead)) -> Result<u64, BenchError> {
        self.receive_at(1, see)
    }

    /// Receives until nothing is in flight.
    fn settle(&mut self) -> Result<(), BenchError> {
        let mut quiet_since = Instant::now();
        while quiet_since.elapsed() < QUIET {
            if self.receive(|_| ())? > 0 {
                quiet_since = Instant::now();
            }
            self.ends[0].tx.drain()?;
        }
        Ok(())
    }

    fn receive_at(
        &mut self,
        number: usize,
        mut see: impl FnMut(&FrameHead),
    ) -> Result<u64, BenchError> {
        let mut frames = 0;
        self.ends[number].rx.poll_each(|head| {
            // Other frames are flooded as long as the switch has not learned their destination.
            if head.bytes[6..12] == addresses::of(1 - number) {
                frames += 1;
                see(head);
            }
        })?;
        Ok(frames)
    }
}
