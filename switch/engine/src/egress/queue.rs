//! Egress queue: delivery of copies to one queue of one port.

use crosspoint_frame::{Burst, Frame, HeaderOp, TxEntry, tsc};
use crosspoint_packet::DropReason;
use crosspoint_packet::segment::{GSO_TCPV4, GSO_TCPV6};
use crosspoint_vring::{GuestRx, Outcome, RingFault, RxScratch};
use crosspoint_xsk::{NicOutcome, XskTx};

use crate::egress::deliver::TxResult;
use crate::egress::direct::Direct;
use crate::egress::gro::Takes;
use crate::egress::tx::NicTx;
use crate::egress::tx::Touched;
use crate::egress::uplink::NicUse;
use crate::observe::counters::QueueCounters;
use crate::observe::tap::Taps;
use crate::shares::Account;
use crate::shares::Shares;
use crate::snapshot::Egress;
use crate::snapshot::PortSnapshot;

/// Egress queue of one port, for one burst.
pub(crate) struct EgressQueue<'a> {
    pub(crate) worker: usize,
    pub(crate) port: &'a PortSnapshot,
    pub(crate) number: u16,
    pub(crate) queue: u16,
    pub(crate) to: &'a QueueCounters,
    pub(crate) scratch: &'a mut RxScratch,
    pub(crate) nics: &'a mut [Option<Box<NicTx>>],
    pub(crate) touched: &'a mut Vec<Touched>,
    pub(crate) faults: &'a mut Vec<(u16, RingFault)>,
    pub(crate) direct: &'a mut Option<Box<Direct>>,
    pub(crate) nic_use: &'a mut NicUse,
    pub(crate) shares: &'a mut Shares,
    /// The port that the burst came from.
    pub(crate) ingress: u16,
    pub(crate) taps: Taps<'a>,
    /// With taps: whether the guest's ring was full for a copy of this burst.
    pub(crate) is_full: bool,
}

