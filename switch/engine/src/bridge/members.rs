//! Member lists for flooding: one list per VLAN of a bridge, created with the snapshot.

use std::collections::BTreeMap;

use crosspoint_frame::Frame;

use crate::bridge::vlan::{NO_VLAN, VlanPolicy};
use crate::snapshot::PortSnapshot;

const VLANS: usize = 4096;

/// Ports that carry a VLAN and can take frames. Ports that are down, disabled, quarantined or blocked are not members.
pub struct Members {
    /// Index of each VLAN's list.
    list_of: Box<[u16]>,
    lists: Box<[Box<[u16]>]>,
    /// Ports that take control frames.
    control: Box<[u16]>,
}

impl Members {
    /// Builds the lists of bridge `bridge` for these ports, by number.
    pub fn new(ports: &[Option<PortSnapshot>], bridge: u8) -> Members {
        let mut everywhere = Vec::new();
        let mut control = Vec::new();
        let mut named: BTreeMap<u16, Vec<u16>> = BTreeMap::new();
        for (number, port) in (0u16..).zip(ports) {
            let Some(port) = port else { continue };
            let is_there = port.is_attached();
            if port.bridge != bridge {
                // Behind its tag, a bridge has all its VLANs.
                let has_tag = port.tags.as_ref().is_some_and(|tags| tags.has(bridge));
                everywhere.extend((is_there && has_tag).then_some(number));
                continue;
            }
            if is_there && !port.control.is_empty() {
                control.push(number);
            }
            let mut join = |vlan: u16| {
                let members = named.entry(vlan).or_default();
                members.extend(is_there.then_some(number));
            };
            match &*port.vlan {
                VlanPolicy::Unaware => everywhere.extend(is_there.then_some(number)),
                VlanPolicy::Untagged => join(NO_VLAN),
                VlanPolicy::Access(vlan) => join(*vlan),
                VlanPolicy::Trunk { carried, .. } => {
                    let vlans = (0..VLANS as u16)
                        .filter(|vlan| carried[usize::from(*vlan) / 64] >> (vlan % 64) & 1 != 0);
                    vlans.for_each(join);
                }
            }
        }
        // List 0 is for all VLANs that no port names.
        let mut list_of = vec![0; VLANS];
        let mut lists = vec![everywhere.clone().into_boxed_slice()];
        for (vlan, mut members) in named {
            members.extend(&everywhere);
            members.sort_unstable();
            if let Some(list) = list_of.get_mut(usize::from(vlan)) {
                // At most one list per VLAN, plus one, so the number fits.
                *list = lists.len() as u16;
                lists.push(members.into());
            }
        }
        Members {
            list_of: list_of.into(),
            lists: lists.into(),
            control: control.into(),
        }
    }

    /// Returns the ports that a flooded frame may go to, ascending, including its ingress port.
    pub fn of_flooded(&self, frame: &Frame) -> &[u16] {
        match frame.dst.is_link_local_control() {
            true => &self.control,
            false => self.of(frame.vlan),
        }
    }

    /// Returns the ports that carry `vlan`, ascending.
    #[inline(always)]
    pub fn of(&self, vlan: u16) -> &[u16] {
        let list = self.list_of.get(usize::from(vlan));
        list.and_then(|list| self.lists.get(usize::from(*list)))
            .map_or(&[], |list| list)
    }
}
