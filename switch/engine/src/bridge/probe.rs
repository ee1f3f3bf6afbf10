//! Loop probes: short broadcasts that the switch sends out of a port. No port of the same switch should receive them; one
//! that comes back has passed through a loop.
//!
//! A probe is a broadcast, since any bridge forwards that. Its Ethernet type is the one for local experiments (IEEE
//! 802-2014, 9.2.4). It contains its port, its VLAN and the time when it was made, and a hash of these with a key that
//! only this process has. So a station that receives probes can repeat them, for a few seconds, but cannot forge one for
//! another port, VLAN or time. While any port sends probes, they are searched for among flooded frames and among the
//! frames that a port's guard refuses; other forwarded frames are not checked.

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crossbeam::queue::ArrayQueue;
use crosspoint_frame::{Burst, Frame, Verdict};
use crosspoint_packet::{DropReason, ETHERNET_LEN, Mac, TAG_LEN};

use crate::MAX_PORTS;

/// The Ethernet type of a probe: "local experimental Ethertype 1".
pub const PROBE_TYPE: [u8; 2] = [0x88, 0xb5];
/// Most returned probes that wait for the control thread. Further ones are lost; the next are sent a second later.
pub const RETURNED_MAX: usize = 64;
/// Readable text, for a person who captures a probe.
const TEXT: &[u8] = b"crosspoint loop probe ";
/// A probe's length: the shortest Ethernet frame, without its checksum.
const LEN: usize = 60;
/// Layout after the Ethernet type: the hash, the hashed fields, the text.
const HASH_LEN: usize = 8;
const ORIGIN_LEN: usize = 8;

/// The hashed fields of a probe.
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

/// A probe that came back in the VLAN in which it was sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Returned {
    /// The port that it was sent through.
    pub from: u16,
    /// The port that received it.
    pub at: u16,
    /// The VLAN; 0 for none.
    pub vlan: u16,
    /// The number of the bridge that it came back in.
    pub bridge: u8,
    /// The second in which it was made.
    pub second: u32,
}

/// Makes and recognizes the probes of this process.
pub struct Probes {
    secret: RandomState,
    /// The current second, for new probes.
    second: AtomicU32,
    returned: ArrayQueue<Returned>,
    /// By receiving port: bit `n` is set while a probe from port `n`, `n + 64` and so on waits in `returned`. So a sender
    /// that repeats a probe does not fill the list.
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
    /// Sets the current second, for new probes.
    pub fn set_second(&self, second: u32) {
        self.second.store(second, Ordering::Relaxed);
    }

    /// Returns the source address of what the switch itself sends out of a port, probes and queries: locally administered, and different for each process and each port,
    /// since switches on the path would otherwise see one address move.
    pub fn source(&self, port: u16) -> Mac {
        // No probe has this hash, so it reveals nothing about theirs.
        let [a, b, c, ..] = self.secret.hash_one(()).to_be_bytes();
        let [high, low] = port.to_be_bytes();
        Mac::new([0x02, a, b, c, high, low])
    }

    fn hash(&self, origin: Origin) -> [u8; HASH_LEN] {
        let Origin { port, vlan, second } = origin;
        self.secret.hash_one((port, vlan, second)).to_be_bytes()
    }

    /// Makes the probe for port `port`, named `name`, in `vlan`.
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

    /// Returns the probes that came back since the last call: at most [`RETURNED_MAX`].
    pub fn returned(&self) -> Vec<Returned> {
        // First, so that a probe that comes meanwhile is returned now or by the next call.
        for noted in &self.noted {
            noted.store(0, Ordering::Relaxed);
        }
        let next = std::iter::from_fn(|| self.returned.pop());
        next.take(RETURNED_MAX).collect()
    }

    /// Returns the fields of a probe of this process; `None` for other frames.
    fn origin(&self, frame: &Frame) -> Option<Origin> {
        if frame.dst != Mac::BROADCAST {
            return None;
        }
        let tag = TAG_LEN * (usize::from(frame.tagged) + usize::from(frame.has_bridge_tag));
        let kind = frame.headers().get(ETHERNET_LEN + tag - 2..)?;
        let fields = kind.strip_prefix(&PROBE_TYPE)?;
        let (hash, fields) = fields.split_first_chunk::<HASH_LEN>()?;
        let origin = Origin::of_bytes(*fields.first_chunk()?);
        let is_own = frame.src == self.source(origin.port) && *hash == self.hash(origin);
        is_own.then_some(origin)
    }

    /// Returns whether this is a probe of this process, however old.
    #[cold]
    #[inline(never)]
    pub(crate) fn is_own(&self, frame: &Frame) -> bool {
        self.origin(frame).is_some()
    }

    /// If a frame received on port `at` is a probe of this process, drops it and records its return. Returns whether it
    /// is one.
    fn take(&self, frame: &mut Frame, at: u16) -> bool {
        let Some(Origin { port, vlan, second }) = self.origin(frame) else {
            return false;
        };
        frame.verdict = Verdict::drop(DropReason::LoopProbe);
        // If the VLAN changed on the way, looping frames would not leave through the first port again.
        if vlan == frame.vlan
            && let Some(noted) = self.noted.get(usize::from(at))
        {
            let bit = 1 << (port % 64);
            if noted.fetch_or(bit, Ordering::Relaxed) & bit == 0 {
                let _ = self.returned.push(Returned {
                    from: port,
                    at,
                    vlan,
                    bridge: frame.bridge,
                    second,
                });
            }
        }
        true
    }

    /// Removes the probes from a burst's flooded frames.
    #[cold]
    #[inline(never)]
    pub(crate) fn take_flooded(&self, burst: &mut Burst, at: u16) {
        for frame in burst.frames_mut() {
            if frame.verdict == Verdict::FLOOD {
                self.take(frame, at);
            }
        }
    }

    /// Drops a frame for `reason`, or as a probe if it is one. A frame that is already dropped keeps its reason.
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

    /// Returns a burst of these frames, parsed, in VLAN 7.
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

    /// Returns which of these frames are recognized as probes, on port 5 in VLAN 7.
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
            bridge: 0,
            second: 9,
        };
        // A repeated probe is recorded only after the first was read.
        assert_eq!(own.returned(), [returned]);
        assert_eq!(taken(&own, &frames[..1]), [true]);
        assert_eq!(own.returned(), [returned]);
        assert_eq!(own.returned(), []);
    }

    /// A probe with any bit changed in its fields, its source or its hash is not recognized.
    #[test]
    fn a_probe_is_forged_for_no_other_port_vlan_or_time() {
        let own = Probes::default();
        own.set_second(1000);
        let probe = own.frame(3, 7, "x").to_vec();
        let bits = (6..30).flat_map(|at| (0..8).map(move |bit| (at, bit)));
        // Not the group bit: a group address is no valid source.
        for (at, bit) in bits.filter(|at| *at != (6, 0)) {
            let mut forged = probe.clone();
            forged[at] ^= 1 << bit;
            assert_eq!(taken(&own, &[forged]), [false], "bit {bit} of byte {at}");
        }
        // The same with another port's source.
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
