//! Large TCP frames sent whole through a software interface: tests on a real veth and a real tap, whose other ends are
//! read with the kernel's metadata of each frame.

mod far;
mod wire;

use std::fs::{File, OpenOptions};
use std::io::{Error, Read};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use crosspoint_frame::{BURST, Burst, HeaderOp, Offload, Segment, TxEntry};
use crosspoint_netdev::{Attachment, Interface};
use crosspoint_packet::segment::{GSO_ECN, GSO_TCPV4, GSO_TCPV6};
use crosspoint_xsk::XskTx;
use etherparse::{PacketBuilder, TcpOptionElement};
use far::{Far, HEADER};
use wire::{End, frame, index_of, ip, open, options};

const MTU: u32 = 1500;
/// Header lengths of a TCP frame over IPv4 and over IPv6, without a tag, with timestamps.
const HEADERS: [usize; 2] = [14 + 20 + 32, 14 + 40 + 32];
const TAG: [u8; 4] = [0x81, 0, 0x61, 0x23];
const BRIDGE_TAG: [u8; 4] = [0x88, 0xa8, 0x20, 0x64];

/// Pseudo-random numbers (Marsaglia 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

/// A frame, its offload request, and where it is split into pieces.
#[derive(Clone)]
struct Case {
    bytes: Vec<u8>,
    offload: Offload,
    tag: HeaderOp,
    pieces: usize,
}

impl Case {
    fn small(bytes: Vec<u8>) -> Case {
        Case {
            bytes,
            offload: Offload::default(),
            tag: HeaderOp::Keep,
            pieces: 1,
        }
    }

    /// A large TCP frame over IPv4 or IPv6, with `payload` bytes of payload.
    fn large(v6: bool, payload: usize, number: u32) -> Case {
        let link = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        let ip = match v6 {
            true => link.ipv6([1; 16], [2; 16], 64),
            false => link.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64),
        };
        let times = [
            TcpOptionElement::Noop,
            TcpOptionElement::Noop,
            TcpOptionElement::Timestamp(7, 8),
        ];
        let tcp = ip.tcp(5000, 80, number, 1000).ack(77);
        let tcp = tcp.options(&times).expect("12 bytes");
        let mut bytes = Vec::new();
        let payload = &frame(payload + 18, number)[18..];
        tcp.write(&mut bytes, payload).expect("a frame");
        let headers = HEADERS[usize::from(v6)];
        Case {
            bytes,
            offload: Offload {
                needs_csum: true,
                finish: false,
                gso_type: if v6 { GSO_TCPV6 } else { GSO_TCPV4 },
                // Only a hint, and wrong here.
                hdr_len: 7,
                gso_size: (1514 - headers) as u16,
                csum_start: (headers - 32) as u16,
                csum_offset: 16,
                any_size: false,
            },
            tag: HeaderOp::Keep,
            pieces: 1,
        }
    }

    fn random(random: &mut Random, number: u32) -> Case {
        if random.below(2) == 0 {
            return Case::small(frame(60 + random.below(1400), number));
        }
        let mut case = Case::large(random.below(2) == 0, 3000 + random.below(60_000), number);
        if random.below(4) == 0 {
            case.offload.gso_type |= GSO_ECN;
        }
        case.tag = [
            HeaderOp::Keep,
            HeaderOp::Push,
            HeaderOp::Pop,
            HeaderOp::PushBridge,
            HeaderOp::PushBoth,
            HeaderOp::PopBoth,
        ][random.below(6)];
        case.pieces = 1 + random.below(40);
        for _ in 0..case.tags() {
            case.bytes.splice(12..12, TAG);
            case.offload.csum_start += 4;
        }
        case
    }

    /// Returns the number of the frame's tags.
    fn tags(&self) -> u8 {
        match self.tag {
            HeaderOp::Pop => 1,
            HeaderOp::PopBoth => 2,
            _ => 0,
        }
    }

    /// Returns the frame as it arrives.
    fn after(&self) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        match self.tag {
            HeaderOp::Keep => {}
            HeaderOp::Push => drop(bytes.splice(12..12, TAG)),
            HeaderOp::Pop => drop(bytes.drain(12..16)),
            HeaderOp::PushBridge => drop(bytes.splice(12..12, BRIDGE_TAG)),
            HeaderOp::PushBoth => {
                bytes.splice(12..12, TAG);
                bytes.splice(12..12, BRIDGE_TAG);
            }
            HeaderOp::PopBoth => drop(bytes.drain(12..20)),
        }
        bytes
    }
}

