//! Tap devices in a network namespace, with virtio headers before the frames.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::time::Duration;

use crosspoint_packet::checksum::Partial;
use crosspoint_packet::segment::GsoRequest;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::frames::{DESTINATION, SOURCE};
use crate::netns;

const NEEDS_CSUM: u8 = 1;
/// Bytes of `struct virtio_net_hdr` without `num_buffers`.
const HEADER_LEN: usize = 10;

/// One end of a tap device, with a virtio header before each frame.
pub struct Tap(File);

impl Tap {
    /// Makes the device. `offload`: the offloads that its user takes, `TUN_F_*`.
    pub fn new(name: &str, offload: libc::c_uint) -> Tap {
        let tap = Tap(netns::tap(name, libc::IFF_VNET_HDR));
        tap.take(offload)
            .expect("an offload that every kernel knows");
        tap
    }

    /// Sets the offloads that the tap's user takes.
    pub fn take(&self, offload: libc::c_uint) -> std::io::Result<()> {
        let offload = libc::c_ulong::from(offload);
        // SAFETY: TUNSETOFFLOAD takes a number, and touches no memory of ours.
        let set = unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNSETOFFLOAD, offload) };
        if set == 0 {
            return Ok(());
        }
        Err(std::io::Error::last_os_error())
    }

    pub fn send(&mut self, request: GsoRequest, frame: &[u8]) {
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
        // The first is `hdr_len`, which is only a hint.
        for field in [0, request.gso_size, place.start, place.offset] {
            bytes.extend(field.to_ne_bytes());
        }
        bytes.extend(frame);
        self.0
            .write_all(&bytes)
            .expect("the kernel takes the frame");
    }

    /// Returns the next frame of this test, and its checksum's place if it is partial.
    pub fn receive(&mut self) -> (Vec<u8>, Option<Partial>) {
        let mut bytes = vec![0; 70_000];
        loop {
            let mut ready = [PollFd::new(&self.0, PollFlags::IN)];
            let limit = Timespec::try_from(Duration::from_secs(5)).unwrap();
            assert_eq!(poll(&mut ready, Some(&limit)).unwrap(), 1, "no frame comes");
            let n = self.0.read(&mut bytes).unwrap();
            let (header, frame) = bytes[..n].split_at(HEADER_LEN);
            // Other frames are from the kernel (neighbour and multicast discovery).
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
