//! Two guests that exchange numbered frames on their own thread, while the test manipulates one of them.
//!
//! The rings are borrowed from the guests, so that buffers can be placed anywhere; the guests keep their sessions.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crosspoint_guest::{Buffer, EventFd, Guest, GuestMemory, RegionLayout, RingLayout, Virtqueue};

use super::PATIENCE;

/// Size of a buffer, and distance to the next, bytes.
const SLOT: usize = 2048;
const HEADER: usize = 12;
/// The most frames of one queue in flight: they fit into the receiving ring, together with a flood.
const WINDOW: u64 = 48;
/// Without an arrival for this time, frames in flight count as lost, if loss is allowed.
const WRITE_OFF: Duration = Duration::from_millis(30);
const MAGIC: [u8; 2] = [0x88, 0xb5];
const BODY: usize = 14 + 12;

/// Whether frames may be lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Loss {
    /// No frame may be lost.
    None,
    /// The test counts lost frames.
    Counted,
    /// The test counts lost frames, and buffers may come back empty: that is how a switch returns what its killed
    /// predecessor had taken.
    OfDeaths,
}

/// One ring, and the buffers in it.
pub struct Lane {
    ring: Virtqueue,
    transmits: bool,
    memory: Arc<GuestMemory>,
    base: u64,
    free: Vec<u64>,
    /// By id: slot, and the memory and base from which it was taken.
    busy: Vec<Option<(u64, Arc<GuestMemory>, u64)>>,
    kick: Arc<EventFd>,
}

impl Lane {
    fn borrow(guest: &mut Guest, index: usize) -> Lane {
        let kick = guest.kick_event(index).expect("a ring");
        let transmits = index % 2 == 1;
        let (area, ring) = match transmits {
            true => {
                let queue = guest.transmit_queue(index / 2).expect("a queue");
                (queue.area().clone(), queue.virtqueue())
            }
            false => {
                let queue = guest.receive_queue(index / 2).expect("a queue");
                (queue.area().clone(), queue.virtqueue())
            }
        };
        let ring = std::mem::replace(ring, idle_ring());
        let size = ring.layout().size;
        Lane {
            transmits,
            memory: area.memory().clone(),
            base: area.guest_address(),
            free: (0..size.into()).rev().collect(),
            busy: (0..size).map(|_| None).collect(),
            kick,
            ring,
        }
    }

    /// Places new buffers here from now on.
    pub fn move_to(&mut self, memory: &Arc<GuestMemory>, base: u64) {
        (self.memory, self.base) = (memory.clone(), base);
    }

    /// Whether all buffers are at the current place.
    pub fn has_moved(&self) -> bool {
        let here = |busy: &(u64, Arc<GuestMemory>, u64)| {
            Arc::ptr_eq(&busy.1, &self.memory) && busy.2 == self.base
        };
        self.busy.iter().flatten().all(here)
    }

    pub fn layout(&self) -> RingLayout {
        self.ring.layout()
    }

    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// The place of the buffers: first guest address, and bytes.
    pub fn area(&self) -> (u64, usize) {
        (self.base, self.busy.len() * SLOT)
    }

    fn offer(&mut self, bytes: &[u8]) -> bool {
        let Some(slot) = self.free.pop() else {
            return false;
        };
        let address = self.base + slot * SLOT as u64;
        if self.transmits {
            self.memory.write(address, bytes).expect("guest memory");
        }
        let len = if self.transmits { bytes.len() } else { SLOT };
        let buffer = Buffer {
            address,
            len: len as u32,
            device_writes: !self.transmits,
        };
        match self.ring.add(&[buffer]) {
            Some(id) => {
                self.busy[usize::from(id)] = Some((slot, self.memory.clone(), self.base));
                true
            }
            None => {
                self.free.push(slot);
                false
            }
        }
    }

    fn publish(&mut self) {
        if self.ring.publish() {
            self.kick.signal().expect("an eventfd");
        }
    }

    fn post_all(&mut self) {
        while self.offer(&[]) {}
        self.publish();
    }

    /// Returns what the device has used. A guest that is `blind` has destroyed its own ring: errors in reading it do
    /// not count, and nothing more is taken from it.
    pub fn take(&mut self, blind: bool) -> Vec<Vec<u8>> {
        let mut taken = Vec::new();
        loop {
            let used = match self.ring.pop_used() {
                Ok(Some(used)) => used,
                Ok(None) => break,
                Err(_) if blind => break,
                Err(error) => panic!("the device breaks the rules: {error}"),
            };
            let busy = self.busy[usize::from(used.id)].take();
            if busy.is_none() && blind {
                break;
            }
            let (slot, memory, base) = busy.expect("a buffer that was made available");
            let mut bytes = vec![0; used.len as usize];
            let read = memory.read(base + slot * SLOT as u64, &mut bytes);
            read.expect("guest memory");
            taken.push(bytes);
            self.free.push(slot);
        }
        taken
    }

