//! Probes for loops: short broadcasts that the switch sends out of a port, and that no port of the same switch should
//! ever see again. One that comes in again has gone round a loop.
//!
//! A probe is a broadcast, since any bridge forwards that. Its Ethernet type is the one for local experiments (IEEE
//! 802-2014, 9.2.4). It says its port, its VLAN and when it was made, and has a hash of these with a key that only this
//! process has. So a station that sees probes can send these again, for a few seconds, but makes none for another port,
//! VLAN or time. Probes are looked for among flooded frames, while any port sends some, and among the frames that a port's guard
//! refuses: what is forwarded on its way costs no look.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;
use crosspoint_frame::{Burst, Frame, Verdict};
use crosspoint_packet::{DropReason, ETHERNET_LEN, Mac, TAG_LEN};

use crate::MAX_PORTS;

/// The Ethernet type of a probe: "local experimental Ethertype 1".
pub const PROBE_TYPE: [u8; 2] = [0x88, 0xb5];
/// Probes that came back and were not taken note of yet: those beyond it are lost, and the next come a second later.
pub const RETURNED_MAX: usize = 64;
/// What people read who see one.
const TEXT: &[u8] = b"crosspoint loop probe ";
/// A probe's length: the shortest Ethernet frame, without its checksum.
const LEN: usize = 60;
/// Behind the Ethernet type: the hash, then what it is of, then the text.
const HASH_LEN: usize = 8;
const ORIGIN_LEN: usize = 8;

/// What a probe says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Origin {
    port: u16,
    /// 0 for none.
    vlan: u16,
    second: u32,
}

impl Origin {
    fn bytes(self) -> [u8; ORIGIN_LEN] {
        let ([a, b], [c, d]) = (self.port.to_be_bytes(), self.vlan.to_be_bytes());
        let [e, f, g, h] = self.second.to_be_bytes();
        [a, b, c, d, e, f, g, h]
    }

    fn of_bytes([a, b, c, d, e, f, g, h]: [u8; ORIGIN_LEN]) -> Origin {
        Origin {
            port: u16::from_be_bytes([a, b]),
            vlan: u16::from_be_bytes([c, d]),
            second: u32::from_be_bytes([e, f, g, h]),
        }
    }
}

/// A probe that came back, in the VLAN that it left in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Returned {
    /// The port that it left through.
    pub from: u16,
    /// The port that it came in on.
    pub at: u16,
    /// The VLAN; 0 for none.
    pub vlan: u16,
    /// The second that it was made in.
    pub second: u32,
}

/// The probes of this process.
pub struct Probes {
    secret: RandomState,
    /// The second that probes are made in now.
    second: AtomicU32,
    returned: ArrayQueue<Returned>,
    /// By the port that probes came in on: bit `n` is set while one from port `n`, `n + 64` and so on waits in `returned`. So
    /// a sender that repeats a probe does not fill the list.
    noted: Box<[AtomicU64]>,
}

impl Default for Probes {
    fn default() -> Probes {
        Probes {
            secret: RandomState::new(),
            second: AtomicU32::new(0),
            returned: ArrayQueue::new(RETURNED_MAX),
            noted: (0..MAX_PORTS).map(|_| AtomicU64::new(0)).collect(),
        }
    }
}

impl Probes {
    /// Says which second it is, for the probes that are made from now on.
    pub fn set_second(&self, second: u32) {
        self.second.store(second, Ordering::Relaxed);
    }

    /// A port's address as the source of its probes: locally administered, another for each port, since switches in between
    /// would see one address move, and for each process.
    fn source(&self, port: u16) -> Mac {
        // The hash of no probe, so it says nothing of theirs.
        let [a, b, c, ..] = self.secret.hash_one(()).to_be_bytes();
        let [high, low] = port.to_be_bytes();
        Mac::new([0x02, a, b, c, high, low])
    }

    fn hash(&self, origin: Origin) -> [u8; HASH_LEN] {
        let Origin { port, vlan, second } = origin;
        self.secret.hash_one((port, vlan, second)).to_be_bytes()
    }

