//! A wire for tests: a veth pair in its own network namespace, with a socket on every queue of both ends.
//!
//! Each test that includes this module uses a part of it.
#![allow(dead_code)]

use std::io::Error;
use std::process::Command;
use std::time::{Duration, Instant};

use crosspoint_frame::{
    BURST, Burst, Gather, HeaderOp, Offload, Prefix, Segment, SegmentMut, TxEntry,
};
use crosspoint_netdev::{Attachment, Interface};
use crosspoint_xsk::{
    BindMode, FramePlaces, MappedSocket, NicOutcome, PacketMemory, Pages, SINGLE_BUFFER_MTU,
    SocketError, SocketOptions, XskRx, XskTx,
};

/// Length of an Ethernet header.
pub const HEADER_LEN: u32 = 14;
/// The tag pushed on forwarded frames.
pub const TCI: u16 = 0x6123;
/// How long frames may be in flight.
const PATIENCE: Duration = Duration::from_secs(10);

/// Moves this thread into a new network namespace, which ends with the thread, and makes the pair `left` and `right`
/// there, with `queues` queues in each direction.
pub fn make(queues: u32, mtu: u32) {
    // SAFETY: unshare takes flags only; CLONE_NEWNET changes the thread's namespace and no memory.
    let rc = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    let error = Error::last_os_error();
    assert_eq!(rc, 0, "a new network namespace (run as root): {error}");
    // Only the tests send. The file is absent if the kernel has no IPv6.
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    let end = format!("mtu {mtu} numrxqueues {queues} numtxqueues {queues}");
    ip(&format!("link add left {end} type veth peer right {end}"));
    ip("link set left up");
    ip("link set right up");
}

/// Runs `ip`, which must succeed.
pub fn ip(words: &str) {
    let output = Command::new("ip")
        .args(words.split_whitespace())
        .output()
        .expect("cannot run ip: apt install iproute2");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {words}: {said}");
}

/// Returns the number of an interface in this namespace.
pub fn index_of(name: &str) -> u32 {
    let name = std::ffi::CString::new(name).expect("a name");
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    assert_ne!(index, 0, "{name:?}: {}", Error::last_os_error());
    index
}

/// Options of a socket in copy mode for frames of up to `mtu` plus a header, which may take several UMEM frames.
pub fn options(mtu: u32) -> SocketOptions {
    SocketOptions {
        bind: BindMode::Copy,
        multi_buffer: mtu > SINGLE_BUFFER_MTU,
        busy_poll: false,
        pages: Pages::Transparent,
        frame_len_max: mtu + HEADER_LEN,
    }
}

/// Opens a socket on a queue of an interface, with its own memory.
pub fn open(
    name: &str,
    queue: u32,
    options: &SocketOptions,
) -> Result<(XskRx, XskTx), SocketError> {
    PacketMemory::new(1, None).open(index_of(name), queue, options)
}

/// One end of the wire: the XDP program, and a socket on each queue.
pub struct End {
    /// Dropped first, so that no frame is redirected to a closing socket.
    _attachment: Attachment,
    pub rx: Vec<XskRx>,
    pub tx: Vec<XskTx>,
    burst: Burst,
}

impl End {
    /// Opens all queues of `left` or `right`, which [`make`] has made.
    pub fn open(name: &str, queues: u32, mtu: u32) -> End {
        let interface = Interface::find(name).unwrap().expect("an interface");
        let mut attachment =
            Attachment::new(&interface, false, false, mtu > SINGLE_BUFFER_MTU).expect("native XDP");
        // Another mapping may go on with it, which changes nothing else.
        let mut memory = PacketMemory::new(queues as u16, None).in_files(true);
        let (mut rx, mut tx) = (Vec::new(), Vec::new());
        for queue in 0..queues {
            let halves = memory
                .open(interface.index, queue, &options(mtu))
                .expect("a socket");
            attachment
                .redirect(queue, &**halves.0.socket())
                .expect("room in the socket map");
            rx.push(halves.0);
            tx.push(halves.1);
        }
        End {
            _attachment: attachment,
            rx,
            tx,
            burst: Burst::new(),
        }
    }

    /// Goes on with other mappings of all sockets and their memory, as another process would, and with none of the old
    /// ones.
    pub fn take_over(&mut self, name: &str) {
        let mut memory = PacketMemory::new(1, None).in_files(true);
        let mapped = self.rx.iter().zip(0..).map(|(rx, queue)| {
            let (record, fds) = rx.socket().record().expect("it is in a file");
            let fds = fds.map(|fd| fd.try_clone_to_owned().expect("a descriptor"));
            let len_max = rx.socket().frame_len_max();
            memory
                .map_socket((index_of(name), queue), &record, len_max, fds)
                .expect("this kernel maps the rings of a bound socket")
        });
        let mapped: Vec<MappedSocket> = mapped.collect();
        let mut bytes = Vec::new();
        for tx in &mut self.tx {
            FramePlaces::of(tx).write(&mut bytes);
        }
        let mut rest = bytes.as_slice();
        (self.rx, self.tx) = mapped
            .into_iter()
            .map(|socket| {
                let places = FramePlaces::read(&mut rest).expect("places");
                socket.resume(&places).expect("true places")
            })
            .unzip();
    }

