//! Large frames for receivers that do not take them: cut into segments, for that receiver alone.
//!
//! A guest may send a frame of up to 64 KiB and leave it to the device to cut it (virtio 1.2,
//! 5.1.6). To a guest that takes such frames it goes as it is, in one copy. For everybody else it
//! is made into a burst of segments: headers made here, payload where it lies, and each segment
//! takes the way that any frame takes. One UDP datagram becomes fragments: these have nothing left
//! to be done, since the checksum of the whole was computed first.

use std::hash::{BuildHasher, RandomState};

use crosspoint_frame::{
    BURST, Burst, Frame, Gather, Offload, PartCursor, Parts, Pick, Prefix, TagOp,
};
use crosspoint_packet::TAG_LEN;
use crosspoint_packet::checksum::Partial;
use crosspoint_packet::segment::{GsoRequest, HEADERS_MAX, SegmentError, Segmentation, Whole};

/// A worker's working memory for cutting: made once.
pub struct Segmenter {
    parts: Parts,
    picks: Vec<Pick>,
    /// The large frame's headers, read once.
    headers: [u8; HEADERS_MAX],
    /// Where in it the last segment ended.
    cursor: PartCursor,
    identifications: Identifications,
}

impl Default for Segmenter {
    fn default() -> Segmenter {
        Segmenter {
            parts: Parts::default(),
            picks: Vec::with_capacity(BURST),
            headers: [0; HEADERS_MAX],
            cursor: PartCursor::default(),
            identifications: Identifications::default(),
        }
    }
}

impl Segmenter {
    /// Looks at a large frame: how it is to be cut for a receiver of frames up to `frame_len_max`, or what is wrong with it.
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

    /// Makes segments from number `from` on, as many as a burst has room for, each to be sent
    /// with `tag`. Returns the burst and a pick of each; none when there are no more.
    pub fn make(
        &mut self,
        plan: &Segmentation,
        (burst, frame): (&Burst, &Frame),
        tag: TagOp,
        from: usize,
    ) -> (&Burst, &[Pick]) {
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
            self.picks.push(Pick {
                frame: self.picks.len() as u8,
                tag,
            });
        }
        (self.parts.burst(), &self.picks)
    }
}

/// The size of segments of a frame whose sender's is not known, for a receiver of frames up to `limit`, tags not counted.
fn fitting_size(frame: &Frame, limit: u32) -> u16 {
    let tags = TAG_LEN * usize::from(frame.tags);
    let room = (limit as usize + tags).saturating_sub(frame.offload.hdr_len.into());
    let room = u16::try_from(room).unwrap_or(u16::MAX);
    // A receiver that has no room for a header drops the segments as too long, and counts them.
    frame.offload.gso_size.min(room.max(1))
}

/// The checksum that a frame asks for, which the caller has found to lie within it.
fn checksum_of(burst: &Burst, frame: &Frame) -> u16 {
    let head = Prefix::new(&[], frame, TagOp::Keep);
    let checksum = Gather::new(&head, burst, frame).checksum(&frame.offload, TagOp::Keep);
    checksum.map_or(0, |(_, value)| value)
}

/// Identifications of fragmented datagrams, for IPv6: random numbers, as in Linux. A counter would
/// tell each receiver how much the others get, and let it foretell what would spoil a datagram of
/// theirs (RFC 7739, 4). Two datagrams between the same hosts have the same number once in 2^32,
/// and it matters only while one of the two is not whole.
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
