//! What the host itself uses an interface for. An interface that becomes a port gives its frames to the switch, so the host
//! loses what is listed here.

use std::collections::BTreeMap;
use std::net::IpAddr;

use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;

use crate::LinkError;
use crate::request::Requests;

/// Most layers of interfaces above one that are followed: a VLAN on a bridge on a bond is three.
const DEPTH_MAX: usize = 8;
/// Most addresses and routes that [`HostUse::text`] lists by name.
const LISTED_MAX: usize = 3;

/// What the host uses an interface for, itself or through the interfaces above it (VLANs, a bridge, a bond, macvlans).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostUse {
    /// Whether it is a loopback interface.
    pub loopback: bool,
    /// The interface of the default route: this one, or one above it.
    pub default_route: Option<String>,
    /// The bridge, bond or other interface that it is a member of: its kind and its name, such as "bridge `br0`".
    pub controller: Option<String>,
    /// Addresses, without those that the kernel gives to every interface (fe80::/10): "10.0.0.5/24", or "10.0.0.5/24 on
    /// up0.10" for an interface above.
    pub addresses: Vec<String>,
    /// Destinations of other routes, without those that follow from addresses.
    pub routes: Vec<String>,
}

impl HostUse {
    /// Asks the kernel, in the thread's network namespace, about interface number `index`.
    pub fn of(index: u32) -> Result<HostUse, LinkError> {
        let mut requests = Requests::open_strict(NETLINK_ROUTE)?;
        let what = "asking for all interfaces";
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = requests.dump(what, request)?;
        let links: BTreeMap<u32, Link> = answers.into_iter().filter_map(Link::of).collect();
        let Some(own) = links.get(&index) else {
            return Ok(HostUse::default());
        };
        let mut found = HostUse {
            loopback: own.loopback,
            controller: own
                .controller
                .map(|above| name_of_controller(&links, above)),
            ..HostUse::default()
        };
        for index in with_those_above(&links, index) {
            let name = links.get(&index).map_or("", |link| &link.name);
            let on = match name == own.name {
                true => String::new(),
                false => format!(" on {name}"),
            };
            let addresses = addresses(&mut requests, index)?;
            let addresses = addresses.iter().map(|address| format!("{address}{on}"));
            found.addresses.extend(addresses);
            for route in routes(&mut requests, index)? {
                match route {
                    Route::Default => {
                        found.default_route.get_or_insert_with(|| name.to_owned());
                    }
                    Route::To(destination) => found.routes.push(format!("{destination}{on}")),
                }
            }
        }
        found.routes.sort();
        found.routes.dedup();
        Ok(found)
    }

    /// Whether the host loses its network if the interface becomes a port: it is a loopback interface, or has the default
    /// route.
    pub fn is_vital(&self) -> bool {
        self.loopback || self.default_route.is_some()
    }

    /// The uses as text, such as "it has the default route, and the address 10.0.0.5/24"; `None` if there are none.
    pub fn text(&self) -> Option<String> {
        let mut parts = Vec::new();
        if self.loopback {
            parts.push("it is the host's loopback interface".to_owned());
        }
        if let Some(interface) = &self.default_route {
            let own = self.addresses.iter().all(|one| !one.ends_with(interface));
            parts.push(match own {
                true => "it has the host's default route".to_owned(),
                false => format!("the host's default route goes through it (by {interface})"),
            });
        }
        if let Some(controller) = &self.controller {
            parts.push(format!("it is a member of {controller}"));
        }
        parts.extend(listed("it has the address", "es", &self.addresses));
        parts.extend(listed("it has the route", "s", &self.routes));
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

/// `what` in the singular or the plural, with the first of `all`.
fn listed(what: &str, plural: &str, all: &[String]) -> Option<String> {
    let first = all.iter().take(LISTED_MAX).cloned();
    let first = first.collect::<Vec<_>>().join(", ");
    match all.len() {
        0 => None,
        1 => Some(format!("{what} {first}")),
        2..=LISTED_MAX => Some(format!("{what}{plural} {first}")),
        more => Some(format!(
            "{what}{plural} {first} and {} more",
            more - LISTED_MAX
        )),
    }
}

/// An interface, as far as it says which others are above and below it.
struct Link {
    name: String,
    kind: String,
    loopback: bool,
    controller: Option<u32>,
    /// The interface that it takes its frames from, such as a VLAN's.
    below: Option<u32>,
}

impl Link {
    fn of(message: RouteNetlinkMessage) -> Option<(u32, Link)> {
        let RouteNetlinkMessage::NewLink(message) = message else {
            return None;
        };
        let mut link = Link {
            name: String::new(),
            kind: String::new(),
            loopback: message.header.flags.contains(LinkFlags::Loopback),
            controller: None,
            below: None,
        };
        let mut kinds = Vec::new();
        let mut is_elsewhere = false;
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Controller(index) => link.controller = Some(index),
                LinkAttribute::Link(index) => link.below = Some(index),
                LinkAttribute::LinkNetNsId(_) => is_elsewhere = true,
                LinkAttribute::LinkInfo(infos) => kinds = infos,
                _ => {}
            }
        }
        let kind = kinds.into_iter().find_map(|info| match info {
            LinkInfo::Kind(kind) => Some(kind),
            _ => None,
        });
        // A veth names its peer there, a tunnel the interface that it sends through.
        let is_above = matches!(
            &kind,
            Some(InfoKind::Vlan | InfoKind::MacVlan | InfoKind::MacVtap | InfoKind::IpVlan)
        );
        if !is_above || is_elsewhere {
            link.below = None;
        }
        link.kind = kind.map_or(String::new(), |kind| kind.to_string());
        Some((message.header.index, link))
    }
}

