//! The keys of security groups, their rules, and sets of addresses.

use super::*;

keys! {
    /// A security group: what guests with it may send and receive. A guest with several groups may do what any of them allows.
    pub struct Group = "Group" {
        /// The group's name.
        name: String = texts::group_name().required("name = \"web\""), Whole;
        /// Whether replies to what a rule allows pass without a rule.
        stateful: bool = flag().or(true), Whole;
        /// What is allowed; all else is dropped. An empty list allows nothing. Without it: everything out, and in only from the
        /// group itself.
        rules: Option<Vec<GroupRule>> = group_rules::rules(GROUP_RULES_MAX).optional(), Whole;
    }
}

keys! {
    /// What a security group allows: what fits all keys of the rule.
    pub(in super::super) struct RuleKeys = "GroupRule" {
        /// The direction, as seen from the guest.
        direction: RuleDirection = word().required("direction = \"in\""), Whole;
        /// The version of IP, 4 or 6. Without it: both. Protocol "icmp" is of 4, "icmpv6" of 6.
        ip: Option<u8> = IpVersion.optional(), Whole;
        /// "tcp", "udp", "sctp", "icmp", "icmpv6", or the number of an IP protocol. Without it: any.
        protocol: Option<u8> = Protocol.optional(), Whole;
        /// The destination port of tcp, udp or sctp, or a range such as "8000-8080". Without it: any.
        port: Option<RangeInclusive<u16>> = OnePort.optional(), Whole;
        /// Destination ports of tcp, udp or sctp: numbers, and ranges such as "8000-8080", in place of `port`.
        ports: Option<Vec<RangeInclusive<u16>>> = PortRanges.optional(), Whole;
        /// The type of messages of icmp or icmpv6. Without it: any.
        icmp_type: Option<u8> = whole(0..=u8::MAX, "icmp_type = 8, for echo requests of icmp").optional(), Whole;
        /// Their code. Without it: any.
        icmp_code: Option<u8> = whole(0..=u8::MAX, "icmp_code = 4").optional(), Whole;
        /// direction "in": the sources: "any", an address or prefix, a list of them, `{ set = "..." }` or `{ group = "..." }`.
        /// Without it: any.
        from: Option<Peer> = PeerRule.optional(), Whole;
        /// direction "out": the destinations, likewise.
        to: Option<Peer> = PeerRule.optional(), Whole;
        /// MAC addresses of the other side. Without it: any.
        mac: Option<Vec<Mac>> = group_link::stations().optional(), Whole;
        /// VLANs of the port's bridge: numbers, and ranges such as "100-199". Without it: frames in any VLAN, and in no VLAN.
        vlans: Option<Vec<u16>> = VlanList.optional(), Whole;
        /// Flags of tcp that must be set, and with "!" those that must not be: "syn,!ack". Of the first packet of a connection
        /// if the group is stateful. Without it: any.
        tcp_flags: Option<TcpFlags> = group_link::tcp_flags().optional(), Whole;
        /// The Ethernet type of frames that are not IP, in place of all keys for IP: 0x0600 to 0xffff. Without it: the rule is
        /// for IP. ARP needs no rule.
        ethertype: Option<u16> = group_link::EtherType.optional(), Whole;
    }
}

keys! {
    /// The other side of a rule, by name; one of the two keys.
    pub(in super::super) struct PeerKeys = "Peer", extend (json!({"minProperties": 1, "maxProperties": 1})) {
        /// The addresses of this `[[set]]`.
        set: Option<String> = texts::set_name().optional(), AtOnce;
        /// The `addresses.ip` of the ports with this `[[group]]`.
        group: Option<String> = texts::group_name().optional(), AtOnce;
    }
}

keys! {
    /// A set of addresses, for rules of groups. It has `addresses` or `file`.
    pub struct Set = "Set", extend (json!({"oneOf": [{"required": ["addresses"]}, {"required": ["file"]}]})) {
        /// The set's name.
        name: String = texts::set_name().required("name = \"admins\""), Whole;
        /// IP addresses and prefixes; the list may be empty.
        addresses: Option<Vec<IpNet>> = sets::addresses().optional(), Whole;
        /// A file with an address or prefix on each line, and comments after `#`. Absolute, or relative to the folder of this
        /// file. It is read at the start and at each reload.
        file: Option<PathBuf> = texts::set_file().optional(), Whole;
    }
}
