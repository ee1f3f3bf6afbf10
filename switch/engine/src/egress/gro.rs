//! Joins TCP segments from a wire for a guest that takes large frames (GRO), for that guest only.
//!
//! Each frame that a guest receives, and its checksum, costs the guest time. Segments of one flow in one burst become one
//! large frame: the header of the first, followed by the payload of all, not moved in memory. Only segments of the same
//! burst are joined: nothing waits for further segments, so joining adds no delay. The large frame's header marks the
//! checksums as valid; they are verified here.

use crosspoint_frame::{BURST, Burst, DerivedBurst, Frame, Offload, TxEntry};
use crosspoint_packet::gro::{JOIN_HEADERS, Joinable, TcpSegment, inspect};
use crosspoint_packet::segment::{GSO_TCPV4, GSO_TCPV6};

/// Offset of the checksum in a TCP header (RFC 793, 3.1).
const TCP_CHECKSUM: u16 = 16;

/// A run of consecutive segments of one flow.
#[derive(Clone, Copy)]
struct Run {
    segment: TcpSegment,
    /// Index of its first segment among the picks.
    first: usize,
    count: usize,
    payload_len: usize,
    push: bool,
    verified: bool,
    open: bool,
}

/// A worker's working memory for joining, allocated once.
pub struct Gro {
    parts: DerivedBurst,
    picks: Vec<TxEntry>,
    heads: Vec<[u8; JOIN_HEADERS]>,
    runs: Vec<Run>,
    /// The run of each pick.
    run_of: [Option<u8>; BURST],
    /// Frames of one run, and the offset of their payload.
    members: Vec<(u8, usize)>,
}

impl Default for Gro {
    fn default() -> Gro {
        Gro {
            parts: DerivedBurst::default(),
            picks: Vec::with_capacity(BURST),
            heads: vec![[0; JOIN_HEADERS]; BURST],
            runs: Vec::with_capacity(BURST),
            run_of: [None; BURST],
            members: Vec::with_capacity(BURST),
        }
    }
}

/// Which large TCP frames a receiver takes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Takes {
    /// Over IPv4.
    pub v4: bool,
    /// Over IPv6.
    pub v6: bool,
}

impl Gro {
    /// Joins the picked frames that belong together. Returns the burst and the picks, fewer than before, to be sent
    /// instead; `None` if nothing can be joined. The order within each flow is kept.
    pub fn join(
        &mut self,
        burst: &Burst,
        picks: &[TxEntry],
        takes: Takes,
    ) -> Option<(&Burst, &[TxEntry])> {
        self.runs.clear();
        for (index, pick) in picks.iter().enumerate().take(BURST) {
            self.run_of[index] = None;
            if let Some(frame) = burst.frames().get(usize::from(pick.frame)) {
                self.look_at(burst, (index, frame), picks, takes);
            }
        }
        if self.runs.iter().all(|run| run.count < 2) {
            return None;
        }
        self.make(burst, picks);
        Some((self.parts.burst(), &self.picks))
    }

    fn look_at(
        &mut self,
        burst: &Burst,
        (index, frame): (usize, &Frame),
        picks: &[TxEntry],
        takes: Takes,
    ) {
        let head = &mut self.heads[index];
        let len = burst.read_beginning(frame, head);
        let open = |key| move |run: &&mut Run| run.open && run.segment.key == key;
        match inspect(head.get(..len).unwrap_or(&[]), frame.len as usize) {
            Joinable::Foreign => {}
            Joinable::Opaque => self.runs.iter_mut().for_each(|run| run.open = false),
            Joinable::Single(key) => {
                if let Some(run) = self.runs.iter_mut().find(open(key)) {
                    run.open = false;
                }
            }
            Joinable::Data(segment) => {
                let taken = if segment.ip_version() == 4 {
                    takes.v4
                } else {
                    takes.v6
                };
                let known = self
                    .runs
                    .iter()
                    .position(|run| run.open && run.segment.key == segment.key);
                let joined = taken
                    && known
                        .is_some_and(|run| self.append(burst, (index, frame), run, segment, picks));
                if joined {
                    self.run_of[index] = known.map(|run| run as u8);
                    return;
                }
                if let Some(run) = known.and_then(|run| self.runs.get_mut(run)) {
                    run.open = false;
                }
                self.run_of[index] = Some(self.runs.len() as u8);
                self.runs.push(Run {
                    segment,
                    first: index,
                    count: 1,
                    payload_len: segment.payload_len,
                    push: segment.push,
                    verified: false,
                    open: !segment.push,
                });
            }
        }
    }

