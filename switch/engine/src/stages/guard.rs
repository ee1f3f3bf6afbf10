//! Source guards: which source addresses the frames of a port may have, and which port an address is bound to.
//!
//! A port with a [`SourceGuard`] may send only from the addresses in it. An address in a port's guard is also bound to
//! that port, in every VLAN that the port carries: no other port may use it there.

use std::sync::Arc;

use crosspoint_frame::{Burst, Frame};
use crosspoint_packet::{DropReason, IpNet, Mac};

use crate::bridge::probe::Probes;
use crate::bridge::vlan::VlanPolicy;
use crate::snapshot::PortSnapshot;
use crate::stages::port_security::{BoundIps, IpGuard};

/// The source addresses that frames of one port may have; none while the port is blocked.
#[derive(Clone)]
pub struct SourceGuard {
    /// Ascending.
    addresses: Box<[Mac]>,
    /// The IP addresses that they may have; `None` for any.
    ips: Option<IpGuard>,
    /// Why no frame passes, if none does.
    blocked: Option<DropReason>,
    /// The port's number, and the probes to recognize among refused frames.
    probes: Option<(u16, Arc<Probes>)>,
}

impl SourceGuard {
    /// Creates a guard that allows these addresses.
    pub fn new(mut addresses: Vec<Mac>) -> SourceGuard {
        addresses.sort_unstable();
        SourceGuard {
            addresses: addresses.into(),
            ips: None,
            blocked: None,
            probes: None,
        }
    }

    /// Returns the same guard, which also allows these IP addresses only. An empty list allows any.
    pub fn with_ips(self, prefixes: &[IpNet]) -> SourceGuard {
        let ips = (!prefixes.is_empty()).then(|| IpGuard::new(prefixes, &self.addresses));
        SourceGuard { ips, ..self }
    }

    /// Returns the same guard for port `port`, which also recognizes loop probes, from any address.
    pub fn looking(self, port: u16, probes: Arc<Probes>) -> SourceGuard {
        SourceGuard {
            probes: Some((port, probes)),
            ..self
        }
    }

    /// Returns the same guard for a blocked port: no frame passes, for this reason. The addresses stay bound to the port.
    pub fn blocked(self, reason: DropReason) -> SourceGuard {
        SourceGuard {
            blocked: Some(reason),
            ..self
        }
    }

    /// Returns whether the port is blocked.
    pub fn is_blocked(&self) -> bool {
        self.blocked.is_some()
    }

    /// Returns whether frames may come from `source`.
    #[inline(always)]
    pub fn allows(&self, source: Mac) -> bool {
        !self.is_blocked() && self.has(source)
    }

    #[inline(always)]
    fn has(&self, source: Mac) -> bool {
        self.addresses.binary_search(&source).is_ok()
    }

    /// Returns the addresses, ascending.
    pub fn addresses(&self) -> &[Mac] {
        &self.addresses
    }

    /// Drops the frames from other addresses. A frame that is already dropped keeps its reason.
    pub(crate) fn enforce(&self, burst: &mut Burst) {
        if let Some(reason) = self.blocked {
            for frame in burst.frames_mut() {
                self.refuse(frame, reason);
            }
            return;
        }
        // Most frames have the source of the frame before.
        let mut before = None;
        for frame in burst.frames_mut() {
            if before != Some(frame.src) {
                if !self.has(frame.src) {
                    self.refuse(frame, DropReason::SourceNotAllowed);
                    continue;
                }
                before = Some(frame.src);
            }
        }
        if let Some(ips) = &self.ips {
            ips.enforce(burst, |mac| self.has(mac));
        }
    }

    #[cold]
    fn refuse(&self, frame: &mut Frame, reason: DropReason) {
        match &self.probes {
            Some((port, probes)) => probes.refuse(frame, *port, reason),
            None => frame.drop_for(reason),
        }
    }
}

/// An address that the operator has put on a port.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StaticAddress {
    /// The address.
    pub mac: Mac,
    /// Its VLAN.
    pub vlan: u16,
    /// The port's number.
    pub port: u16,
}

/// The addresses of all guards of a bridge's ports and the ports that they are bound to, and the bridge's static addresses;
/// created with the snapshot.
pub struct Bindings {
    /// By address, ascending. One address may be bound to several ports, in different VLANs.
    bound: Box<[(Mac, u16)]>,
    /// By address and VLAN, ascending.
    statics: Arc<[StaticAddress]>,
    ips: BoundIps,
}