    /// The probe for port `port`, which people call `name`, in `vlan`.
    pub fn frame(&self, port: u16, vlan: u16, name: &str) -> [u8; LEN] {
        let second = self.second.load(Ordering::Relaxed);
        let origin = Origin { port, vlan, second };
        let fields: [&[u8]; 7] = [
            &Mac::BROADCAST.bytes(),
            &self.source(port).bytes(),
            &PROBE_TYPE,
            &self.hash(origin),
            &origin.bytes(),
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

    /// The probes that came back since the last call: at most [`RETURNED_MAX`].
    pub fn returned(&self) -> Vec<Returned> {
        // First: one that comes meanwhile is noted, if not now then the next time.
        for noted in &self.noted {
            noted.store(0, Ordering::Relaxed);
        }
        let next = std::iter::from_fn(|| self.returned.pop());
        next.take(RETURNED_MAX).collect()
    }

    /// What a probe of this process says of itself; `None` for other frames.
    fn origin(&self, frame: &Frame) -> Option<Origin> {
        if frame.dst != Mac::BROADCAST {
            return None;
        }
        let tag = TAG_LEN * usize::from(frame.tagged);
        let kind = frame.headers().get(ETHERNET_LEN + tag - 2..)?;
        let fields = kind.strip_prefix(&PROBE_TYPE)?;
        let (hash, fields) = fields.split_first_chunk::<HASH_LEN>()?;
        let origin = Origin::of_bytes(*fields.first_chunk()?);
        let is_own = frame.src == self.source(origin.port) && *hash == self.hash(origin);
        is_own.then_some(origin)
    }

    /// Whether this is a probe of this process, however old.
    #[cold]
    #[inline(never)]
    pub(crate) fn is_own(&self, frame: &Frame) -> bool {
        self.origin(frame).is_some()
    }

    /// Drops a frame that came in on port `at`, if it is a probe of this process, and notes that it came back. Returns
    /// whether it is one.
    fn take(&self, frame: &mut Frame, at: u16) -> bool {
        let Some(Origin { port, vlan, second }) = self.origin(frame) else {
            return false;
        };
        frame.verdict = Verdict::drop(DropReason::LoopProbe);
        // In another VLAN, frames that went round would not leave through the first port again.
        if vlan == frame.vlan
            && let Some(noted) = self.noted.get(usize::from(at))
        {
            let bit = 1 << (port % 64);
            if noted.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
                let _ = self.returned.push(Returned {
                    from: port,
                    at,
                    vlan,
                    second,
                });
            }
        }
        true
    }

    /// Takes the probes out of a burst's flooded frames.
    #[cold]
    #[inline(never)]
    pub(crate) fn take_flooded(&self, burst: &mut Burst, at: u16) {
        for frame in burst.frames_mut() {
            if frame.verdict == Verdict::FLOOD {
                self.take(frame, at);
            }
        }
    }

    /// Drops a frame for this reason, or as a probe if it is one. One that is dropped already keeps its reason.
    #[cold]
    #[inline(never)]
    pub(crate) fn refuse(&self, frame: &mut Frame, at: u16, reason: DropReason) {
        if frame.verdict == Verdict::PENDING && !self.take(frame, at) {
            frame.drop_for(reason);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stages::parse;

    const PROBE: Verdict = Verdict::drop(DropReason::LoopProbe);

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

    /// Which of these frames are taken out as probes, on port 5 in VLAN 7.
    fn taken(probes: &Probes, frames: &[Vec<u8>]) -> Vec<bool> {
        let mut burst = burst(frames, Verdict::FLOOD);
        probes.take_flooded(&mut burst, 5);
        burst.frames().iter().map(|f| f.verdict == PROBE).collect()
    }

    #[test]
    fn own_probes_are_found_with_and_without_a_tag_and_no_others() {
        let (own, other) = (Probes::default(), Probes::default());
        own.set_second(9);
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
        assert_eq!(taken(&own, &frames), [true, true, false, false, false]);
        let returned = Returned {
            from: 3,
            at: 5,
            vlan: 7,
            second: 9,
        };
        // The same a second time is noted only when the first was looked at.
        assert_eq!(own.returned(), [returned]);
        assert_eq!(taken(&own, &frames[..1]), [true]);
        assert_eq!(own.returned(), [returned]);
        assert_eq!(own.returned(), []);
    }

    /// Whatever bit a station turns of what a probe says, its source, or its hash: it is none any more.
    #[test]
    fn a_probe_is_forged_for_no_other_port_vlan_or_time() {
        let own = Probes::default();
        own.set_second(1000);
        let probe = own.frame(3, 7, "x").to_vec();
        let bits = (6..30).flat_map(|at| (0..8).map(move |bit| (at, bit)));
        // A source that is a group's is none.
        for (at, bit) in bits.filter(|at| *at != (6, 0)) {
            let mut forged = probe.clone();
            forged[at] ^= 1 << bit;
            assert_eq!(taken(&own, &[forged]), [false], "bit {bit} of byte {at}");
        }
        // With another port's own source, too.
        let mut forged = own.frame(4, 7, "x").to_vec();
        forged[14..22].copy_from_slice(&probe[14..22]);
        assert_eq!(taken(&own, &[forged]), [false]);
        assert_eq!(own.returned(), []);
    }

    #[test]
    fn a_probe_of_another_vlan_is_taken_and_not_noted() {
        let own = Probes::default();
        let frames = [own.frame(3, 8, "x").to_vec()];
        assert_eq!(taken(&own, &frames), [true]);
        assert_eq!(own.returned(), []);
    }

    #[test]
    fn a_port_that_repeats_a_probe_does_not_keep_others_from_being_noted() {
        let own = Probes::default();
        let repeated = vec![own.frame(5, 7, "x").to_vec(); 64];
        for _ in 0..2 * RETURNED_MAX {
            taken(&own, &repeated);
        }
        taken(&own, &[own.frame(3, 7, "y").to_vec()]);
        let from: Vec<u16> = own.returned().iter().map(|one| one.from).collect();
        assert_eq!(from, [5, 3]);
    }

    #[test]
    fn a_refused_frame_is_dropped_as_a_probe_if_it_is_one_and_drops_keep_their_reason() {
        let own = Probes::default();
        let frames = [own.frame(3, 7, "x").to_vec(), vec![2; 60], vec![0; 10]];
        let mut burst = burst(&frames, Verdict::PENDING);
        burst.frames_mut()[2].verdict = Verdict::drop(DropReason::Runt);
        for frame in burst.frames_mut() {
            own.refuse(frame, 5, DropReason::LoopBlocked);
        }
        let verdicts: Vec<Verdict> = burst.frames().iter().map(|f| f.verdict).collect();
        let reasons = [
            DropReason::LoopProbe,
            DropReason::LoopBlocked,
            DropReason::Runt,
        ];
        assert_eq!(verdicts, reasons.map(Verdict::drop));
        assert_eq!(own.returned().len(), 1);
    }
}
