//! Large frames for receivers that do not take them: cut into segments, for that receiver alone.
//!
//! A guest may send a frame of up to 64 KiB and leave it to the device to cut it (virtio 1.2,
//! 5.1.6). To a guest that takes such frames it goes as it is, in one copy. For everybody else it
//! is made into a burst of segments: headers made here, payload where it lies, and each segment
//! takes the way that any frame takes.

use crosspoint_frame::{BURST, Burst, Frame, Offload, Parts, Pick, TagOp};
use crosspoint_packet::checksum::Partial;
use crosspoint_packet::segment::{GsoRequest, HEADERS_MAX, SegmentError, Segmentation};

/// A worker's working memory for cutting: made once.
pub struct Segmenter {
    parts: Parts,
    picks: Vec<Pick>,
    /// The large frame's headers, read once.
    headers: [u8; HEADERS_MAX],
}

impl Default for Segmenter {
    fn default() -> Segmenter {
        Segmenter {
            parts: Parts::default(),
            picks: Vec::with_capacity(BURST),
            headers: [0; HEADERS_MAX],
        }
    }
}

impl Segmenter {
    /// Looks at a large frame: how it is to be cut, or what is wrong with it.
    pub fn begin(&mut self, burst: &Burst, frame: &Frame) -> Result<Segmentation, SegmentError> {
        let len = burst.read_beginning(frame, &mut self.headers);
        let offload = &frame.offload;
        let request = GsoRequest {
            gso_type: offload.gso_type,
            gso_size: offload.gso_size,
            checksum: offload.needs_csum.then_some(Partial {
                start: offload.csum_start,
                offset: offload.csum_offset,
            }),
        };
        let headers = self.headers.get(..len).unwrap_or(&[]);
        Segmentation::new(headers, frame.len as usize, request)
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
            let offload = Offload {
                needs_csum: true,
                csum_start: info.checksum.start,
                csum_offset: info.checksum.offset,
                ..Offload::default()
            };
            let made = header.get(..plan.header_len()).unwrap_or(&[]);
            let payload = (info.payload_offset, info.payload_len);
            if !self.parts.push(made, (burst, frame), payload, offload) {
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
