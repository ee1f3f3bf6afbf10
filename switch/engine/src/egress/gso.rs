//! Cuts large frames into segments (GSO) for receivers that do not take them, for that receiver only.
//!
//! A guest may send a frame of up to 64 KiB and leave it to the device to cut it (virtio 1.2, 5.1.6). A guest that takes
//! such frames gets it unchanged, in one copy. For every other receiver it becomes a burst of segments: the headers are
//! made here, the payload stays where it is, and each segment is sent like any frame. A UDP datagram becomes fragments:
//! these have no offloads left, since the checksum of the whole datagram is computed first.

use std::hash::{BuildHasher, RandomState};

use crosspoint_frame::{
    BURST, Burst, DerivedBurst, Frame, Gather, HeaderOp, Offload, PartCursor, Prefix, TxEntry,
};
use crosspoint_packet::TAG_LEN;
use crosspoint_packet::checksum::Partial;
use crosspoint_packet::segment::{GsoRequest, HEADERS_MAX, SegmentError, Segmentation, Whole};

/// A worker's working memory for segmentation, allocated once.
pub struct Gso {
    parts: DerivedBurst,
    picks: Vec<TxEntry>,
    /// The large frame's headers, read once.
    headers: [u8; HEADERS_MAX],
    /// Position in the frame where the last segment ended.
    cursor: PartCursor,
    identifications: Identifications,
}

impl Default for Gso {
    fn default() -> Gso {
        Gso {
            parts: DerivedBurst::default(),
            picks: Vec::with_capacity(BURST),
            headers: [0; HEADERS_MAX],
            cursor: PartCursor::default(),
            identifications: Identifications::default(),
        }
    }
}

impl Gso {
    /// Plans how a large frame is cut for a receiver of frames up to `frame_len_max`, or returns what is wrong with it.
    pub fn begin(
        &mut self,
        burst: &Burst,
        frame: &Frame,
        frame_len_max: Option<u32>,
    ) -> Result<Segmentation, SegmentError> {
        let len = burst.read_beginning(frame, &mut self.headers);
        self.cursor = PartCursor::default();
        let offload = &frame.offload;
        let request = GsoRequest {
            gso_type: offload.gso_type,
            gso_size: match frame_len_max {
                Some(limit) if offload.any_size => fitting_size(frame, limit),
                _ => offload.gso_size,
            },
            checksum: offload.needs_csum.then_some(Partial {
                start: offload.csum_start,
                offset: offload.csum_offset,
            }),
        };
        let headers = self.headers.get(..len).unwrap_or(&[]);
        let identifications = &mut self.identifications;
        Segmentation::new(headers, frame.len as usize, request, || Whole {
            checksum: checksum_of(burst, frame),
            identification: identifications.next(),
        })
    }

    /// Makes segments from number `from` on, as many as fit in a burst, each to be sent with `tag`. Returns the burst and
    /// a pick for each; no picks when there are no more.
    pub fn make(
        &mut self,
        plan: &Segmentation,
        (burst, frame): (&Burst, &Frame),
        tag: HeaderOp,
        from: usize,
    ) -> (&Burst, &[TxEntry]) {
        self.parts.clear();
        self.picks.clear();
        let mut header = [0; HEADERS_MAX];
        for index in from..plan.count().min(from + BURST) {
            let Some(info) = plan.segment(index, &self.headers, &mut header) else {
                break;
            };
            let left = |place: Partial| Offload {
                needs_csum: true,
                csum_start: place.start,
                csum_offset: place.offset,
                ..Offload::default()
            };
            let offload = info.checksum.map(left).unwrap_or_default();
            let made = header.get(..info.header_len).unwrap_or(&[]);
            let payload = (info.payload_offset, info.payload_len);
            let cursor = &mut self.cursor;
            if !self
                .parts
                .push(made, (burst, frame), payload, offload, cursor)
            {
                break;
            }
            self.picks.push(TxEntry {
                frame: self.picks.len() as u8,
                tag,
            });
        }
        (self.parts.burst(), &self.picks)
    }
}

/// Returns the segment size for a frame whose original segment size is unknown, for a receiver of frames up to `limit`,
/// without tags.
fn fitting_size(frame: &Frame, limit: u32) -> u16 {
    let tags = TAG_LEN * usize::from(frame.tags);
    let room = (limit as usize + tags).saturating_sub(frame.offload.hdr_len.into());
    let room = u16::try_from(room).unwrap_or(u16::MAX);
    // A receiver that has no room for a header drops the segments as too long, and counts them.
    frame.offload.gso_size.min(room.max(1))
}

/// Returns the checksum that a frame asks for. The caller has checked that it lies within the frame.
fn checksum_of(burst: &Burst, frame: &Frame) -> u16 {
    let head = Prefix::new(&[], frame, HeaderOp::Keep);
    let checksum = Gather::new(&head, burst, frame).checksum(&frame.offload, HeaderOp::Keep);
    checksum.map_or(0, |(_, value)| value)
}

/// Identifications of fragmented IPv6 datagrams: random numbers, as in Linux. A counter would show each receiver how much
/// traffic the others get, and let it predict an identification to corrupt their datagrams (RFC 7739, 4). Two datagrams
/// between the same hosts have the same number once in 2^32, and this matters only while one of them is incomplete.
#[derive(Default)]
struct Identifications {
    secret: RandomState,
    given: u64,
}

impl Identifications {
    fn next(&mut self) -> u32 {
        self.given += 1;
        self.secret.hash_one(self.given) as u32
    }
}
