//! Compares a walk of any bytes with etherparse's, wherever etherparse has an answer. Also used by the fuzz target.

use crosspoint_packet::headers::{EXTENSIONS_MAX, Fragment, Headers, Stop, Tags};
use etherparse::err::packet::SliceError;
use etherparse::err::{Layer, ipv6_exts};
use etherparse::{
    EtherType, Ipv6ExtensionSlice, LaxIpPayloadSlice, LaxIpv4Slice, LaxIpv6Slice, LaxLinkExtSlice,
    LaxNetSlice, LaxSlicedPacket, LenSource, LinkSlice, ip_number,
};

/// Extension headers that etherparse takes for other protocols: mobility, HIP and shim6.
const ONLY_OURS: [u8; 3] = [135, 139, 140];
/// Bytes of the first header of each IP version.
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;

/// A frame's tags according to etherparse.
struct Link {
    tags: u8,
    ethertype: EtherType,
    /// Whether a tag follows that etherparse has no room for.
    is_more: bool,
}

/// Walks the headers of `bytes`, the frame or its beginning, and compares. Returns the walk.
///
/// # Panics
/// Panics if etherparse has another answer.
pub fn walk_and_compare(bytes: &[u8]) -> Headers {
    let ours = Headers::parse_behind(bytes, Tags::Any);
    agrees_with_itself(bytes, &ours);
    let Ok(theirs) = LaxSlicedPacket::from_ethernet(bytes) else {
        assert_eq!((ours.stop, ours.ethertype), (Stop::CutShort, 0));
        return ours;
    };
    let Some(link) = link(&theirs) else {
        return ours;
    };
    if link.is_more {
        assert!(ours.tags >= link.tags);
        return ours;
    }
    assert_eq!((ours.tags, ours.ethertype), (link.tags, link.ethertype.0));
    assert_eq!(ours.network, 14 + 4 * usize::from(link.tags));
    if matches!(theirs.stop_err, Some((_, Layer::VlanHeader))) {
        assert_eq!((ours.stop, ours.ip_version), (Stop::CutShort, 0));
        return ours;
    }
    let (version, header) = match link.ethertype {
        EtherType::IPV4 => (4, IPV4_HEADER),
        EtherType::IPV6 => (6, IPV6_HEADER),
        _ => {
            assert_eq!((ours.stop, ours.ip_version), (Stop::Unknown, 0));
            return ours;
        }
    };
    if bytes.len() < ours.network + header {
        assert_eq!((ours.stop, ours.ip_version), (Stop::CutShort, 0));
        return ours;
    }
    // Etherparse believes the version in the header, not the type before it.
    if bytes[ours.network] >> 4 != version {
        assert_eq!((ours.stop, ours.ip_version), (Stop::BadHeader, 0));
        return ours;
    }
    let error = theirs.stop_err.as_ref().map(|(error, _)| error);
    match &theirs.net {
        Some(LaxNetSlice::Ipv4(ip)) => compare_ipv4(bytes, &ours, ip, error),
        Some(LaxNetSlice::Ipv6(ip)) => compare_ipv6(bytes, &ours, ip, error),
        _ => match error {
            Some(SliceError::Len(_)) => assert!(is_beyond(bytes, &ours), "{ours:?}"),
            _ => assert_eq!((ours.stop, ours.ip_version), (Stop::BadHeader, 0)),
        },
    }
    ours
}

/// What holds for any walk, whatever etherparse says.
fn agrees_with_itself(bytes: &[u8], ours: &Headers) {
    assert!(usize::from(ours.extensions) <= EXTENSIONS_MAX);
    assert!(usize::from(ours.tags) <= Tags::MOST);
    let is_later = ours.fragment == Fragment::Later;
    assert_eq!(is_later, ours.stop == Stop::LaterFragment);
    if ours.ip_version != 0 {
        assert!(ours.offset >= ours.network + IPV4_HEADER);
        assert!(bytes.len() >= ours.network + IPV4_HEADER);
    }
    // With fewer tags, all is equal until they are too many.
    let standard = Headers::parse(bytes);
    let is_old = |number: u8| {
        let at = 12 + 4 * usize::from(number);
        bytes.get(at..at + 2) == Some(&[0x91, 0])
    };
    match standard.stop {
        Stop::TooManyTags => assert!(standard.tags == 2),
        Stop::Unknown if is_old(standard.tags) => {}
        _ => assert_eq!(standard, *ours),
    }
}

/// Returns etherparse's tags; `None` if it found a MACsec header, which no walk here knows.
fn link(theirs: &LaxSlicedPacket<'_>) -> Option<Link> {
    let Some(LinkSlice::Ethernet2(ethernet)) = &theirs.link else {
        return None;
    };
    let mut ethertype = ethernet.ether_type();
    for tag in &theirs.link_exts {
        let LaxLinkExtSlice::Vlan(tag) = tag else {
            return None;
        };
        ethertype = tag.ether_type();
    }
    let tags = [
        EtherType::VLAN_TAGGED_FRAME,
        EtherType::PROVIDER_BRIDGING,
        EtherType::VLAN_DOUBLE_TAGGED_FRAME,
    ];
    if ethertype == EtherType::MACSEC {
        return None;
    }
    Some(Link {
        tags: theirs.link_exts.len() as u8,
        ethertype,
        is_more: theirs.link_exts.len() == LaxSlicedPacket::LINK_EXTS_CAP
            && tags.contains(&ethertype),
    })
}