fn name_of_controller(links: &BTreeMap<u32, Link>, index: u32) -> String {
    match links.get(&index) {
        Some(link) if link.kind.is_empty() => format!("`{}`", link.name),
        Some(link) => format!("{} `{}`", link.kind, link.name),
        None => format!("interface number {index}"),
    }
}

/// The interface and all above it, the nearest first.
fn with_those_above(links: &BTreeMap<u32, Link>, index: u32) -> Vec<u32> {
    let mut all = vec![index];
    let mut layer = vec![index];
    for _ in 0..DEPTH_MAX {
        let controllers = layer
            .iter()
            .filter_map(|index| links.get(index)?.controller);
        let uppers = links.iter().filter_map(|(upper, link)| {
            link.below
                .filter(|below| layer.contains(below))
                .map(|_| *upper)
        });
        let mut next: Vec<u32> = controllers.chain(uppers).collect();
        next.sort_unstable();
        next.dedup();
        next.retain(|index| !all.contains(index));
        all.extend(&next);
        layer = next;
    }
    all
}

/// The addresses of an interface that an administrator, or a protocol, gave to it.
fn addresses(requests: &mut Requests, index: u32) -> Result<Vec<String>, LinkError> {
    let mut message = AddressMessage::default();
    message.header.index = index;
    let request = RouteNetlinkMessage::GetAddress(message);
    let answers = requests.dump("asking for the addresses", request)?;
    Ok(answers
        .into_iter()
        .filter_map(|one| match one {
            RouteNetlinkMessage::NewAddress(message) if message.header.index == index => {
                address(&message)
            }
            _ => None,
        })
        .collect())
}

fn address(message: &AddressMessage) -> Option<String> {
    let of = |local: bool| {
        message.attributes.iter().find_map(|one| match one {
            AddressAttribute::Local(address) if local => Some(*address),
            AddressAttribute::Address(address) if !local => Some(*address),
            _ => None,
        })
    };
    // On a point-to-point interface the other one is the peer's.
    let address = of(true).or_else(|| of(false))?;
    let is_automatic = match address {
        IpAddr::V6(address) => address.is_unicast_link_local(),
        IpAddr::V4(_) => false,
    };
    (!is_automatic).then(|| format!("{address}/{}", message.header.prefix_len))
}

enum Route {
    Default,
    To(String),
}

/// The routes through an interface, in all tables.
fn routes(requests: &mut Requests, index: u32) -> Result<Vec<Route>, LinkError> {
    let mut all = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let mut message = RouteMessage::default();
        message.header.address_family = family;
        // A host with the Internet's routes has a million of them: the kernel selects.
        message.attributes.push(RouteAttribute::Oif(index));
        let request = RouteNetlinkMessage::GetRoute(message);
        match requests.dump("asking for the routes", request) {
            Ok(answers) => all.extend(answers),
            // The kernel has no IPv6.
            Err(error) if error.is_unsupported() => {}
            Err(error) => return Err(error),
        }
    }
    let routes = all.into_iter().filter_map(|one| match one {
        RouteNetlinkMessage::NewRoute(message) => route(&message),
        _ => None,
    });
    Ok(routes.collect())
}

fn route(message: &RouteMessage) -> Option<Route> {
    let header = &message.header;
    if header.kind != RouteType::Unicast {
        return None;
    }
    if header.destination_prefix_length == 0 {
        return Some(Route::Default);
    }
    // Routes that follow from addresses, and those that every interface has (fe80::/64, ff00::/8).
    if header.protocol == RouteProtocol::Kernel {
        return None;
    }
    let destination = message.attributes.iter().find_map(|one| match one {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(address.to_string()),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(address.to_string()),
        _ => None,
    })?;
    let length = header.destination_prefix_length;
    Some(Route::To(format!("{destination}/{length}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uses_are_listed_and_no_use_is_none() {
        assert_eq!(HostUse::default().text(), None);
        let used = HostUse {
            default_route: Some("up0".to_owned()),
            controller: Some("bridge `br0`".to_owned()),
            addresses: ["10.0.0.5/24", "2001:db8::5/64"].map(str::to_owned).into(),
            routes: ["10.1.0.0/16"; 5].map(str::to_owned).into(),
            ..HostUse::default()
        };
        assert_eq!(
            used.text().as_deref(),
            Some(
                "it has the host's default route; it is a member of bridge `br0`; it has the addresses \
                 10.0.0.5/24, 2001:db8::5/64; it has the routes 10.1.0.0/16, 10.1.0.0/16, 10.1.0.0/16 and 2 more"
            )
        );
        assert!(used.is_vital());
        let addressed = HostUse {
            addresses: vec!["10.0.0.5/24".to_owned()],
            ..HostUse::default()
        };
        assert!(!addressed.is_vital(), "another route leads to the host");
    }
}