    /// Number of buffers that the device has.
    pub fn outstanding(&mut self) -> u16 {
        self.ring.outstanding()
    }
}

/// An unused ring that replaces a borrowed one.
fn idle_ring() -> Virtqueue {
    let layout = RegionLayout {
        guest_base: 0,
        len: 4096,
        huge_pages: false,
    };
    let memory = GuestMemory::new(&[layout]).expect("memory");
    Virtqueue::new(&memory, RingLayout::contiguous(2, 0), false, 0).expect("a ring")
}

/// A guest's rings.
pub struct End {
    pub number: u8,
    /// By vring index.
    pub lanes: Vec<Lane>,
    /// Received frames that were for another address.
    pub foreign: u64,
    /// Number of buffers that came back empty.
    pub empty: u64,
}

impl End {
    fn mac(&self, queue: u8) -> [u8; 6] {
        [0x52, 0x54, 0, 0, self.number, queue]
    }

    fn queues(&self) -> usize {
        self.lanes.len() / 2
    }
}

/// Frames in one direction, from one transmit queue.
#[derive(Default, Debug)]
pub struct Channel {
    pub sent: u64,
    pub received: u64,
    /// Frames that arrived a second time.
    pub doubled: u64,
    /// Frames that arrived after a later one.
    pub late: u64,
    seen: Vec<bool>,
    last: u64,
    written_off: u64,
    progress: Option<Instant>,
}

impl Channel {
    fn may_send(&mut self, loss: Loss) -> bool {
        let on_the_way = self.sent.saturating_sub(self.received + self.written_off);
        if on_the_way < WINDOW {
            return true;
        }
        let waited = self.progress.get_or_insert_with(Instant::now).elapsed();
        if loss != Loss::None && waited > WRITE_OFF {
            self.written_off = self.sent - self.received;
            self.progress = None;
        }
        false
    }

    fn note(&mut self, number: u64) {
        assert!(number < self.sent, "a frame that was never sent: {number}");
        let seen = &mut self.seen[number as usize];
        if std::mem::replace(seen, true) {
            self.doubled += 1;
            return;
        }
        self.received += 1;
        self.progress = None;
        if number < self.last {
            self.late += 1;
        }
        self.last = self.last.max(number);
    }

    pub fn lost(&self) -> u64 {
        self.sent - self.received
    }
}

/// Two guests' rings, and the frames between them.
pub struct Pair {
    pub ends: [End; 2],
    /// By sending end, by transmit queue.
    pub channels: [Vec<Channel>; 2],
    pub loss: Loss,
    /// Whether received frames may be garbage, since one of the guests lies.
    pub blind: bool,
    /// Whether sending is stopped.
    pub quiet: bool,
    /// Whether everything is stopped.
    pub held: bool,
}

