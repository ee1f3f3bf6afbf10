/// Side of the switch where a reason arises: it decides which port counts the drop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// Counted at the port and queue that the frame came from.
    Ingress,
    /// Counted at the port and queue that the copy was going to.
    Egress,
}

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal, $side:ident;)+) => {
        /// Why a frame, or one copy of a flooded frame, was dropped.
        ///
        /// The only list of reasons: the metric label, the help text, the table in the docs and the verdict in a capture
        /// are made from it.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum DropReason { $($(#[doc = $doc])+ $name,)+ }

        impl DropReason {
            /// All reasons, in declaration order; `ALL[r as usize] == r`.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$name,)+];
            /// Number of reasons.
            pub const COUNT: usize = DropReason::ALL.len();

            /// Returns the value of the `reason` label.
            pub const fn label(self) -> &'static str {
                match self { $(DropReason::$name => $label,)+ }
            }

            /// Returns one sentence for operators.
            pub const fn help(self) -> &'static str {
                match self { $(DropReason::$name => concat!($($doc),+).trim_ascii(),)+ }
            }

            /// Returns the port that counts it.
            pub const fn side(self) -> Side {
                match self { $(DropReason::$name => Side::$side,)+ }
            }
        }
    };
}

drop_reasons! {
    /// The frame is shorter than an Ethernet header (14 bytes).
    Runt = "runt", Ingress;
    /// The frame is longer than 65550 bytes, up to two tags not counted.
    Oversize = "oversize", Ingress;
    /// The source address is a group address or all zero.
    BadSource = "bad_source", Ingress;
    /// This port does not carry the frame's VLAN, or the destination's port no longer carries it.
    VlanNotCarried = "vlan_not_carried", Ingress;
    /// The frame is untagged, and this trunk port has no native VLAN.
    UntaggedOnTrunk = "untagged_on_trunk", Ingress;
    /// The guest asked for a checksum whose place lies outside the frame, or for segmentation that contradicts the frame's headers.
    BadOffload = "bad_offload", Ingress;
    /// A large packet, of UDP or in a tunnel, that its sender left uncut: generic XDP does not report the segment size.
    SegmentSizeUnknown = "segment_size_unknown", Ingress;
    /// A link-local control frame (STP, LLDP, pause) that the port's `forward_control` does not name: a bridge does not forward it.
    LinkLocal = "link_local", Ingress;
    /// The destination is on the port that the frame came from.
    Hairpin = "hairpin", Ingress;
    /// The frame was to be flooded, and no other port that is up carries its VLAN.
    NoDestination = "no_destination", Ingress;
    /// The frame's source address is not one of the port's `addresses`, or it is another port's.
    SourceNotAllowed = "source_not_allowed", Ingress;
    /// The frame's source address is new, the port already has `mac_limit` addresses, and `mac_limit_action` is "drop" or "quarantine".
    MacLimit = "mac_limit", Ingress;
    /// The frame's source IP address is not one of the port's `addresses.ip`.
    IpNotAllowed = "ip_not_allowed", Ingress;
    /// The frame claims an address by ARP or neighbour discovery that is not the port's, or is another port's.
    NeighborNotAllowed = "neighbor_not_allowed", Ingress;
    /// The frame is a DHCP reply or a router advertisement, and the port has no `dhcp_server`.
    ServerNotAllowed = "server_not_allowed", Ingress;
    /// No rule of the port's security groups allows the guest to send this, and it belongs to no connection.
    GroupDeniedOut = "group_denied_out", Ingress;
    /// The guest has as many connections as its `connections_max` allows, or a tenth of that (at least 64) half-open, or the table is full.
    ConnectionLimitOut = "connection_limit_out", Ingress;
    /// A later fragment of a datagram whose first fragment the guest has not sent, or that its security groups did not allow.
    FragmentUnknownOut = "fragment_unknown_out", Ingress;
    /// The port is `isolated`, and the destination is no uplink.
    Isolated = "isolated", Ingress;
    /// Broadcasts of this port were flooded into as many copies as its `storm` limit allows.
    StormBroadcast = "storm_broadcast", Ingress;
    /// Multicasts of this port were flooded into as many copies as its `storm` limit allows.
    StormMulticast = "storm_multicast", Ingress;
    /// Frames of this port for unknown addresses were flooded into as many copies as its `storm` limit allows.
    StormUnknownUnicast = "storm_unknown_unicast", Ingress;
    /// A loop goes through the port, and it is blocked for a time (`loop_protect`).
    LoopBlocked = "loop_blocked", Ingress;
    /// A mirror sends its copies to this port; frames from it are not forwarded.
    MirrorPort = "mirror_port", Ingress;
    /// A loop probe of this switch came back: it is not forwarded.
    LoopProbe = "loop_probe", Ingress;
    /// The frames of one burst asked for more work (segments, pieces, copies, bytes) than one burst may cost.
    BurstBudget = "burst_budget", Ingress;
    /// No port has joined the frame's multicast group, and there is no multicast router: see `[multicast]`.
    NoListener = "no_listener", Ingress;
    /// The guest begins more connections a second than its `connections_rate` allows.
    ConnectionRateOut = "connection_rate_out", Ingress;
    /// No guest is attached to the port, or its driver has not enabled the queue.
    PortDown = "port_down", Egress;
    /// The operator has disabled the port (`admin = "down"`).
    PortDisabled = "port_disabled", Egress;
    /// The guest has no free receive buffers.
    GuestRingFull = "guest_ring_full", Egress;
    /// The frame does not fit the receive buffers of a guest that did not negotiate mergeable ones.
    GuestBufferSmall = "guest_buffer_small", Egress;
    /// Other workers were faster, too many times in a row, to reserve this guest's receive buffers.
    GuestRingContended = "guest_ring_contended", Egress;
    /// The guest's receive buffers are in so many pieces that delivering to them would hold up the worker.
    GuestBuffersCostly = "guest_buffers_costly", Egress;
    /// The worker is busy, and frames for this port have used more than the port's share of its time.
    OverShare = "over_share", Egress;
    /// Frames for this port exceed the rate of its `limit`.
    RateExceeded = "rate_exceeded", Egress;
    /// No rule of the port's security groups allows this to be sent to the guest, and it belongs to no connection.
    GroupDeniedIn = "group_denied_in", Egress;
    /// The guest has as many connections as its `connections_max` allows, or a tenth of that half-open, or a quarter that others have begun and it has not answered (of each at least 64), or the table is full.
    ConnectionLimitIn = "connection_limit_in", Egress;
    /// A later fragment of a datagram whose first fragment has not come, or was not allowed by the port's security groups.
    FragmentUnknownIn = "fragment_unknown_in", Egress;
    /// The guest broke the rules of its ring and its port is quarantined.
    GuestQuarantined = "guest_quarantined", Egress;
    /// The NIC's transmit ring is full.
    NicRingFull = "nic_ring_full", Egress;
    /// The frame is longer than the MTU of the NIC port's interface allows, the Ethernet header and up to two tags not counted.
    MtuExceeded = "mtu_exceeded", Egress;
    /// The frame does not fit a UMEM frame of the NIC port.
    NicFrameSmall = "nic_frame_small", Egress;
    /// The ring that hands frames to the worker that owns the NIC queue is full.
    HandoverFull = "handover_full", Egress;
    /// Others begin more connections to the guest a second than its `connections_rate` allows.
    ConnectionRateIn = "connection_rate_in", Egress;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_indexes_itself_and_labels_are_unique() {
        for (i, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, i);
            assert!(reason.help().ends_with('.'), "{reason:?}");
            assert!(
                reason
                    .label()
                    .bytes()
                    .all(|b| b == b'_' || b.is_ascii_lowercase())
            );
            let same = DropReason::ALL
                .iter()
                .filter(|r| r.label() == reason.label());
            assert_eq!(same.count(), 1, "{reason:?}");
        }
    }
}