impl Bindings {
    /// Returns the bindings of these ports, by number, that are in bridge `bridge`.
    pub fn new(ports: &[Option<PortSnapshot>], bridge: u8) -> Bindings {
        let guards = || {
            let numbered = (0u16..).zip(ports);
            numbered.filter_map(|(number, port)| {
                let port = port.as_ref().filter(|port| port.bridge == bridge)?;
                Some((number, port.sources.as_deref()?))
            })
        };
        let ips = guards().filter_map(|(number, guard)| Some((number, guard.ips.as_ref()?)));
        let mut bound = Vec::new();
        for (number, guard) in guards() {
            bound.extend(guard.addresses().iter().map(|mac| (*mac, number)));
        }
        bound.sort_unstable();
        Bindings {
            bound: bound.into(),
            statics: Arc::new([]),
            ips: BoundIps::new(ips),
        }
    }

    /// Returns these bindings with static addresses, sorted by address and VLAN.
    pub(crate) fn with_statics(self, statics: Arc<[StaticAddress]>) -> Bindings {
        Bindings { statics, ..self }
    }

    /// Returns the static addresses.
    pub fn statics(&self) -> &Arc<[StaticAddress]> {
        &self.statics
    }

    /// Returns the port that the address is on in `vlan`, if it is static.
    pub fn static_port(&self, mac: Mac, vlan: u16) -> Option<u16> {
        let place = |one: &StaticAddress| (one.mac, one.vlan).cmp(&(mac, vlan));
        let index = self.statics.binary_search_by(place).ok()?;
        self.statics.get(index).map(|one| one.port)
    }

    /// Returns the IP addresses of all guards.
    #[inline(always)]
    pub(crate) fn ips(&self) -> &BoundIps {
        &self.ips
    }

    /// Returns whether no port has a guard, and no address is static.
    pub fn is_empty(&self) -> bool {
        self.bound.is_empty() && self.statics.is_empty()
    }

    /// Returns whether the address may be on port `port` in `vlan`: it is static or bound there, or nowhere. `policy`
    /// returns a port's VLANs. The loop visits at most as many ports as the address is bound to.
    pub fn allows<'p>(
        &self,
        mac: Mac,
        vlan: u16,
        port: u16,
        policy: impl Fn(u16) -> Option<&'p VlanPolicy>,
    ) -> bool {
        if self.is_empty() {
            return true;
        }
        if let Some(owner) = self.static_port(mac, vlan) {
            return owner == port;
        }
        let first = self.bound.partition_point(|(other, _)| *other < mac);
        let from_first = self.bound.get(first..).unwrap_or(&[]);
        let owners = from_first.iter().take_while(|(other, _)| *other == mac);
        let mut is_free = true;
        for (_, owner) in owners {
            if policy(*owner).is_some_and(|policy| policy.carries(vlan)) {
                // Two ports may both have it for a moment, while the configuration changes.
                if *owner == port {
                    return true;
                }
                is_free = false;
            }
        }
        is_free
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A port with a guard can be an end of a loop too.
    #[test]
    fn a_probe_from_a_foreign_address_is_noted() {
        let probes = Arc::new(Probes::default());
        let guard = SourceGuard::new(Vec::new()).looking(5, probes.clone());
        let mut burst = Burst::new();
        assert!(burst.push_short(&probes.frame(3, 0, "x")));
        crate::stages::parse(&mut burst);
        guard.enforce(&mut burst);
        let dropped = crosspoint_frame::Verdict::drop(DropReason::LoopProbe);
        assert_eq!(burst.frames()[0].verdict, dropped);
        assert_eq!(probes.returned().len(), 1);
    }

    /// Two consecutive frames from a foreign address are both dropped.
    #[test]
    fn only_frames_from_the_addresses_pass() {
        let mac = |last| Mac::new([2, 0, 0, 0, 0, last]);
        let guard = SourceGuard::new(vec![mac(3), mac(1)]);
        let mut burst = Burst::new();
        let sources = [1, 1, 2, 2, 3, 2, 1];
        for source in sources {
            let bytes = [&[0xff; 6], &mac(source).bytes()[..], &[8, 0], &[0; 46]].concat();
            assert!(burst.push_short(&bytes));
        }
        crate::stages::parse(&mut burst);
        guard.enforce(&mut burst);
        let dropped = crosspoint_frame::Verdict::drop(DropReason::SourceNotAllowed);
        for (source, frame) in sources.iter().zip(burst.frames()) {
            assert_eq!(frame.verdict == dropped, *source == 2);
        }
    }
}
