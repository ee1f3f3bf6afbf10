//! Probes for loops: short broadcasts that the switch sends out of a port, and that no port of the same switch should
//! ever see again. One that comes in again has gone round a loop.
//!
//! A probe is a broadcast, since any bridge forwards that. Its Ethernet type is the one for local experiments (IEEE
//! 802-2014, 9.2.4). It has the number that this process drew at its start, the port and the VLAN. Probes are looked for
//! among flooded frames only, and only while a port sends some: a switch without them does not look at all.

use crossbeam::queue::ArrayQueue;
use crosspoint_frame::{Burst, Frame, Verdict};
use crosspoint_packet::{DropReason, ETHERNET_LEN, Mac, TAG_LEN};

/// The Ethernet type of a probe: "local experimental Ethertype 1".
pub const PROBE_TYPE: [u8; 2] = [0x88, 0xb5];
/// Probes that came back and that nobody has taken note of: those beyond it are lost, and the next come a second later.
pub const RETURNED_MAX: usize = 64;
/// What people read who see one.
const TEXT: &[u8] = b"crosspoint loop probe ";
/// A probe's length: the shortest Ethernet frame, without its checksum.
const LEN: usize = 60;
/// Where, behind the Ethernet type: the process's number, the port, the VLAN, the text.
const ID: std::ops::Range<usize> = 0..8;
const PORT: std::ops::Range<usize> = 8..10;
const VLAN: std::ops::Range<usize> = 10..12;
const FIELDS_LEN: usize = VLAN.end;

/// A probe that came back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Returned {
    /// The port that it left through, and its VLAN there; 0 for none.
    pub from: (u16, u16),
    /// The port that it came in on, and its VLAN there.
    pub at: (u16, u16),
}

/// The probes of this process.
pub struct Probes {
    id: u64,
    returned: ArrayQueue<Returned>,
}

impl Probes {
    /// Those of a process that drew the number `id`.
    pub fn new(id: u64) -> Probes {
        Probes {
            id,
            returned: ArrayQueue::new(RETURNED_MAX),
        }
    }

    /// The probe for port `port`, which people call `name`, in `vlan`. Its source differs from port to port: switches in
    /// between would see one address move.
    pub fn frame(&self, port: u16, vlan: u16, name: &str) -> [u8; LEN] {
        let (id, number) = (self.id.to_be_bytes(), port.to_be_bytes());
        let [a, b, c, ..] = id;
        let [high, low] = number;
        // Locally administered.
        let source = [0x02, a, b, c, high, low];
        let fields: [&[u8]; 8] = [
            &Mac::BROADCAST.bytes(),
            &source,
            &PROBE_TYPE,
            &id,
            &number,
            &vlan.to_be_bytes(),
            TEXT,
            name.as_bytes(),
        ];
        let mut frame = [0; LEN];
        let bytes = fields.iter().flat_map(|field| field.iter());
        frame
            .iter_mut()
            .zip(bytes)
            .for_each(|(to, from)| *to = *from);
        frame
    }

    /// The next probe that came back.
    pub fn next_returned(&self) -> Option<Returned> {
        self.returned.pop()
    }

    /// Port and VLAN that a frame left through, if it is a probe of this process.
    fn origin(&self, frame: &Frame) -> Option<(u16, u16)> {
        if frame.dst != Mac::BROADCAST {
            return None;
        }
        let tag = TAG_LEN * usize::from(frame.tagged);
        let kind = frame.headers().get(ETHERNET_LEN + tag - 2..)?;
        let fields = kind.strip_prefix(&PROBE_TYPE)?.get(..FIELDS_LEN)?;
        let number = |range: std::ops::Range<usize>| {
            Some(u16::from_be_bytes(fields.get(range)?.try_into().ok()?))
        };
        let is_own = fields.get(ID)? == self.id.to_be_bytes();
        is_own.then_some((number(PORT)?, number(VLAN)?))
    }