impl EgressQueue<'_> {
    /// Returns whether a frame can be sent as it is; if the port is down, it need not be cut either. A large frame with
    /// no more payload than one segment is never sent as a large frame: it is made into one segment.
    pub(crate) fn takes(&self, burst: &Burst, frame: &Frame, tag: HeaderOp) -> bool {
        let gso_type = frame.offload.gso_type;
        if gso_type != 0 && is_one_segment(frame) {
            return false;
        }
        gso_type == 0
            || match &self.port.egress {
                Egress::Guest(queues) => queues
                    .get(usize::from(self.queue))
                    .is_none_or(|guest| guest.takes(gso_type)),
                Egress::Nic => self
                    .own_nic()
                    .is_some_and(|nic| nic.takes(burst, frame, tag)),
                Egress::Down | Egress::Quarantined | Egress::Disabled => true,
            }
    }

    /// Returns the longest frame that can be sent, without tags, if there is a known limit.
    pub(crate) fn frame_len_max(&self) -> Option<u32> {
        match (
            &self.port.egress,
            self.nics.get(usize::from(self.number))?.as_deref()?,
        ) {
            (Egress::Nic, NicTx::Own(nic)) => Some(nic.socket().frame_len_max()),
            (Egress::Nic, NicTx::Remote(way, _)) => Some(way.socket().frame_len_max()),
            _ => None,
        }
    }

    /// Returns the worker's own NIC queue, if copies go there.
    fn own_nic(&self) -> Option<&XskTx> {
        let leads = |direct: &Direct| direct.leads_to(self.number);
        let nic = self.nics.get(usize::from(self.number))?;
        match nic.as_deref()? {
            NicTx::Own(nic) if !self.direct.as_deref().is_some_and(leads) => Some(nic),
            _ => None,
        }
    }

    /// Returns which large TCP frames are taken.
    pub(crate) fn takes_large(&self) -> Takes {
        if let Egress::Nic = &self.port.egress {
            let whole = self.own_nic().is_some_and(XskTx::sends_large);
            return Takes {
                v4: whole,
                v6: whole,
            };
        }
        let guest = match &self.port.egress {
            Egress::Guest(queues) => queues.get(usize::from(self.queue)),
            _ => None,
        };
        let takes = |gso_type| guest.is_some_and(|guest| guest.takes(gso_type));
        Takes {
            v4: takes(GSO_TCPV4),
            v6: takes(GSO_TCPV6),
        }
    }

    /// Returns how many copies have found the guest's ring full.
    pub(crate) fn full_copies(&self) -> u64 {
        self.to.drops[DropReason::GuestRingFull as usize].get()
    }

    /// Counts copies that were not made because the guest's ring is full.
    pub(crate) fn drop_as_full(&mut self, copies: u32, tally: &mut TxResult) {
        self.to.drop(DropReason::GuestRingFull, copies);
        tally.dropped += u64::from(copies);
    }

    /// Sends copies, and counts them.
    #[inline(always)]
    pub(crate) fn send(&mut self, burst: &Burst, picks: &[TxEntry], tally: &mut TxResult) {
        match self.taps.taps {
            [] => self.send_all(burst, picks, tally),
            _ => self.send_tapped(burst, picks, tally),
        }
    }

    /// Sends the copies that taps consider one by one, so that the result of each is known, and the rest together.
    #[cold]
    #[inline(never)]
    fn send_tapped(&mut self, burst: &Burst, picks: &[TxEntry], tally: &mut TxResult) {
        let (worker, id, to, taps) = (self.worker, (self.number, self.queue), self.to, self.taps);
        let allowed = taps.allow(worker, id, picks.len());
        let (seen, unseen) = picks.split_at(allowed.most());
        for (number, pick) in seen.iter().enumerate() {
            let held = taps.hold(worker, (burst, pick), (&allowed, number), to);
            let before = tally.delivered;
            self.send_next(burst, std::slice::from_ref(pick), tally);
            let delivered = tally.delivered > before;
            taps.release(worker, id, (held, pick, delivered), to);
        }
        self.send_next(burst, unseen, tally);
    }

    /// Sends more copies of a burst. Once a guest's ring was full for one copy, the later ones are dropped too, as if all
    /// had been sent together: a short frame does not overtake a long one.
    fn send_next(&mut self, burst: &Burst, picks: &[TxEntry], tally: &mut TxResult) {
        if self.is_full {
            self.drop_as_full(picks.len() as u32, tally);
            return;
        }
        let before = self.full_copies();
        self.send_all(burst, picks, tally);
        self.is_full = self.full_copies() > before;
    }

    #[inline(always)]
    fn send_all(&mut self, burst: &Burst, picks: &[TxEntry], tally: &mut TxResult) {
        let (all, to) = (picks.len() as u32, self.to);
        let delivered = match &self.port.egress {
            Egress::Guest(queues) => match queues.get(usize::from(self.queue)) {
                Some(guest) => {
                    let outcome = self.deliver_guest(guest, burst, picks);
                    tally.work += outcome.work;
                    if outcome.excess > 0 {
                        self.charge(outcome.excess);
                        tally.excess += outcome.excess;
                    }
                    count_guest(&outcome, to)
                }
                None => {
                    to.drop(DropReason::PortDown, all);
                    0
                }
            },
            Egress::Nic => {
                self.nic_use.is_used = true;
                let outcome = match self.direct.as_deref() {
                    Some(direct) if direct.leads_to(self.number) => {
                        self.deliver_direct(burst, picks)
                    }
                    _ => self.deliver_nic(burst, picks),
                };
                to.drop(
                    DropReason::PortDown,
                    all - outcome.frames - outcome.dropped(),
                );
                self.nic_use.add(self.number, outcome.frames, outcome.bytes);
                tally.refused += outcome.refused;
                count_delivered(outcome.frames, outcome.bytes, to);
                outcome.frames
            }
            Egress::Down => {
                to.drop(DropReason::PortDown, all);
                0
            }
            Egress::Quarantined => {
                to.drop(DropReason::GuestQuarantined, all);
                0
            }
            Egress::Disabled => {
                to.drop(DropReason::PortDisabled, all);
                0
            }
        };
        tally.delivered += u64::from(delivered);
        tally.dropped += u64::from(all - delivered);
    }

    /// Charges the port with the cost of its receive buffers.
    #[cold]
    fn charge(&mut self, work: u32) {
        let account = Account::To(self.number);
        let cycles = u64::from(work);
        self.shares.charge(account, self.port.weight, cycles, tsc());
    }

    #[inline(always)]
    fn deliver_nic(&mut self, burst: &Burst, picks: &[TxEntry]) -> NicOutcome {
        let nic = self.nics.get_mut(usize::from(self.number));
        match nic.and_then(Option::as_mut) {
            Some(nic) => {
                let outcome = deliver_nic(nic, burst, picks, self.to);
                // For handed-off frames another worker rings the doorbell.
                if let NicTx::Own(_) = &**nic {
                    self.nic_use.copies += outcome.frames;
                }
                outcome
            }
            None => NicOutcome::default(),
        }
    }

    /// Sends through the guest's own queue; frames that it cannot take go through the shared queue.
    #[inline(never)]
    fn deliver_direct(&mut self, burst: &Burst, picks: &[TxEntry]) -> NicOutcome {
        let Some(mut direct) = self.direct.take() else {
            return NicOutcome::default();
        };
        let (sent, rest) = direct.deliver(burst, picks);
        self.to.drop(DropReason::NicRingFull, sent.full);
        self.to.drop(DropReason::MtuExceeded, sent.long);
        let mut outcome = match rest {
            [] => NicOutcome::default(),
            rest => self.deliver_nic(burst, rest),
        };
        *self.direct = Some(direct);
        outcome.add(sent);
        outcome
    }

    #[inline(always)]
    fn deliver_guest(&mut self, guest: &GuestRx, burst: &Burst, picks: &[TxEntry]) -> Outcome {
        let outcome = guest.deliver(self.worker, burst, picks, self.scratch);
        if outcome.touched {
            self.touched.push(Touched {
                port: self.number,
                queue: self.queue,
                by: self.ingress,
            });
        }
        // If the list is full, the control thread has enough faults to handle already.
        if outcome.faulty > 0
            && let Some(fault) = self.scratch.take_fault()
            && self.faults.len() < self.faults.capacity()
        {
            self.faults.push((self.number, fault));
        }
        outcome
    }
}