/// Returns whether the walk ended at or beyond the end of the bytes, or at an AH with a length of 0, which etherparse reads
/// only from a header that is long enough.
fn is_beyond(bytes: &[u8], ours: &Headers) -> bool {
    let is_empty = ours.protocol == ip_number::AUTH.0 && bytes.get(ours.offset + 1) == Some(&0);
    ours.stop == Stop::CutShort || ours.offset > bytes.len() || is_empty
}

/// Returns whether etherparse has stopped at the end of the packet that the IP header names: no walk here reads that.
fn stops_at_the_packets_end(payload: &LaxIpPayloadSlice<'_>, error: Option<&SliceError>) -> bool {
    matches!(error, Some(SliceError::Len(_))) && payload.len_source != LenSource::Slice
}

fn compare_ipv4(
    bytes: &[u8],
    ours: &Headers,
    theirs: &LaxIpv4Slice<'_>,
    error: Option<&SliceError>,
) {
    let header = theirs.header();
    let fragment = match (header.fragments_offset().value(), header.more_fragments()) {
        (0, false) => Fragment::No,
        (0, true) => Fragment::First,
        _ => Fragment::Later,
    };
    assert_eq!((ours.ip_version, ours.fragment), (4, fragment));
    let behind = ours.network + header.slice().len();
    if fragment == Fragment::Later {
        assert_eq!((ours.protocol, ours.offset), (header.protocol().0, behind));
        return;
    }
    let payload = theirs.payload();
    match (theirs.extensions().auth, header.protocol()) {
        (Some(auth), _) => {
            let end = behind + auth.slice().len();
            // Etherparse skips only one.
            if auth.next_header() != ip_number::AUTH {
                assert_eq!((ours.stop, ours.extensions), (Stop::Layer4, 1));
                assert_eq!((ours.protocol, ours.offset), (auth.next_header().0, end));
            }
            assert!(!ours.repeatable);
        }
        (None, ip_number::AUTH) if stops_at_the_packets_end(payload, error) => {}
        (None, ip_number::AUTH) => match error {
            Some(SliceError::Len(_)) => assert!(is_beyond(bytes, ours), "{ours:?}"),
            _ => assert_eq!((ours.stop, ours.offset), (Stop::BadHeader, behind)),
        },
        (None, protocol) => {
            assert_eq!((ours.stop, ours.extensions), (Stop::Layer4, 0));
            assert_eq!((ours.protocol, ours.offset), (protocol.0, behind));
        }
    }
}

fn compare_ipv6(
    bytes: &[u8],
    ours: &Headers,
    theirs: &LaxIpv6Slice<'_>,
    error: Option<&SliceError>,
) {
    let mut next = theirs.header().next_header();
    let mut at = ours.network + IPV6_HEADER;
    let mut fragment = Fragment::No;
    // Etherparse's iterator reads out of bounds behind its last whole header, so it may not be asked there.
    let end = at + theirs.extensions().slice().len();
    let mut extensions = theirs.extensions().clone().into_iter().enumerate();
    while at < end {
        let (number, extension) = extensions.next().unwrap();
        if number == EXTENSIONS_MAX {
            assert_eq!(ours.stop, Stop::TooManyExtensions);
            assert_eq!((ours.protocol, ours.offset), (next.0, at));
            return;
        }
        let (kind, len) = match extension {
            Ipv6ExtensionSlice::Fragment(header) => {
                let offset = header.fragment_offset().value();
                fragment = fragment.max(match (offset, header.more_fragments()) {
                    (0, false) => Fragment::Atomic,
                    (0, true) => Fragment::First,
                    _ => Fragment::Later,
                });
                (header.next_header(), header.slice().len())
            }
            Ipv6ExtensionSlice::Authentication(header) => {
                (header.next_header(), header.slice().len())
            }
            Ipv6ExtensionSlice::HopByHop(header)
            | Ipv6ExtensionSlice::Routing(header)
            | Ipv6ExtensionSlice::DestinationOptions(header) => {
                (header.next_header(), header.slice().len())
            }
        };
        (next, at) = (kind, at + len);
        // Etherparse takes the payload of a later fragment for further headers.
        if fragment == Fragment::Later {
            assert_eq!((ours.stop, ours.fragment), (Stop::LaterFragment, fragment));
            assert_eq!((ours.protocol, ours.offset), (next.0, at));
            return;
        }
    }
    if ONLY_OURS.contains(&next.0) || stops_at_the_packets_end(theirs.payload(), error) {
        assert!(ours.offset >= at);
        return;
    }
    let is_full = usize::from(ours.extensions) == EXTENSIONS_MAX;
    match error {
        Some(SliceError::Ipv6Exts(_)) if is_full => assert_eq!(ours.stop, Stop::TooManyExtensions),
        Some(SliceError::Ipv6Exts(
            ipv6_exts::HeaderError::HopByHopNotAtStart | ipv6_exts::HeaderError::IpAuth(_),
        )) => assert_eq!(ours.stop, Stop::BadHeader),
        Some(SliceError::Len(_)) if theirs.payload().ip_number != next || is_extension(next.0) => {
            assert!(is_beyond(bytes, ours) || is_full, "{ours:?}");
            return;
        }
        // Errors of layer 4 are no concern of the walk.
        _ => assert_eq!((ours.stop, ours.fragment), (Stop::Layer4, fragment)),
    }
    assert_eq!((ours.protocol, ours.offset), (next.0, at));
}

fn is_extension(kind: u8) -> bool {
    matches!(kind, 0 | 43 | 44 | 51 | 60)
}
