//! Linux as the judge: a large frame goes into a tap device with its virtio header, over a bridge,
//! and out of a tap device that takes no large frames. What the kernel makes of it on the way is
//! what this code must make of it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Duration;

use crosspoint_packet::checksum::Partial;
use crosspoint_packet::segment::GsoRequest;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use crate::frames::{DESTINATION, Large, SOURCE, cut, finished, large, same};

const NEEDS_CSUM: u8 = 1;
/// Bytes of `struct virtio_net_hdr` without `num_buffers`.
const HEADER_LEN: usize = 10;
/// Segmented datagrams over IPv4 and IPv6, of which Linux knows since 6.2.
const TUN_F_USO: libc::c_uint = 0x20 | 0x40;
/// Most datagrams that every such Linux cuts a frame into (`UDP_MAX_SEGMENTS`; since 6.9 it is 128).
const DATAGRAMS_MAX: usize = 64;

/// One end of a tap device, with a virtio header before each frame.
struct Tap(File);

impl Tap {
    /// Makes the device. `offload`: what its user takes, `TUN_F_*`.
    fn new(name: &str, offload: libc::c_uint) -> Tap {
        let file = File::options()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
            .expect("the tun driver");
        // `struct ifreq`: the name, flags, and what is left of a union of 24 bytes.
        let mut request = [0u8; 40];
        request[..name.len()].copy_from_slice(name.as_bytes());
        let flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as u16;
        request[16..18].copy_from_slice(&flags.to_ne_bytes());
        // SAFETY: TUNSETIFF reads and writes a `struct ifreq`, 40 bytes, which is what `request` has.
        let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, request.as_mut_ptr()) };
        assert_eq!(made, 0, "{name}: {}", std::io::Error::last_os_error());
        let tap = Tap(file);
        tap.take(offload)
            .expect("an offload that every kernel knows");
        tap
    }

    /// Tells the kernel what the tap's user takes.
    fn take(&self, offload: libc::c_uint) -> std::io::Result<()> {
        let offload = libc::c_ulong::from(offload);
        // SAFETY: TUNSETOFFLOAD takes a number, and touches no memory of ours.
        let set = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNSETOFFLOAD, offload) };
        if set == 0 {
            return Ok(());
        }
        Err(std::io::Error::last_os_error())
    }

    fn send(&mut self, request: GsoRequest, frame: &[u8]) {
        let place = request.checksum.unwrap_or(Partial {
            start: 0,
            offset: 0,
        });
        let mut bytes = vec![
            if request.checksum.is_some() {
                NEEDS_CSUM
            } else {
                0
            },
            request.gso_type,
        ];
        // The second is `hdr_len`, which is a hint.
        for field in [0, request.gso_size, place.start, place.offset] {
            bytes.extend(field.to_ne_bytes());
        }
        bytes.extend(frame);
        self.0
            .write_all(&bytes)
            .expect("the kernel takes the frame");
    }

    /// The next frame that this test has sent, and its checksum if it is partial.
    fn receive(&mut self) -> (Vec<u8>, Option<Partial>) {
        let mut bytes = vec![0; 70_000];
        loop {
            let mut ready = [PollFd::new(&self.0, PollFlags::IN)];
            let limit = Timespec::try_from(Duration::from_secs(5)).unwrap();
            assert_eq!(poll(&mut ready, Some(&limit)).unwrap(), 1, "no frame comes");
            let n = self.0.read(&mut bytes).unwrap();
            let (header, frame) = bytes[..n].split_at(HEADER_LEN);
            // Others are the kernel's own (neighbour and multicast discovery).
            if frame[..6] == DESTINATION && frame[6..12] == SOURCE {
                assert_eq!(header[1], 0, "the kernel has not segmented");
                let field = |at| u16::from_ne_bytes([header[at], header[at + 1]]);
                let place = Partial {
                    start: field(6),
                    offset: field(8),
                };
                return (frame.to_vec(), (header[0] == NEEDS_CSUM).then_some(place));
            }
        }
    }
}

fn ip(arguments: &str) {
    let status = Command::new("ip")
        .args(arguments.split_whitespace())
        .status();
    assert!(status.expect("iproute2").success(), "ip {arguments}");
}

