//! A port's VLANs, and the tags of frames on it.

use crosspoint_packet::DropReason;

/// VLAN of untagged frames between ports that are unaware of VLANs.
pub const NO_VLAN: u16 = 0;
pub(crate) const VID_MASK: u16 = 0x0fff;

/// A port's VLAN membership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VlanPolicy {
    /// Carries every VLAN; tags pass unchanged.
    Unaware,
    /// Carries untagged frames only: of an uplink whose tags are other bridges'.
    Untagged,
    /// Carries one VLAN, untagged.
    Access(u16),
    /// Carries several VLANs tagged, and optionally one untagged.
    Trunk {
        /// A bit per VLAN, including the native one.
        carried: Box<[u64; 64]>,
        /// VLAN of untagged frames.
        native: Option<u16>,
    },
}

/// Result of `admit`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Admitted {
    /// The frame's VLAN.
    pub vlan: u16,
    /// Its tag control information in that VLAN; the priority is kept.
    pub tci: u16,
}

impl VlanPolicy {
    /// Creates a trunk of the VLANs `ids`, with `native` untagged.
    pub fn trunk(ids: &[u16], native: Option<u16>) -> VlanPolicy {
        let mut carried = Box::new([0u64; 64]);
        for id in ids.iter().chain(native.as_ref()) {
            carried[usize::from(id & VID_MASK) / 64] |= 1 << (id % 64);
        }
        VlanPolicy::Trunk { carried, native }
    }

    /// Returns whether frames of `vlan` may leave through the port.
    #[inline(always)]
    pub fn carries(&self, vlan: u16) -> bool {
        match self {
            VlanPolicy::Unaware => true,
            VlanPolicy::Untagged => vlan == NO_VLAN,
            VlanPolicy::Access(id) => *id == vlan,
            VlanPolicy::Trunk { carried, .. } => {
                carried[usize::from(vlan & VID_MASK) / 64] >> (vlan % 64) & 1 != 0
            }
        }
    }

    /// Returns whether the port is a trunk: it carries several VLANs, distinguished by tags.
    pub fn is_trunk(&self) -> bool {
        matches!(self, VlanPolicy::Trunk { .. })
    }

    /// Returns whether the policy places frames in VLANs.
    #[inline(always)]
    pub fn is_aware(&self) -> bool {
        !matches!(self, VlanPolicy::Unaware | VlanPolicy::Untagged)
    }

    /// Returns whether frames of `vlan` have a tag on this port.
    #[inline(always)]
    pub fn sends_tagged(&self, vlan: u16) -> bool {
        match self {
            VlanPolicy::Unaware => vlan != NO_VLAN,
            VlanPolicy::Untagged | VlanPolicy::Access(_) => false,
            VlanPolicy::Trunk { native, .. } => *native != Some(vlan),
        }
    }

    /// Returns the VLAN in tag control information; 0 for none.
    #[inline(always)]
    pub fn vid(tci: u16) -> u16 {
        tci & VID_MASK
    }

    /// Places a frame received on this port, with tag `tag` if any, in its VLAN; or returns why it is dropped.
    pub fn admit(&self, tag: Option<u16>) -> Result<Admitted, DropReason> {
        let tci = tag.unwrap_or(0);
        let vid = VlanPolicy::vid(tci);
        // A priority tag keeps its priority; it is in no VLAN of its own (802.1Q, 9.6).
        let placed = |vlan: u16| Admitted {
            vlan,
            tci: (tci & !VID_MASK) | vlan,
        };
        match self {
            VlanPolicy::Unaware => Ok(Admitted { vlan: vid, tci }),
            VlanPolicy::Untagged if vid == 0 => Ok(Admitted { vlan: NO_VLAN, tci }),
            VlanPolicy::Untagged => Err(DropReason::VlanNotCarried),
            VlanPolicy::Access(id) if vid == 0 => Ok(placed(*id)),
            VlanPolicy::Access(_) => Err(DropReason::VlanNotCarried),
            VlanPolicy::Trunk {
                native: Some(id), ..
            } if vid == 0 => Ok(placed(*id)),
            VlanPolicy::Trunk { .. } if vid == 0 => Err(DropReason::UntaggedOnTrunk),
            trunk if trunk.carries(vid) => Ok(Admitted { vlan: vid, tci }),
            _ => Err(DropReason::VlanNotCarried),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vlan_of(policy: &VlanPolicy, tag: Option<u16>) -> Result<u16, DropReason> {
        policy.admit(tag).map(|admitted| admitted.vlan)
    }

    #[test]
    fn an_access_port_takes_untagged_frames_only() {
        let port = VlanPolicy::Access(100);
        assert_eq!(vlan_of(&port, None), Ok(100));
        assert_eq!(
            port.admit(Some(0x6000)),
            Ok(Admitted {
                vlan: 100,
                tci: 0x6064
            })
        );
        assert_eq!(vlan_of(&port, Some(100)), Err(DropReason::VlanNotCarried));
        assert!(port.carries(100) && !port.carries(99) && !port.sends_tagged(100));
    }

    #[test]
    fn a_trunk_takes_what_it_carries() {
        let port = VlanPolicy::trunk(&[100, 200], Some(1));
        assert_eq!(vlan_of(&port, None), Ok(1));
        assert_eq!(vlan_of(&port, Some(0x2064)), Ok(100));
        assert_eq!(vlan_of(&port, Some(300)), Err(DropReason::VlanNotCarried));
        assert!(port.sends_tagged(100) && !port.sends_tagged(1) && port.carries(1));
        let no_native = VlanPolicy::trunk(&[100, 4094], None);
        assert_eq!(vlan_of(&no_native, None), Err(DropReason::UntaggedOnTrunk));
        assert_eq!(vlan_of(&no_native, Some(4094)), Ok(4094));
    }

    #[test]
    fn an_unaware_port_lets_tags_pass() {
        let port = VlanPolicy::Unaware;
        assert_eq!(vlan_of(&port, None), Ok(NO_VLAN));
        assert_eq!(vlan_of(&port, Some(0x2064)), Ok(100));
        assert_eq!(vlan_of(&port, Some(0xe000)), Ok(NO_VLAN));
        assert!((0..4096).all(|v| port.carries(v)));
        assert!(port.sends_tagged(5) && !port.sends_tagged(NO_VLAN));
    }
}
