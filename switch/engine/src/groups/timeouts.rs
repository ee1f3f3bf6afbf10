//! When connections time out, by their phase and protocol.

#[cfg(not(loom))]
use std::sync::atomic::{AtomicU32, Ordering};

use super::numbers::UDP;
use super::state::{Phase, TICK_MASK};
#[cfg(loom)]
use loom::sync::atomic::{AtomicU32, Ordering};

/// How long later fragments of a datagram may follow the first, seconds.
const FRAGMENTS_S: u32 = 2;
/// How long a connection that was closed is remembered, seconds: packets may be late.
const CLOSED_S: u32 = 10;
/// How long a connection stays that one side has closed, seconds: the kernel's value for FIN_WAIT.
const CLOSING_S: u32 = 120;
/// How long the packets of a connection are dropped that changed rules do not allow, after the last one: longer than TCP
/// waits before it sends a segment again (RFC 6298, 2.4).
const REVOKED_S: u32 = 180;
/// Above three quarters of the table, half-open connections time out after this many seconds.
const HALF_OPEN_FULL_S: u32 = 5;

/// When connections time out, seconds since their last packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// TCP, established.
    pub tcp_established_s: u32,
    /// TCP, half-open.
    pub tcp_half_open_s: u32,
    /// UDP of which only one side has sent.
    pub udp_s: u32,
    /// UDP of which both sides have sent.
    pub udp_stream_s: u32,
    /// Other protocols, and TCP whose beginning was not seen and that only one side has sent.
    pub other_s: u32,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            tcp_established_s: 24 * 3600,
            tcp_half_open_s: 30,
            udp_s: 30,
            udp_stream_s: 180,
            other_s: 60,
        }
    }
}

/// Timeouts that the control side may change.
#[derive(Default)]
pub(super) struct SharedTimeouts([AtomicU32; 5]);

impl SharedTimeouts {
    pub(super) fn set(&self, timeouts: Timeouts) {
        let all = [
            timeouts.tcp_established_s,
            timeouts.tcp_half_open_s,
            timeouts.udp_s,
            timeouts.udp_stream_s,
            timeouts.other_s,
        ];
        for (place, timeout) in self.0.iter().zip(all) {
            place.store(timeout.min(TICK_MASK / 2), Ordering::Relaxed);
        }
    }

    /// Seconds after the last packet. `is_full`: the table is nearly full.
    pub(super) fn of(&self, phase: Phase, protocol: u8, is_full: bool) -> u32 {
        let [established, half_open, udp, udp_stream, other] = self
            .0
            .each_ref()
            .map(|timeout| timeout.load(Ordering::Relaxed));
        let is_udp = protocol == UDP;
        match phase {
            Phase::SynSent | Phase::SynReceived if is_full => half_open.min(HALF_OPEN_FULL_S),
            Phase::SynSent | Phase::SynReceived => half_open,
            Phase::Established | Phase::Arrived => established,
            Phase::FinFromOriginator | Phase::FinFromOther => CLOSING_S.min(established),
            Phase::Closed => CLOSED_S,
            Phase::OneWay | Phase::Answered if is_udp => udp,
            Phase::TwoWay | Phase::ArrivedOther if is_udp => udp_stream,
            Phase::Adopted | Phase::OneWay | Phase::Answered => other,
            Phase::TwoWay | Phase::ArrivedOther => other,
            Phase::Revoked => REVOKED_S,
            Phase::Fragments => FRAGMENTS_S,
        }
    }
}