    /// Adds a segment to a run if it belongs there and the checksums of both are valid. Returns whether it was added.
    fn append(
        &mut self,
        burst: &Burst,
        (index, frame): (usize, &Frame),
        number: usize,
        segment: TcpSegment,
        picks: &[TxEntry],
    ) -> bool {
        let Some(run) = self.runs.get_mut(number) else {
            return false;
        };
        let heads = (&self.heads[run.first], &self.heads[index]);
        let so_far = (run.count, run.payload_len);
        let (Some(first_pick), Some(pick)) = (picks.get(run.first), picks.get(index)) else {
            return false;
        };
        if first_pick.tag != pick.tag
            || !run
                .segment
                .is_followed_by(heads.0, so_far, &segment, heads.1)
        {
            return false;
        }
        if !run.verified {
            let first = burst.frames().get(usize::from(first_pick.frame));
            run.verified = first.is_some_and(|first| is_whole(burst, first, &run.segment, heads.0));
        }
        if !run.verified || !is_whole(burst, frame, &segment, heads.1) {
            return false;
        }
        run.count += 1;
        run.payload_len += segment.payload_len;
        run.push |= segment.push;
        // A shorter segment ends the run: when the frame is cut again, all segments but the last have one size.
        run.open = !segment.push && segment.payload_len == run.segment.payload_len;
        true
    }

    /// Makes the frames to be sent: each run at the position of its first segment, the other frames at their own.
    fn make(&mut self, burst: &Burst, picks: &[TxEntry]) {
        self.parts.clear();
        self.picks.clear();
        for (index, pick) in picks.iter().enumerate().take(BURST) {
            let Some(frame) = burst.frames().get(usize::from(pick.frame)) else {
                continue;
            };
            let run = self.run_of[index].and_then(|run| self.runs.get(usize::from(run)).copied());
            let made = match run {
                Some(run) if run.count > 1 && run.first == index => {
                    self.make_joined(burst, run, picks)
                }
                Some(run) if run.count > 1 => continue,
                _ => self.parts.push_same(burst, frame),
            };
            // There are no more frames than before, so there is room.
            debug_assert!(made);
            self.picks.push(TxEntry {
                frame: self.picks.len() as u8,
                tag: pick.tag,
            });
        }
    }

    fn make_joined(&mut self, burst: &Burst, run: Run, picks: &[TxEntry]) -> bool {
        self.members.clear();
        let number = self.run_of[run.first];
        for (pick, _) in picks
            .iter()
            .zip(&self.run_of)
            .filter(|(_, of)| **of == number)
        {
            self.members.push((pick.frame, run.segment.header_len()));
        }
        let mut head = self.heads[run.first];
        run.segment
            .write_joined(&mut head, run.payload_len, run.push);
        let offload = Offload {
            needs_csum: true,
            finish: false,
            gso_type: if run.segment.ip_version() == 4 {
                GSO_TCPV4
            } else {
                GSO_TCPV6
            },
            hdr_len: run.segment.header_len() as u16,
            gso_size: run.segment.payload_len as u16,
            csum_start: run.segment.checksum_start() as u16,
            csum_offset: TCP_CHECKSUM,
            any_size: false,
        };
        let header = head.get(..run.segment.header_len()).unwrap_or(&[]);
        self.parts
            .push_joined(header, burst, &self.members, offload)
    }
}

/// Returns whether a segment's checksum is right, or was left open by a software device as the sender, which vouches for
/// the data.
fn is_whole(burst: &Burst, frame: &Frame, segment: &TcpSegment, head: &[u8; JOIN_HEADERS]) -> bool {
    frame.offload.needs_csum || {
        let pseudo = segment.pseudo_header(head, segment.payload_len);
        burst.folded_sum(frame, segment.checksum_start(), pseudo) == 0xffff
    }
}