/// Two tap devices on a bridge. The thread is in a network namespace of its own from here on.
fn bridge(offload: libc::c_uint) -> (Tap, Tap) {
    assert!(
        rustix::process::geteuid().is_root(),
        "this test makes a network namespace: run it as root"
    );
    // SAFETY: no file descriptors are unshared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("a network namespace");
    let taps = (Tap::new("in", 0), Tap::new("out", offload));
    // Snooping looks at IP's lengths, too.
    ip("link add bridge type bridge mcast_snooping 0");
    for name in ["in", "out"] {
        // Room for all segments of a frame, and for a frame that is not to be segmented.
        ip(&format!(
            "link set {name} master bridge mtu 65500 txqueuelen 5000 up"
        ));
    }
    ip("link set bridge up");
    // Where netfilter's bridge module is loaded, it drops what has wrong lengths in its IP header.
    for tables in ["iptables", "ip6tables"] {
        let call = format!("/proc/sys/net/bridge/bridge-nf-call-{tables}");
        if std::path::Path::new(&call).exists() {
            std::fs::write(call, "0").expect("root");
        }
    }
    taps
}

/// What the kernel makes of a large frame.
fn kernel_cut(
    taps: &mut (Tap, Tap),
    frame: &[u8],
    request: GsoRequest,
) -> Vec<(Vec<u8>, Option<Partial>)> {
    // A type for experiments (IEEE 802), behind the frame: then all of it has come.
    let mut end = [DESTINATION, SOURCE].concat();
    end.extend([0x88, 0xb5]);
    end.resize(60, 0x55);
    taps.0.send(request, frame);
    let nothing = GsoRequest {
        gso_type: 0,
        gso_size: 0,
        checksum: None,
    };
    taps.0.send(nothing, &end);
    let mut segments = Vec::new();
    loop {
        let segment = taps.1.receive();
        if segment.0 == end {
            return segments;
        }
        segments.push(segment);
    }
}

/// Whether our segments are the kernel's. `partial`: the kernel leaves the checksums.
fn compare(taps: &mut (Tap, Tap), mut large: Large, partial: bool) -> Result<(), TestCaseError> {
    if large.count() == 1 {
        // The kernel lets such a frame pass as it is; but it takes TCP's options for payload when it
        // asks whether there is more of it than `gso_size`, and drops what it then cannot cut.
        large.ip_len = None;
        large.gso_size += 40;
    }
    if !large.is_tcp() {
        large.payload.truncate(DATAGRAMS_MAX * large.gso_size);
    }
    let frame = large.frame();
    let ours = cut(&frame, large.request());
    let theirs = kernel_cut(taps, &frame, large.request());
    prop_assert_eq!(ours.len(), theirs.len());
    for (index, (ours, (theirs, left))) in ours.into_iter().zip(theirs).enumerate() {
        prop_assert_eq!(left, partial.then_some(ours.1));
        let at = usize::from(ours.1.start + ours.1.offset);
        let ours = if partial { ours.0 } else { finished(ours) };
        prop_assert!(
            same(&ours, &theirs, at),
            "segment {}:\n{:02x?}\nfrom Linux:\n{:02x?}",
            index,
            ours,
            theirs
        );
    }
    Ok(())
}

fn kernel_agrees(offload: libc::c_uint) {
    // A thread of its own, since the namespace stays with it.
    let judged = std::thread::spawn(move || {
        let taps = std::cell::RefCell::new(bridge(offload));
        let datagrams = taps.borrow().0.take(libc::TUN_F_CSUM | TUN_F_USO).is_ok();
        if !datagrams {
            eprintln!("this kernel cuts no datagrams: it is asked about TCP only");
        }
        let run = TestRunner::default().run(&large(), |large| {
            if !datagrams && !large.is_tcp() {
                return Ok(());
            }
            compare(&mut taps.borrow_mut(), large, offload != 0)
        });
        if let Err(difference) = run {
            panic!("{difference}");
        }
    });
    judged
        .join()
        .unwrap_or_else(|e| std::panic::resume_unwind(e));
}

#[test]
fn segments_are_those_that_linux_makes() {
    kernel_agrees(0);
}

#[test]
fn partial_checksums_are_those_that_linux_leaves() {
    kernel_agrees(libc::TUN_F_CSUM);
}