/// Puts the cases into a burst, as the earlier stages would, and picks them all.
fn load(burst: &mut Burst, cases: &[Case]) -> Vec<TxEntry> {
    burst.clear();
    let mut picks = Vec::new();
    for (index, case) in cases.iter().enumerate() {
        let len = case.bytes.len().div_ceil(case.pieces);
        let piece = |bytes: &[u8]| {
            // SAFETY: read while the caller borrows `cases`; the caller delivers the burst before it releases them, and
            // no other code reads it.
            unsafe { Segment::new(bytes.as_ptr(), bytes.len() as u32) }
        };
        let pieces: Vec<Segment> = case.bytes.chunks(len).map(piece).collect();
        assert!(burst.push_segments(&pieces, case.offload), "full");
        let frame = &mut burst.frames_mut()[index];
        (frame.tci, frame.tagged) = (wire::TCI, case.tags() > 0);
        (frame.stacked, frame.tags) = (false, case.tags());
        frame.bridge_tag = BRIDGE_TAG;
        picks.push(TxEntry {
            frame: index as u8,
            tag: case.tag,
        });
    }
    picks
}

/// Returns which of the cases would be sent whole.
fn taken(tx: &XskTx, cases: &[Case]) -> Vec<bool> {
    let mut burst = Burst::new();
    load(&mut burst, cases);
    let frames = burst.frames().iter().zip(cases);
    frames
        .map(|(frame, case)| tx.takes(&burst, frame, case.tag))
        .collect()
}

/// One end of the wire with a switch's socket, and the receiver at the other end.
fn ends() -> (End, Far) {
    wire::make(1, MTU);
    let far = Far::new(index_of("right"));
    let mut left = End::open("left", 1, MTU);
    left.tx[0]
        .send_large(index_of("left"))
        .expect("a packet socket");
    (left, far)
}

/// Checks that exactly the sent frames arrive, large ones whole.
fn assert_arrive(far: &Far, cases: &[Case], what: &str) {
    for (index, case) in cases.iter().enumerate() {
        let (header, bytes) = far
            .take()
            .unwrap_or_else(|| panic!("{what}: nothing at {index} of {}", cases.len()));
        assert!(bytes == case.after(), "{what}: frame {index} is another");
        assert_eq!(header[1], case.offload.gso_type, "{what}: frame {index}");
        if case.offload.gso_type != 0 {
            let size = u16::from_le_bytes([header[4], header[5]]);
            assert_eq!(
                (header[0], size),
                (1, case.offload.gso_size),
                "{what}: {index}"
            );
        }
    }
}

#[test]
fn large_frames_arrive_whole_and_in_order_with_others_however_they_lie_and_are_tagged() {
    let (mut left, far) = ends();
    let (mut random, mut burst, mut number) = (Random(9), Burst::new(), 0);
    for round in 0..100 {
        let count = 1 + random.below(BURST / 2);
        number += count as u32;
        let cases: Vec<Case> = (number - count as u32..number)
            .map(|number| Case::random(&mut random, number))
            .collect();
        for (case, taken) in cases.iter().zip(taken(&left.tx[0], &cases)) {
            assert_eq!(taken, case.offload.gso_type != 0, "{:?}", case.offload);
        }
        let picks = load(&mut burst, &cases);
        let outcome = left.tx[0].deliver(&burst, &picks);
        left.flush(0);
        assert_eq!((outcome.frames as usize, outcome.dropped()), (count, 0));
        let bytes: usize = cases.iter().map(|case| case.after().len()).sum();
        assert_eq!(outcome.bytes as usize, bytes);
        assert_arrive(&far, &cases, &format!("round {round}"));
    }
}

/// Refused frames are cut by the caller, or dropped there with a reason.
#[test]
fn what_the_kernel_would_refuse_or_cut_into_thousands_is_not_taken() {
    let (left, _far) = ends();
    let good = Case::large(false, 20_000, 1);
    let mut cases = vec![good.clone(); 12];
    let offload = |cases: &mut Vec<Case>, index: usize, change: fn(&mut Offload)| {
        change(&mut cases[index].offload);
    };
    offload(&mut cases, 1, |offload| offload.gso_size = 535);
    offload(&mut cases, 2, |offload| offload.gso_size += 1);
    offload(&mut cases, 3, |offload| offload.gso_type = GSO_TCPV6);
    offload(&mut cases, 4, |offload| offload.gso_type = 5);
    offload(&mut cases, 5, |offload| offload.gso_type = 0x7f);
    offload(&mut cases, 6, |offload| offload.csum_start += 2);
    offload(&mut cases, 7, |offload| offload.csum_offset = 6);
    // A data offset of 60 bytes, and of 4; UDP; a fragment.
    cases[8].bytes[46] = 0xf0;
    cases[8].bytes.truncate(90);
    cases[9].bytes[46] = 0x10;
    cases[10].bytes[23] = 17;
    cases[11].pieces = 5000;
    let wanted = (0..cases.len()).map(|index| index == 0);
    assert_eq!(taken(&left.tx[0], &cases), wanted.collect::<Vec<_>>());
    // A tag does not count against the MTU.
    let push = Case {
        tag: HeaderOp::Push,
        ..good
    };
    assert_eq!(taken(&left.tx[0], &[push]), [true]);
}