    /// Takes the probes out of the frames that `is_candidate` says yes to, and notes that they came in on port `at`.
    fn take(&self, burst: &mut Burst, at: u16, is_candidate: impl Fn(&Frame) -> bool) {
        for frame in burst.frames_mut() {
            if !is_candidate(frame) {
                continue;
            }
            if let Some(from) = self.origin(frame) {
                let _ = self.returned.push(Returned {
                    from,
                    at: (at, frame.vlan),
                });
                frame.verdict = Verdict::drop(DropReason::LoopProbe);
            }
        }
    }

    /// Takes the probes out of a burst's flooded frames.
    #[cold]
    #[inline(never)]
    pub(crate) fn take_flooded(&self, burst: &mut Burst, at: u16) {
        self.take(burst, at, |frame| frame.verdict == Verdict::FLOOD);
    }

    /// Drops all frames of a port that is blocked, and takes the probes out of them. One that is dropped already keeps its
    /// reason.
    #[cold]
    #[inline(never)]
    pub(crate) fn block(&self, burst: &mut Burst, at: u16) {
        self.take(burst, at, |frame| frame.verdict == Verdict::PENDING);
        for frame in burst.frames_mut() {
            if frame.verdict == Verdict::PENDING {
                frame.drop_for(DropReason::LoopBlocked);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stages::parse;

    /// These frames, parsed, in VLAN 7.
    fn burst(frames: &[Vec<u8>], verdict: Verdict) -> Burst {
        let mut burst = Burst::new();
        for bytes in frames {
            assert!(burst.push_short(bytes));
        }
        parse(&mut burst);
        for frame in burst.frames_mut() {
            (frame.vlan, frame.verdict) = (7, verdict);
        }
        burst
    }

    fn tagged(bytes: &[u8]) -> Vec<u8> {
        [&bytes[..12], &[0x81, 0, 0, 7], &bytes[12..]].concat()
    }

    #[test]
    fn own_probes_are_found_with_and_without_a_tag_and_no_others() {
        let (own, other) = (Probes::new(1), Probes::new(2));
        let probe = own.frame(3, 7, "a-name-that-is-too-long-for-the-frame");
        let mut of_a_type = probe.to_vec();
        of_a_type[12..14].copy_from_slice(&[0x88, 0xb6]);
        let frames = [
            probe.to_vec(),
            tagged(&probe),
            other.frame(3, 7, "x").to_vec(),
            probe[..25].to_vec(),
            of_a_type,
        ];
        let mut burst = burst(&frames, Verdict::FLOOD);
        own.take_flooded(&mut burst, 5);
        let probe = Verdict::drop(DropReason::LoopProbe);
        let verdicts: Vec<bool> = burst.frames().iter().map(|f| f.verdict == probe).collect();
        assert_eq!(verdicts, [true, true, false, false, false]);
        let returned: Vec<Returned> = std::iter::from_fn(|| own.next_returned()).collect();
        let one = Returned {
            from: (3, 7),
            at: (5, 7),
        };
        assert_eq!(returned, [one, one]);
    }

    #[test]
    fn a_blocked_port_takes_probes_and_nothing_else_and_drops_keep_their_reason() {
        let own = Probes::new(1);
        let runt = vec![0; 10];
        let frames = [own.frame(3, 7, "x").to_vec(), vec![2; 60], runt];
        let mut burst = burst(&frames, Verdict::PENDING);
        burst.frames_mut()[2].verdict = Verdict::drop(DropReason::Runt);
        own.block(&mut burst, 5);
        let verdicts: Vec<Verdict> = burst.frames().iter().map(|f| f.verdict).collect();
        let reasons = [
            DropReason::LoopProbe,
            DropReason::LoopBlocked,
            DropReason::Runt,
        ];
        assert_eq!(verdicts, reasons.map(Verdict::drop));
        assert!(own.next_returned().is_some() && own.next_returned().is_none());
    }
}
