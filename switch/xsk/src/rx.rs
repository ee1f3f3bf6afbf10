//! Receiving: the fill and receive rings of one NIC queue.

use std::sync::Arc;

use crosspoint_frame::{BURST, Burst, Offload, Segment, prefetch_read};
use crosspoint_packet::checksum;

use crate::ring::Ring;
use crate::{FRAME_SIZE, RING_SIZE, XskSocket};

/// How far into a frame its transport checksum may lie: two tags, IPv6 and TCP are 102 bytes,
/// IPv4 with all options 118.
const HEADERS_LEN: usize = 128;

/// The receiving half of a socket. Owned by one worker.
pub struct XskRx {
    socket: Arc<XskSocket>,
    rx: Ring<libc::xdp_desc>,
    fill: Ring<u64>,
    held: u32,
}

impl XskRx {
    pub(crate) fn new(
        socket: Arc<XskSocket>,
        rx: Ring<libc::xdp_desc>,
        mut fill: Ring<u64>,
    ) -> XskRx {
        // The first half of the UMEM is the kernel's to fill, from the start.
        for i in 0..RING_SIZE {
            fill.set(i, u64::from(i) * u64::from(FRAME_SIZE));
        }
        fill.submit(RING_SIZE);
        XskRx {
            socket,
            rx,
            fill,
            held: 0,
        }
    }

    /// The socket, to wait on and to ask for its counters.
    pub fn socket(&self) -> &Arc<XskSocket> {
        &self.socket
    }

    /// Whether a frame waits.
    pub fn has_work(&self) -> bool {
        self.rx.filled() > 0
    }

    /// Takes up to a burst of frames into `burst`, which is empty. Their memory is held until
    /// [`complete`](Self::complete).
    pub fn receive(&mut self, burst: &mut Burst) -> usize {
        let count = self.rx.filled().min(BURST as u32);
        if count == 0 {
            if self.fill.needs_wakeup() {
                self.socket.wake_rx();
            }
            return 0;
        }
        let umem = self.socket.umem();
        let mut segments = [None; BURST];
        for (i, segment) in segments.iter_mut().enumerate().take(count as usize) {
            let desc = self.rx.get(i as u32);
            *segment = umem.segment(desc.addr, desc.len);
            if let Some(segment) = segment {
                prefetch_read(segment.ptr());
            }
        }
        for segment in segments.iter().take(count as usize) {
            // The kernel does not give addresses outside the UMEM; if it did, an empty frame is
            // dropped as a runt, and counted.
            match segment {
                Some(bytes) => burst.push_contiguous(*bytes, self.offload(bytes)),
                None => burst.push_segments(&[], Offload::default()),
            };
        }
        self.held = count;
        count as usize
    }

    /// What the sender left undone. Only a software device (veth, tap) hands over frames whose
    /// checksum nobody has computed; a NIC that writes the UMEM itself took them off a wire.
    #[inline(always)]
    fn offload(&self, bytes: &Segment) -> Offload {
        if self.socket.zero_copy() {
            return Offload::default();
        }
        let mut headers = [0; HEADERS_LEN];
        let n = bytes.read(&mut headers);
        match checksum::find_partial(headers.get(..n).unwrap_or(&[])) {
            Some(partial) => Offload {
                needs_csum: true,
                csum_start: partial.start,
                csum_offset: partial.offset,
                ..Offload::default()
            },
            None => Offload::default(),
        }
    }

    /// Gives the frames of the last [`receive`](Self::receive) back to the kernel: what was to
    /// be copied has been. The fill ring is as large as the UMEM's half, so it has room.
    pub fn complete(&mut self) {
        let held = std::mem::take(&mut self.held);
        for i in 0..held {
            let desc = self.rx.get(i);
            // Back to the frame's beginning: the packet began somewhere behind it.
            self.fill
                .set(i, desc.addr - desc.addr % u64::from(FRAME_SIZE));
        }
        self.rx.release(held);
        self.fill.submit(held);
    }
}