#[test]
fn a_frame_that_changes_or_goes_away_after_it_was_looked_at_is_counted_and_no_other_is_lost() {
    let (mut left, far) = ends();
    let mut burst = Burst::new();
    let small = |number| Case::small(frame(100, number));
    let cases = [
        small(0),
        Case::large(false, 20_000, 1),
        small(2),
        Case::large(true, 20_000, 3),
        small(4),
        Case::large(false, 20_000, 5),
    ];
    let mut picks = load(&mut burst, &cases);
    // One frame as if rewritten after the check, and one whose memory is gone.
    burst.frames_mut()[1].offload.csum_offset = 30_000;
    let hole = Hole::new();
    let bytes = &cases[5].bytes;
    let pieces = [(bytes.as_ptr(), 300), (hole.0, (bytes.len() - 300) as u32)];
    // SAFETY: the first lives through the test. The second cannot be read, and no code here reads it: the kernel reports
    // that.
    let pieces = pieces.map(|(ptr, len)| unsafe { Segment::new(ptr, len) });
    assert!(burst.push_segments(&pieces, cases[5].offload));
    let index = burst.len() - 1;
    let gone = &mut burst.frames_mut()[index];
    (gone.tagged, gone.stacked, gone.tags) = (false, false, 0);
    picks.insert(
        4,
        TxEntry {
            frame: index as u8,
            tag: HeaderOp::Keep,
        },
    );
    let outcome = left.tx[0].deliver(&burst, &picks);
    left.flush(0);
    assert_eq!((outcome.frames, outcome.refused), (5, 2));
    assert_eq!(outcome.dropped(), 2);
    let arrived: Vec<Case> = [0, 2, 3, 4, 5].map(|index| cases[index].clone()).into();
    assert_arrive(&far, &arrived, "the others");
}

#[test]
fn segments_beyond_the_mtu_are_refused_and_counted_as_that() {
    let (mut left, far) = ends();
    let mut burst = Burst::new();
    let cases = [
        Case::large(false, 9_000, 1),
        Case::large(true, 9_000, 2),
        Case::large(false, 900, 3),
    ];
    left.tx[0].socket().set_frame_len_max(1514 - 20);
    let picks = load(&mut burst, &cases);
    let outcome = left.tx[0].deliver(&burst, &picks);
    assert_eq!((outcome.frames, outcome.long, outcome.dropped()), (1, 2, 2));
    let (_, bytes) = far.take().expect("the one that fits in one piece");
    assert!(bytes == cases[2].bytes);
}

/// Memory that cannot be read.
struct Hole(*mut u8);

impl Hole {
    const LEN: usize = 1 << 20;

    fn new() -> Hole {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let none = std::ptr::null_mut();
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe { libc::mmap(none, Hole::LEN, libc::PROT_NONE, flags, -1, 0) };
        assert_ne!(at, libc::MAP_FAILED, "{}", Error::last_os_error());
        Hole(at.cast())
    }
}

impl Drop for Hole {
    fn drop(&mut self) {
        // SAFETY: made by `new`, of that length, and its address is not kept.
        unsafe { libc::munmap(self.0.cast(), Hole::LEN) };
    }
}

/// Opens a tap as its user: each read returns a frame with its virtio-net header.
fn tap(name: &str) -> File {
    let mut file = OpenOptions::new();
    let file = file
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .expect("a device for taps");
    let mut request = [0u8; 40];
    request[..name.len()].copy_from_slice(name.as_bytes());
    let flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as u16;
    request[16..18].copy_from_slice(&flags.to_ne_bytes());
    // SAFETY: TUNSETIFF reads and writes a `struct ifreq`, 40 bytes, which is what `request` has.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
    assert_eq!(made, 0, "{}", Error::last_os_error());
    // Checksums, TCP over IPv4 and over IPv6.
    // SAFETY: TUNSETOFFLOAD takes a number, and touches no memory of ours.
    let set = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD, 7) };
    assert_eq!(set, 0, "{}", Error::last_os_error());
    file
}

#[test]
fn what_leaves_by_a_tap_does_not_come_back_from_it() {
    wire::make(1, MTU);
    let mut guest = tap("tap0");
    ip("link set tap0 up");
    let interface = Interface::find("tap0").unwrap().expect("an interface");
    let mut attachment = Attachment::new(&interface, false, true, false).expect("XDP");
    let (mut rx, mut tx) = open("tap0", 0, &options(MTU)).expect("a socket");
    attachment.redirect(0, &**rx.socket()).expect("room");
    tx.send_large(interface.index).expect("a packet socket");
    let mut burst = Burst::new();
    let cases = [
        Case::large(false, 30_000, 1),
        Case::small(frame(200, 2)),
        Case::large(true, 30_000, 3),
    ];
    let picks = load(&mut burst, &cases);
    assert_eq!(tx.deliver(&burst, &picks).frames, 3);
    tx.flush();
    for case in &cases {
        let mut bytes = vec![0; 70_000];
        let n = guest.read(&mut bytes).expect("it is there");
        assert_eq!(bytes[1], case.offload.gso_type);
        assert!(bytes[HEADER..n] == case.bytes);
    }
    burst.clear();
    assert_eq!(rx.receive(&mut burst), 0);
    rx.complete(&burst);
}