    /// Sends up to a burst of frames on a queue, and makes the kernel take them all.
    pub fn send(&mut self, queue: usize, frames: &[Vec<u8>]) -> NicOutcome {
        let picks = load(&mut self.burst, frames);
        let outcome = self.tx[queue].deliver(&self.burst, &picks);
        self.flush(queue);
        outcome
    }

    /// Sends one frame with an offload request.
    pub fn send_unfinished(
        &mut self,
        queue: usize,
        frame: &Vec<u8>,
        offload: Offload,
    ) -> NicOutcome {
        let picks = load(&mut self.burst, std::slice::from_ref(frame));
        self.burst.frames_mut()[0].offload = offload;
        let outcome = self.tx[queue].deliver(&self.burst, &picks);
        self.flush(queue);
        outcome
    }

    /// Forwards a burst from one queue to another. Returns how many frames it had, and how many UMEM frames were
    /// exchanged instead of copied.
    pub fn forward(&mut self, from: usize, to: usize, tag: HeaderOp) -> (usize, usize) {
        self.burst.clear();
        let count = self.rx[from].receive(&mut self.burst);
        let places =
            |burst: &Burst| -> Vec<u64> { (0..BURST).map(|i| burst.lease().place(i).0).collect() };
        for frame in self.burst.frames_mut() {
            frame.tci = TCI;
        }
        let before = places(&self.burst);
        let pick = |frame| TxEntry { frame, tag };
        let picks: Vec<TxEntry> = (0..count as u8).map(pick).collect();
        let outcome = self.tx[to].deliver(&self.burst, &picks);
        assert_eq!(outcome.frames as usize, count);
        let after = places(&self.burst);
        self.rx[from].complete(&self.burst);
        self.flush(to);
        let taken = before.iter().zip(&after).filter(|(a, b)| a != b).count();
        (count, taken)
    }

    /// Makes the kernel take all frames that wait on a queue.
    pub fn flush(&mut self, queue: usize) {
        let started = Instant::now();
        while self.tx[queue].flush().pending {
            assert!(started.elapsed() < PATIENCE, "the kernel does not take it");
        }
    }

    /// Takes all frames that have arrived on a queue.
    pub fn take_all(&mut self, queue: usize) -> Vec<Vec<u8>> {
        let bursts = std::iter::repeat_with(|| self.take(queue));
        bursts
            .take_while(|burst| !burst.is_empty())
            .flatten()
            .collect()
    }

    /// Takes a burst of frames that have arrived on a queue.
    fn take(&mut self, queue: usize) -> Vec<Vec<u8>> {
        self.burst.clear();
        let rx = &mut self.rx[queue];
        rx.receive(&mut self.burst);
        let frames = (0..self.burst.len()).map(|i| bytes_of(&self.burst, i));
        let frames = frames.collect();
        rx.complete(&self.burst);
        frames
    }

    /// Takes `count` frames from a queue.
    pub fn expect(&mut self, queue: usize, count: usize) -> Vec<Vec<u8>> {
        let (mut frames, started) = (Vec::new(), Instant::now());
        while frames.len() < count {
            frames.extend(self.take_all(queue));
            let late = started.elapsed() > PATIENCE;
            assert!(!late, "{} of {count} frames arrived", frames.len());
        }
        frames
    }
}

/// Puts frames into a burst, which is emptied first, and picks them all.
pub fn load(burst: &mut Burst, frames: &[Vec<u8>]) -> Vec<TxEntry> {
    burst.clear();
    for frame in frames {
        // SAFETY: read while the caller borrows `frames`: each caller delivers the burst before it releases them, and no
        // other code reads it.
        let bytes = unsafe { Segment::new(frame.as_ptr(), frame.len() as u32) };
        assert!(burst.push_contiguous(bytes, Offload::default()), "full");
    }
    let pick = |frame| TxEntry {
        frame,
        tag: HeaderOp::Keep,
    };
    (0..frames.len() as u8).map(pick).collect()
}

fn bytes_of(burst: &Burst, at: usize) -> Vec<u8> {
    let frame = &burst.frames()[at];
    let mut bytes = vec![0; frame.len as usize];
    // SAFETY: our own vector, which is only read after the copy.
    let to = unsafe { SegmentMut::new(bytes.as_mut_ptr(), frame.len) };
    let prefix = Prefix::new(&[], frame, HeaderOp::Keep);
    let copied = Gather::new(&prefix, burst, frame).copy_to(to);
    assert_eq!(copied, bytes.len(), "the burst has all of the frame");
    bytes
}

/// Returns a frame of `len` bytes, 14 or more, whose bytes differ from those of other frames.
pub fn frame(len: usize, number: u32) -> Vec<u8> {
    // Addresses and a type (IEEE 802 local experiments) that no network stack answers.
    let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5];
    bytes.extend(number.to_be_bytes());
    let mut next = number.wrapping_mul(2_654_435_761) ^ len as u32;
    while bytes.len() < len {
        next = next.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        bytes.push((next >> 24) as u8);
    }
    bytes.truncate(len);
    bytes
}