fn frame(to: [u8; 6], from: [u8; 6], number: u64) -> Vec<u8> {
    let mut state = number ^ u64::from(from[4]) << 40 ^ u64::from(from[5]) << 48;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed ^ mixed >> 27
    };
    let len = 60 + (next() % 1455) as usize;
    let mut bytes = [&to[..], &from, &MAGIC, &[0; 4], &number.to_le_bytes()].concat();
    while bytes.len() < len {
        bytes.extend(next().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

impl Pair {
    fn borrow(guests: [&mut Guest; 2], number: u8, loss: Loss) -> Pair {
        let mut numbers = number..;
        let ends = guests.map(|guest| {
            let indices = (0..).take_while(|index| guest.kick_event(*index).is_ok());
            let indices: Vec<usize> = indices.collect();
            let lanes = indices.iter().map(|index| Lane::borrow(guest, *index));
            End {
                number: numbers.next().expect("a number"),
                lanes: lanes.collect(),
                foreign: 0,
                empty: 0,
            }
        });
        let channels = [0, 1].map(|end: usize| {
            let queues = ends[end].queues();
            (0..queues).map(|_| Channel::default()).collect()
        });
        let mut pair = Pair {
            ends,
            channels,
            loss,
            blind: false,
            quiet: false,
            held: false,
        };
        for end in &mut pair.ends {
            end.lanes.iter_mut().step_by(2).for_each(Lane::post_all);
        }
        pair
    }

    /// Returns a guest's rings for a reconnect, and borrows them again after it.
    pub fn lend(&mut self, end: usize, guest: &mut Guest, then: impl FnOnce(&mut Guest)) {
        let exchange = |pair: &mut Pair, guest: &mut Guest| {
            for (index, lane) in pair.ends[end].lanes.iter_mut().enumerate() {
                let ring = match lane.transmits {
                    true => guest.transmit_queue(index / 2).map(|q| q.virtqueue()),
                    false => guest.receive_queue(index / 2).map(|q| q.virtqueue()),
                };
                std::mem::swap(ring.expect("a queue"), &mut lane.ring);
            }
        };
        exchange(self, guest);
        then(guest);
        exchange(self, guest);
    }

    /// Receives at one end. Returns whether there was anything.
    fn receive(&mut self, end: usize) -> bool {
        let mut any = false;
        for queue in 0..self.ends[end].queues() {
            let lane = &mut self.ends[end].lanes[2 * queue];
            let taken = lane.take(self.blind);
            if !taken.is_empty() {
                any = true;
                lane.post_all();
            }
            taken.iter().for_each(|bytes| self.note(end, bytes));
        }
        any
    }

    fn note(&mut self, end: usize, bytes: &[u8]) {
        if self.blind {
            return;
        }
        if bytes.is_empty() && self.loss == Loss::OfDeaths {
            self.ends[end].empty += 1;
            return;
        }
        let (me, peer) = (&self.ends[end], &self.ends[1 - end]);
        let bytes = &bytes[HEADER..];
        let number = bytes[BODY - 8..BODY].try_into().expect("8 bytes");
        let number = u64::from_le_bytes(number);
        let (from, queue) = (bytes[6..12].try_into().expect("6 bytes"), bytes[11]);
        if bytes[..6] != me.mac(0) || from != peer.mac(queue) {
            self.ends[end].foreign += 1;
            return;
        }
        let expected = frame(me.mac(0), from, number);
        assert!(bytes == expected, "frame {number} is not what was sent");
        self.channels[1 - end][usize::from(queue)].note(number);
    }

    /// Sends at one end what the window allows. Returns whether that was anything.
    pub fn send(&mut self, end: usize) -> bool {
        let to = self.ends[1 - end].mac(0);
        let mut any = false;
        for queue in 0..self.ends[end].queues() {
            let from = self.ends[end].mac(queue as u8);
            let lane = &mut self.ends[end].lanes[2 * queue + 1];
            lane.take(self.blind);
            let channel = &mut self.channels[end][queue];
            let before = channel.sent;
            while !self.quiet
                && channel.sent < before + 8
                && lane.outstanding() < WINDOW as u16
                && channel.may_send(self.loss)
            {
                let bytes = frame(to, from, channel.sent);
                if !lane.offer(&[&[0; HEADER], &bytes[..]].concat()) {
                    break;
                }
                channel.sent += 1;
                channel.seen.push(false);
            }
            lane.publish();
            any |= channel.sent > before;
        }
        any
    }

    /// One step of both ends. Returns whether there was anything to do.
    pub fn step(&mut self) -> bool {
        if self.held {
            return false;
        }
        let mut any = false;
        for end in [0, 1] {
            any |= self.receive(end);
            any |= self.send(end);
        }
        any
    }

    /// Stops sending, and waits until everything sent has arrived; if loss is allowed, until nothing more arrives.
    pub fn drain(&mut self) {
        self.quiet = true;
        let (mut last, start) = (Instant::now(), Instant::now());
        let calm = Duration::from_millis(300);
        while start.elapsed() < PATIENCE {
            let all = self.channels.iter().flatten().all(|c| c.lost() == 0);
            if self.step() {
                last = Instant::now();
            } else if all || (self.loss != Loss::None && last.elapsed() > calm) {
                break;
            } else {
                std::thread::sleep(Duration::from_micros(100));
            }
        }
    }

    /// The state of everything, for a failed test.
    fn state(&self) -> String {
        let mut text = format!("quiet {}, held {}\n", self.quiet, self.held);
        for (end, channels) in self.ends.iter().zip(&self.channels) {
            for (index, lane) in end.lanes.iter().enumerate() {
                let (free, busy) = (lane.free.len(), lane.busy.iter().flatten().count());
                text += &format!(
                    "end {} ring {index}: {} outstanding, {free} slots free, {busy} busy\n",
                    end.number,
                    lane.ring.outstanding()
                );
            }
            for (queue, channel) in channels.iter().enumerate() {
                text += &format!(
                    "end {} queue {queue}: {} of {} came, the last {}, {} doubled\n",
                    end.number, channel.received, channel.sent, channel.last, channel.doubled
                );
            }
        }
        text
    }

    /// By channel.
    fn received(&self) -> Vec<u64> {
        let channels = self.channels.iter().flatten();
        channels.map(|channel| channel.received).collect()
    }

    pub fn lost(&self, end: usize) -> u64 {
        self.channels[end].iter().map(Channel::lost).sum()
    }

    pub fn sent(&self, end: usize) -> u64 {
        self.channels[end].iter().map(|c| c.sent).sum()
    }

    pub fn doubled(&self) -> u64 {
        self.channels.iter().flatten().map(|c| c.doubled).sum()
    }

    pub fn late(&self) -> u64 {
        self.channels.iter().flatten().map(|c| c.late).sum()
    }

    /// Checks that no frame was lost, doubled or out of order.
    pub fn expect_all(&self) {
        for (end, channels) in self.channels.iter().enumerate() {
            for (queue, channel) in channels.iter().enumerate() {
                let wrong = (channel.lost(), channel.doubled, channel.late);
                let missing: Vec<usize> = (0..channel.seen.len())
                    .filter(|number| !channel.seen[*number])
                    .take(20)
                    .collect();
                assert_eq!(
                    wrong,
                    (0, 0, 0),
                    "lost, doubled, late of {} from end {end} queue {queue}: {missing:?}",
                    channel.sent
                );
            }
        }
    }
}

type Order = Box<dyn FnOnce(&mut Pair) + Send>;

/// A pair that runs on its own thread.
pub struct Load {
    orders: Sender<Order>,
    thread: JoinHandle<Pair>,
}

impl Load {
    /// Borrows the rings of two connected guests; their addresses use `number` and the next one.
    pub fn start(a: &mut Guest, b: &mut Guest, number: u8, loss: Loss) -> Load {
        Load::of(Pair::borrow([a, b], number, loss))
    }

    /// Like [`start`](Self::start), for a pair that has run before.
    pub fn of(mut pair: Pair) -> Load {
        (pair.quiet, pair.held) = (false, false);
        let (orders, taken) = channel();
        let thread = std::thread::spawn(move || work(pair, taken));
        let load = Load { orders, thread };
        load.flow(20);
        load
    }

    /// Runs `what` between two steps.
    pub fn with<T: Send + 'static>(&self, what: impl FnOnce(&mut Pair) -> T + Send + 'static) -> T {
        let (answer, answered) = channel();
        let order = Box::new(move |pair: &mut Pair| {
            let _ = answer.send(what(pair));
        });
        self.orders.send(order).expect("the pair is at work");
        answered.recv().expect("the pair is at work")
    }

    /// Waits until `what` holds between two steps.
    #[track_caller]
    pub fn wait(&self, what: impl Fn(&mut Pair) -> bool + Send + Sync + 'static) {
        let (start, what) = (Instant::now(), Arc::new(what));
        loop {
            let what = what.clone();
            if self.with(move |pair| what(pair)) {
                return;
            }
            if start.elapsed() > PATIENCE {
                panic!(
                    "it does not come about:\n{}",
                    self.with(|pair| pair.state())
                );
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until `count` more frames have arrived on every channel.
    #[track_caller]
    pub fn flow(&self, count: u64) {
        let before = self.with(|pair| pair.received());
        self.wait(move |pair| {
            let mut pairs = pair.received().into_iter().zip(&before);
            pairs.all(|(now, before)| now >= before + count)
        });
    }

    /// Ends the load after everything sent has arrived.
    pub fn finish(self) -> Pair {
        self.with(Pair::drain);
        self.abort()
    }

    /// Ends the load at once.
    pub fn abort(self) -> Pair {
        drop(self.orders);
        self.thread.join().expect("nothing was wrong with a frame")
    }
}

fn work(mut pair: Pair, orders: Receiver<Order>) -> Pair {
    loop {
        match orders.try_recv() {
            Ok(order) => order(&mut pair),
            Err(std::sync::mpsc::TryRecvError::Disconnected) => return pair,
            Err(std::sync::mpsc::TryRecvError::Empty) => {}
        }
        if !pair.step() {
            std::thread::sleep(Duration::from_micros(100));
        }
    }
}
