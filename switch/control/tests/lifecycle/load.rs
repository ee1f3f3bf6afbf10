//! Two guests that exchange numbered frames, on a thread of their own while the test does things to one of them.
//!
//! The rings are borrowed from the guests, so that buffers can be put anywhere, and the guests are left with their
//! sessions.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crosspoint_guest::{Buffer, EventFd, Guest, GuestMemory, RegionLayout, RingLayout, Virtqueue};

use super::PATIENCE;

/// Bytes of a buffer, and from one to the next.
const SLOT: usize = 2048;
const HEADER: usize = 12;
/// Frames of one queue that are on their way at most: they fit the receiving ring, with a flood beside them.
const WINDOW: u64 = 48;
/// After so long without one, frames on their way count as lost where they may be.
const WRITE_OFF: Duration = Duration::from_millis(30);
const MAGIC: [u8; 2] = [0x88, 0xb5];
const BODY: usize = 14 + 12;

/// Whether frames may be lost.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Loss {
    /// Not one.
    None,
    /// The test counts them.
    Counted,
    /// The test counts them, and buffers may come back empty: so a switch gives back what its predecessor, which was
    /// killed, had in hand.
    OfDeaths,
}

/// One ring, and the buffers in it.
pub struct Lane {
    ring: Virtqueue,
    transmits: bool,
    memory: Arc<GuestMemory>,
    base: u64,
    free: Vec<u64>,
    /// By id: slot, and the memory and base that it was taken from.
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

    /// Where new buffers lie from now on.
    pub fn move_to(&mut self, memory: &Arc<GuestMemory>, base: u64) {
        (self.memory, self.base) = (memory.clone(), base);
    }

    /// Whether no buffer lies elsewhere any more.
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

    /// Where buffers lie: first guest address, and bytes.
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

    /// What the device has used. A guest that is `blind` has spoilt its own ring: what it reads there is nobody's fault
    /// but its own, and it takes nothing more from it.
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

    /// Buffers that the device has.
    pub fn outstanding(&mut self) -> u16 {
        self.ring.outstanding()
    }
}

/// A ring that nobody uses, to leave in the place of one that is borrowed.
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
    /// Frames received that were for somebody else.
    pub foreign: u64,
    /// Buffers that came back with nothing in them.
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

/// What went one way, from one transmit queue.
#[derive(Default, Debug)]
pub struct Channel {
    pub sent: u64,
    pub received: u64,
    /// Frames that came a second time.
    pub doubled: u64,
    /// Frames that came after a later one.
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

/// Two guests' rings, and what has gone between them.
pub struct Pair {
    pub ends: [End; 2],
    /// By sending end, by transmit queue.
    pub channels: [Vec<Channel>; 2],
    pub loss: Loss,
    /// What comes may be nonsense: one of the guests lies.
    pub blind: bool,
    /// Nobody sends.
    pub quiet: bool,
    /// Nobody does anything.
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

    /// Gives a guest its rings back, for a reconnect, and takes them again after it.
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

    /// Receives at one end; whether there was anything.
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

    /// Sends at one end what the window allows; whether there was anything.
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

    /// Both ends' turn; whether there was anything to do.
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

    /// Stops sending, and waits until all that was sent has come; where frames may be lost, until nothing comes.
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

    /// Where everything stands, for a test that fails.
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

    /// Nothing was lost, nothing came twice, nothing out of turn.
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

/// A pair at work on a thread of its own.
pub struct Load {
    orders: Sender<Order>,
    thread: JoinHandle<Pair>,
}

impl Load {
    /// Borrows the rings of two guests that are connected; `number` and the next one are theirs in addresses.
    pub fn start(a: &mut Guest, b: &mut Guest, number: u8, loss: Loss) -> Load {
        Load::of(Pair::borrow([a, b], number, loss))
    }

    /// The same, of a pair that has been at work before.
    pub fn of(mut pair: Pair) -> Load {
        (pair.quiet, pair.held) = (false, false);
        let (orders, taken) = channel();
        let thread = std::thread::spawn(move || work(pair, taken));
        let load = Load { orders, thread };
        load.flow(20);
        load
    }

    /// Does something between two turns.
    pub fn with<T: Send + 'static>(&self, what: impl FnOnce(&mut Pair) -> T + Send + 'static) -> T {
        let (answer, answered) = channel();
        let order = Box::new(move |pair: &mut Pair| {
            let _ = answer.send(what(pair));
        });
        self.orders.send(order).expect("the pair is at work");
        answered.recv().expect("the pair is at work")
    }

    /// Waits until something is so between two turns.
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

    /// Waits until `count` frames more have come over every channel.
    #[track_caller]
    pub fn flow(&self, count: u64) {
        let before = self.with(|pair| pair.received());
        self.wait(move |pair| {
            let mut pairs = pair.received().into_iter().zip(&before);
            pairs.all(|(now, before)| now >= before + count)
        });
    }

    /// Ends the load when what was sent has come.
    pub fn finish(self) -> Pair {
        self.with(Pair::drain);
        self.abort()
    }

    /// Ends the load as it is.
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