/// Returns whether a large frame with known header length has no more payload than one segment.
pub(crate) fn is_one_segment(frame: &Frame) -> bool {
    let offload = &frame.offload;
    frame.len <= u32::from(offload.hdr_len) + u32::from(offload.gso_size)
}

#[inline(always)]
fn count_delivered(frames: u32, bytes: u64, to: &QueueCounters) {
    to.tx_frames.add(u64::from(frames));
    to.tx_bytes.add(bytes);
    if frames > 0 {
        to.tx_bursts.record(frames);
    }
}

#[inline(always)]
fn count_guest(outcome: &Outcome, to: &QueueCounters) -> u32 {
    count_delivered(outcome.frames, outcome.bytes, to);
    to.drop(DropReason::GuestRingFull, outcome.full);
    to.drop(DropReason::GuestBufferSmall, outcome.small);
    to.drop(DropReason::GuestRingContended, outcome.contended);
    to.drop(DropReason::GuestBuffersCostly, outcome.costly);
    to.drop(DropReason::GuestQuarantined, outcome.faulty);
    outcome.frames
}

#[inline(always)]
fn deliver_nic(
    nic: &mut NicTx,
    burst: &Burst,
    picks: &[TxEntry],
    to: &QueueCounters,
) -> NicOutcome {
    let (outcome, full) = match nic {
        NicTx::Own(nic) => (nic.deliver(burst, picks), DropReason::NicRingFull),
        NicTx::Remote(way, _) => (way.deliver(burst, picks), DropReason::HandoverFull),
    };
    to.drop(full, outcome.full);
    to.drop(DropReason::NicFrameSmall, outcome.small);
    to.drop(DropReason::MtuExceeded, outcome.long);
    outcome
}
