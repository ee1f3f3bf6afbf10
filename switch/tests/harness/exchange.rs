//! Two guests that send frames to each other, as fast as the other receives them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use crosspoint_guest::{Guest, GuestOptions};

use super::{Lab, Ledger, Switch, frame, mac, s, wait_until};

/// Frames in flight in one direction: fewer than a ring's entries, so that no ring is ever full.
const WINDOW: usize = 128;

/// The exchange, on a separate thread. Each frame must arrive within seconds, with every byte, in order.
pub struct Exchange<'a> {
    switch: &'a Switch<'a>,
    over: Arc<AtomicBool>,
    frames: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl<'a> Exchange<'a> {
    /// Connects guests to ports `names`, with the addresses `mac(101)` and `mac(102)`. The switch has learned these when
    /// this returns, so nothing of the exchange is flooded.
    pub fn start(lab: &Lab, switch: &'a Switch<'a>, names: [&str; 2]) -> Self {
        Self::start_with(lab, switch, names, &GuestOptions::default())
    }

    /// Like [`start`](Self::start), with guests of these options.
    pub fn start_with(
        lab: &Lab,
        switch: &'a Switch<'a>,
        names: [&str; 2],
        options: &GuestOptions,
    ) -> Self {
        let mut guests = connect_pair(lab, switch, names, options);
        introduce(&mut guests);
        let (over, frames) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let (ended, counted) = (Arc::clone(&over), Arc::clone(&frames));
        let thread = std::thread::spawn(move || {
            let mut number = 0;
            while !ended.load(Ordering::Relaxed) {
                round(&mut guests, number);
                number += WINDOW as u32;
                counted.fetch_add(2 * WINDOW as u64, Ordering::Relaxed);
            }
        });
        Self {
            switch,
            over,
            frames,
            thread: Some(thread),
        }
    }

    /// Frames that have arrived so far.
    pub fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    /// Waits until `count` more frames have arrived.
    pub fn run(&self, count: u64) {
        let goal = self.frames() + count;
        let alive = || !self.thread.as_ref().is_some_and(JoinHandle::is_finished);
        wait_until("frames between two guests", s(20), || {
            (self.frames() >= goal || !alive()).then_some(())
        });
        assert!(alive(), "{}", self.loss());
    }

    fn loss(&self) -> String {
        format!(
            "a frame between two guests got lost\n{}",
            Ledger::new(&self.switch.metrics())
        )
    }

    /// Ends the exchange. Returns the number of frames, none of which was lost.
    pub fn stop(mut self) -> u64 {
        self.over.store(true, Ordering::Relaxed);
        let ended = self.thread.take().expect("a thread").join();
        assert!(ended.is_ok(), "{}", self.loss());
        self.frames()
    }
}

impl Drop for Exchange<'_> {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Lets the switch learn the addresses of both guests.
fn introduce(guests: &mut [Guest; 2]) {
    for (from, to) in [(0, 1), (1, 0)] {
        let hello = frame([0xff; 6], mac(101 + from as u8), 0, 60);
        assert_eq!(guests[from].send(0, &[&hello]).expect("a ring"), 1);
        receive(&mut guests[to], &[hello]);
    }
}

/// Exchanges a window of frames in both directions.
fn round(guests: &mut [Guest; 2], number: u32) {
    let frames = |to, from| {
        let one = move |n: u32| {
            frame(
                mac(to),
                mac(from),
                number + n,
                60 + (number + n) as usize * 7 % 1455,
            )
        };
        (0..WINDOW as u32).map(one).collect::<Vec<_>>()
    };
    let sent = [frames(102, 101), frames(101, 102)];
    for (guest, frames) in guests.iter_mut().zip(&sent) {
        let frames: Vec<&[u8]> = frames.iter().map(Vec::as_slice).collect();
        let mut count = 0;
        while count < frames.len() {
            count += guest
                .send(0, &frames[count..])
                .expect("the device follows the rules");
        }
    }
    for (guest, frames) in guests.iter_mut().zip(sent.iter().rev()) {
        receive(guest, frames);
    }
}

/// Receives until all of `expected` have arrived; flooded frames of others are ignored.
fn receive(guest: &mut Guest, expected: &[Vec<u8>]) {
    let from = &expected[0][6..12];
    let mut arrived = Vec::new();
    let deadline = std::time::Instant::now() + s(5);
    while arrived.len() < expected.len() && std::time::Instant::now() < deadline {
        let batch = guest
            .receive_at_least(0, 1, s(1))
            .expect("the device follows the rules");
        arrived.extend(
            batch
                .into_iter()
                .map(|(_, bytes)| bytes)
                .filter(|bytes| &bytes[6..12] == from),
        );
    }
    assert_eq!(arrived.len(), expected.len(), "frames that arrived in time");
    assert!(
        arrived == expected,
        "frames arrive in order, with every byte"
    );
}

/// Sends a frame there, and one back.
pub fn ping_pong(a: &mut Guest, b: &mut Guest, number: u32) {
    let guests = [a, b];
    for (from, to) in [(0, 1), (1, 0)] {
        let sent = frame(mac(21 + to as u8), mac(21 + from as u8), number, 1000);
        assert_eq!(guests[from].send(0, &[&sent]).expect("a ring"), 1);
        let arrives = || {
            guests[to]
                .receive(0)
                .expect("a ring")
                .iter()
                .any(|(_, bytes)| *bytes == sent)
                .then_some(())
        };
        wait_until(&format!("frame {number}"), s(5), arrives);
    }
}

/// Connects a guest to port `name`.
pub fn connect_to(lab: &Lab, name: &str, options: &GuestOptions) -> Guest {
    Guest::connect(lab.socket(name), options.clone()).expect("the guest connects")
}

impl Lab {
    /// Connects a guest with the default options to port `name`.
    pub fn connect(&self, name: &str) -> Guest {
        connect_to(self, name, &GuestOptions::default())
    }
}

/// Connects guests to ports `names`, and waits until these are up.
pub fn connect_pair(
    lab: &Lab,
    switch: &Switch<'_>,
    names: [&str; 2],
    options: &GuestOptions,
) -> [Guest; 2] {
    let guests = names.map(|name| connect_to(lab, name, options));
    switch.wait_up(&names);
    guests
}
