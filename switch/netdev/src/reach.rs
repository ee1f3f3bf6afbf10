//! Which frames an interface receives: a switch needs those for its guests' addresses.

use netlink_packet_route::link::{
    InfoData, InfoKind, InfoMacVlan, InfoMacVtap, LinkAttribute, LinkInfo, LinkLayerType,
    LinkMessage, MacVlanMode,
};

/// Which frames an interface receives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// All frames of its wire, for any address.
    #[default]
    All,
    /// Only frames for its own address and for groups: the kernel filters the others. Contains the type.
    OwnAddress(&'static str),
    /// None that a switch can use: it has no Ethernet addresses, or one for all. Contains the type.
    None(&'static str),
}

/// Returns the reach of an interface from its rtnetlink message.
pub(crate) fn of(message: &LinkMessage) -> Reach {
    if !matches!(
        message.header.link_layer_type,
        LinkLayerType::Ether | LinkLayerType::Loopback
    ) {
        return Reach::None("no Ethernet interface");
    }
    let infos = message.attributes.iter().filter_map(|one| match one {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    let infos: Vec<&LinkInfo> = infos.flatten().collect();
    let mode = infos.iter().find_map(|info| match info {
        LinkInfo::Data(InfoData::MacVlan(all)) => all.iter().find_map(|one| match one {
            InfoMacVlan::Mode(mode) => Some(mode),
            _ => None,
        }),
        LinkInfo::Data(InfoData::MacVtap(all)) => all.iter().find_map(|one| match one {
            InfoMacVtap::Mode(mode) => Some(mode),
            _ => None,
        }),
        _ => None,
    });
    for info in infos {
        match info {
            LinkInfo::Kind(InfoKind::IpVlan) => return Reach::None("an ipvlan"),
            LinkInfo::Kind(InfoKind::MacVlan | InfoKind::MacVtap)
                if mode != Some(&MacVlanMode::Passthrough) =>
            {
                return Reach::OwnAddress(match mode {
                    Some(MacVlanMode::Private) => "a macvlan in mode private",
                    Some(MacVlanMode::Vepa) => "a macvlan in mode vepa",
                    Some(MacVlanMode::Bridge) => "a macvlan in mode bridge",
                    Some(MacVlanMode::Source) => "a macvlan in mode source",
                    _ => "a macvlan",
                });
            }
            _ => {}
        }
    }
    Reach::All
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(layer: LinkLayerType, infos: Vec<LinkInfo>) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.link_layer_type = layer;
        message.attributes.push(LinkAttribute::LinkInfo(infos));
        message
    }

    /// Types that not every kernel has; the others are tested with real interfaces.
    #[test]
    fn what_has_no_addresses_of_its_own_reaches_no_host() {
        let ipvlan = message(LinkLayerType::Ether, vec![LinkInfo::Kind(InfoKind::IpVlan)]);
        assert_eq!(of(&ipvlan), Reach::None("an ipvlan"));
        let tunnel = message(
            LinkLayerType::None,
            vec![LinkInfo::Kind(InfoKind::Wireguard)],
        );
        assert_eq!(of(&tunnel), Reach::None("no Ethernet interface"));
        let veth = message(LinkLayerType::Ether, vec![LinkInfo::Kind(InfoKind::Veth)]);
        assert_eq!(of(&veth), Reach::All);
        assert_eq!(of(&message(LinkLayerType::Ether, Vec::new())), Reach::All);
    }
}
