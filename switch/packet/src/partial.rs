//! Finds the checksum of a frame that is still to be computed, if the sender's note about it is lost.
//!
//! Linux leaves the *innermost* checksum of a packet to the last device. It notes this in the packet buffer, and XDP, for
//! instance behind a veth, does not pass the note on. So the headers are walked to the innermost TCP or UDP header:
//! through tags, extension headers and the tunnels whose devices leave checksums
//! (Documentation/networking/checksum-offloads.rst in Linux). A result is accepted only if every outer checksum is right
//! once the inner one has been finished, as with Linux's "local checksum offload".

use crate::checksum::{Partial, fold, sum};
use crate::headers::{DESTINATION_OPTIONS, HOP_BY_HOP, ROUTING, extension};
use crate::parse::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_QINQ_OLD, ETHERTYPE_VLAN, PROTO_TCP,
    PROTO_UDP, UDP_HEADER, be16,
};

/// The innermost headers are searched within this many bytes of a frame.
pub const HEADERS_LEN_MAX: usize = 512;
/// Most headers and tags that are parsed in one frame, including those of wrong guesses.
const STEPS_MAX: u32 = 64;
/// Most bytes that are summed, or searched for options, in one frame, including those of wrong guesses. So no frame costs
/// more than some microseconds; ordinary tunnels need a tenth of this.
const WORK_MAX: usize = 4096;
/// Most nested checksums.
const FIELDS_MAX: usize = 6;

const ETHERTYPE_TEB: u16 = 0x6558;
const ETHERTYPE_MPLS: u16 = 0x8847;
const ETHERTYPE_MPLS_MULTICAST: u16 = 0x8848;
const ETHERTYPE_HSR: u16 = 0x892f;
const ETHERTYPE_NSH: u16 = 0x894f;
const ETHERTYPE_ERSPAN: u16 = 0x88be;
const ETHERTYPE_ERSPAN_III: u16 = 0x22eb;

const PROTO_IPIP: u8 = 4;
const PROTO_IPV6: u8 = 41;
const PROTO_GRE: u8 = 47;
const PROTO_MPLS: u8 = 137;
const PROTO_ETHERNET: u8 = 143;

const GRE_CHECKSUM: u16 = 0x8000;
const GRE_KEY: u16 = 0x2000;
const GRE_SEQUENCE: u16 = 0x1000;

/// The port of Geneve (RFC 8926). Its header can also be a valid one of GRE in UDP.
const PORT_GENEVE: u16 = 6081;

/// More of the frame is needed for a decision.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Beyond;

/// Finds the checksum that is still to be computed: its field holds the folded sum of the pseudo-header, which a sender
/// leaves there for hardware to finish. `headers` is the frame's beginning, of which [`HEADERS_LEN_MAX`] bytes are
/// enough.
///
/// A finished checksum has that value by chance once in 65536 frames; finishing it again gives the same right value, so
/// this mistake costs only time.
#[inline]
pub fn find(headers: &[u8], frame_len: usize) -> Result<Option<Partial>, Beyond> {
    let headers = headers
        .get(..headers.len().min(HEADERS_LEN_MAX))
        .unwrap_or(&[]);
    let mut walk = Walk {
        bytes: headers,
        fields: [Field::default(); FIELDS_MAX],
        count: 0,
        steps: 0,
        work: 0,
        beyond: false,
    };
    let whole = Place::Link {
        at: 0,
        end: frame_len,
    };
    let found = walk.find(whole);
    let is_cut = headers.len() < frame_len.min(HEADERS_LEN_MAX);
    match found {
        None if walk.beyond && is_cut => Err(Beyond),
        found => Ok(found),
    }
}

/// Finds the partial checksum of a whole frame: see [`find`], which needs only its beginning.
pub fn find_in(frame: &[u8]) -> Option<Partial> {
    find(frame, frame.len()).ok().flatten()
}

/// An outer checksum that was passed.
#[derive(Clone, Copy, Default)]
struct Field {
    /// Offset where its sum begins.
    start: usize,
    /// Offset of the field from there.
    offset: usize,
    /// Value of the field while the checksum is partial.
    seed: u16,
    /// Whether zero means "no checksum".
    may_lack: bool,
}

/// The next header to parse, and the end of its packet.
#[derive(Clone, Copy)]
enum Place {
    Link {
        at: usize,
        end: usize,
    },
    Type {
        ethertype: u16,
        at: usize,
        end: usize,
    },
    /// IPv4 or IPv6, by its first four bits.
    Ip {
        at: usize,
        end: usize,
    },
    Mpls {
        at: usize,
        end: usize,
    },
    /// The protocol after an IP header; `addresses` is the sum of the addresses in the pseudo-header.
    Protocol {
        protocol: u8,
        at: usize,
        end: usize,
        addresses: u64,
    },
}

struct Walk<'f> {
    bytes: &'f [u8],
    fields: [Field; FIELDS_MAX],
    count: usize,
    steps: u32,
    work: usize,
    /// Whether `bytes` was too short.
    beyond: bool,
}

impl Walk<'_> {
    fn get(&mut self, at: usize, len: usize) -> Option<&[u8]> {
        let found = self.bytes.get(at..at.checked_add(len)?);
        self.beyond |= found.is_none();
        found
    }

    /// Accounts for `bytes` bytes that are processed one by one; `None` if that exceeds the limit.
    fn spend(&mut self, bytes: usize) -> Option<()> {
        self.work += bytes;
        (self.work <= WORK_MAX).then_some(())
    }

    fn byte(&mut self, at: usize) -> Option<u8> {
        self.get(at, 1)?.first().copied()
    }

    fn be16(&mut self, at: usize) -> Option<u16> {
        be16(self.get(at, 2)?, 0)
    }

    /// Finds the innermost partial checksum from `place` on.
    fn find(&mut self, mut place: Place) -> Option<Partial> {
        loop {
            self.steps += 1;
            if self.steps > STEPS_MAX {
                return None;
            }
            place = match place {
                Place::Link { at, end } => Place::Type {
                    ethertype: self.be16(at + 12)?,
                    at: at + 14,
                    end,
                },
                Place::Type { ethertype, at, end } => self.behind_type(ethertype, at, end)?,
                Place::Mpls { at, end } => self.behind_label(at, end)?,
                Place::Ip { at, end } => match self.byte(at)? >> 4 {
                    4 => self.behind_ipv4(at, end)?,
                    6 => self.behind_ipv6(at, end)?,
                    _ => return None,
                },
                Place::Protocol {
                    protocol,
                    at,
                    end,
                    addresses,
                } => match protocol {
                    PROTO_IPIP | PROTO_IPV6 => Place::Ip { at, end },
                    PROTO_MPLS => Place::Mpls { at, end },
                    PROTO_ETHERNET => Place::Link { at, end },
                    PROTO_GRE => return self.find_in_gre(at, end),
                    PROTO_TCP => {
                        let field = transport(protocol, 16, at, end, addresses)?;
                        return self.find_around(field, &[]);
                    }
                    PROTO_UDP => {
                        let field = transport(protocol, 6, at, end, addresses)?;
                        let inside = self.inside_udp(at, end);
                        return self.find_around(field, &inside);
                    }
                    _ => return None,
                },
            };
        }
    }

    /// Finds a partial checksum at one of the places that `field` covers; otherwise checks `field` itself.
    fn find_around(&mut self, field: Field, inside: &[Option<Place>]) -> Option<Partial> {
        *self.fields.get_mut(self.count)? = field;
        self.count += 1;
        let found = inside.iter().flatten().find_map(|place| self.find(*place));
        self.count -= 1;
        found.or_else(|| self.check(field))
    }

    /// Returns `field` if it is partial, and all outer checksums are right once it has been finished.
    fn check(&mut self, field: Field) -> Option<Partial> {
        let value = self.be16(field.start + field.offset)?;
        if !is_same(value, field.seed) {
            return None;
        }
        let around = self.fields.iter().take(self.count);
        let bytes = around.map(|outer| field.start.saturating_sub(outer.start));
        let bytes = bytes.sum();
        self.spend(bytes)?;
        let around = self.fields.get(..self.count)?;
        let bytes = self.bytes;
        let agrees = |outer: &Field| {
            if outer.may_lack && be16(bytes, outer.start + outer.offset) == Some(0) {
                return true;
            }
            // Once finished, the bytes from `field.start` on sum to the complement of the field's current value.
            let between = bytes.get(outer.start..field.start).unwrap_or(&[]);
            let inside = u64::from((!value).to_be()) + u64::from(outer.seed.to_be());
            between.len().is_multiple_of(2) && is_same(fold(sum(between, inside)), 0)
        };
        around.iter().all(agrees).then_some(Partial {
            // Both less than HEADERS_LEN_MAX.
            start: field.start as u16,
            offset: field.offset as u16,
        })
    }

    fn behind_type(&mut self, ethertype: u16, at: usize, end: usize) -> Option<Place> {
        let next = |ethertype, at| Place::Type { ethertype, at, end };
        Some(match ethertype {
            ETHERTYPE_IPV4 | ETHERTYPE_IPV6 => Place::Ip { at, end },
            ETHERTYPE_VLAN | ETHERTYPE_QINQ | ETHERTYPE_QINQ_OLD => {
                next(self.be16(at + 2)?, at + 4)
            }
            ETHERTYPE_MPLS | ETHERTYPE_MPLS_MULTICAST => Place::Mpls { at, end },
            ETHERTYPE_TEB => Place::Link { at, end },
            // Path, size and sequence number (IEC 62439-3).
            ETHERTYPE_HSR => next(self.be16(at + 4)?, at + 6),
            ETHERTYPE_NSH => {
                // Length in words (RFC 8300, 2.2).
                let behind = at + 4 * usize::from(self.be16(at)? & 0x3f);
                behind_next_protocol(self.byte(at + 3)?, behind, end)?
            }
            // After GRE's header (draft-foschiano-erspan). The third kind has an additional part if its last bit is set.
            ETHERTYPE_ERSPAN => Place::Link { at: at + 8, end },
            ETHERTYPE_ERSPAN_III => {
                let more = usize::from(self.byte(at + 11)? & 1) * 8;
                Place::Link {
                    at: at + 12 + more,
                    end,
                }
            }
            _ => return None,
        })
    }

    fn behind_label(&mut self, at: usize, end: usize) -> Option<Place> {
        let is_last = self.byte(at + 2)? & 1 != 0;
        let at = at + 4;
        Some(match is_last {
            false => Place::Mpls { at, end },
            // A control word begins with zero and is followed by Ethernet (RFC 4385).
            true if self.byte(at)? >> 4 == 0 => Place::Link { at: at + 4, end },
            true => Place::Ip { at, end },
        })
    }

    fn behind_ipv4(&mut self, at: usize, end: usize) -> Option<Place> {
        let header_len = usize::from(self.byte(at)? & 0xf) * 4;
        let is_inside = self.count > 0;
        let header = self.get(at, header_len.max(20))?;
        let total = usize::from(be16(header, 2)?);
        let is_fragment = be16(header, 6)? & 0x3fff != 0;
        // The receiver checks the outermost header's checksum. For inner headers it distinguishes a header from random
        // data.
        let is_header = !is_inside || is_same(fold(sum(header, 0)), 0);
        if header_len < 20 || total < header_len || total > end - at.min(end) || is_fragment {
            return None;
        }
        let source = sum(header.get(12..16)?, 0);
        let options = header.get(20..)?;
        let destination = last_hop_ipv4(options).unwrap_or(header.get(16..20)?);
        is_header.then_some(Place::Protocol {
            protocol: *header.get(9)?,
            at: at + header_len,
            end: at + total,
            addresses: sum(destination, source),
        })
    }

    fn behind_ipv6(&mut self, at: usize, end: usize) -> Option<Place> {
        let header = self.get(at, 40)?;
        let len = usize::from(be16(header, 4)?);
        let mut protocol = *header.get(6)?;
        let destination = sum(header.get(24..40)?, 0);
        let source = sum(header.get(8..24)?, 0);
        let mut prefix = [0; 16];
        prefix.copy_from_slice(header.get(24..40)?);
        let packet_end = at + 40 + len;
        if packet_end > end {
            return None;
        }
        let (mut addresses, mut at) = (source + destination, at + 40);
        while let HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS = protocol {
            self.steps += 1;
            if self.steps > STEPS_MAX {
                return None;
            }
            self.get(at, 8)?;
            let (next, behind) = extension(self.bytes, at)?;
            self.spend(behind.saturating_sub(at))?;
            let header = self.get(at, behind - at)?;
            match protocol {
                ROUTING => {
                    if let Some(last) = last_segment(header, &prefix) {
                        addresses = sum(&last, source);
                    }
                }
                DESTINATION_OPTIONS => {
                    if let Some(home) = home_address(header) {
                        // The destination stays; a packet with a mobile node's home address has no routing header.
                        addresses = sum(home, destination);
                    }
                }
                _ => {}
            }
            (protocol, at) = (next, behind);
        }
        (at <= packet_end).then_some(Place::Protocol {
            protocol,
            at,
            end: packet_end,
            addresses,
        })
    }

    /// GRE (RFC 2784, RFC 2890). It may have its own checksum, without a pseudo-header.
    fn find_in_gre(&mut self, at: usize, end: usize) -> Option<Partial> {
        let (flags, ethertype) = (self.be16(at)?, self.be16(at + 2)?);
        if flags & !(GRE_CHECKSUM | GRE_KEY | GRE_SEQUENCE) != 0 {
            return None;
        }
        let has = |flag: u16| usize::from(flags & flag != 0) * 4;
        let behind = at + 4 + has(GRE_CHECKSUM) + has(GRE_KEY) + has(GRE_SEQUENCE);
        // The first kind of ERSPAN has no header, and is recognized by the absence of sequence numbers.
        let inside = match ethertype == ETHERTYPE_ERSPAN && flags & GRE_SEQUENCE == 0 {
            true => Place::Link { at: behind, end },
            false => Place::Type {
                ethertype,
                at: behind,
                end,
            },
        };
        if flags & GRE_CHECKSUM == 0 {
            return self.find(inside);
        }
        let field = Field {
            start: at,
            offset: 4,
            seed: 0,
            may_lack: false,
        };
        self.find_around(field, &[Some(inside)])
    }

    /// Returns what may be inside UDP, the likeliest first. Operators choose the ports of tunnels, so the headers are
    /// more reliable than the ports.
    fn inside_udp(&mut self, at: usize, end: usize) -> [Option<Place>; 5] {
        let port = self.be16(at + 2);
        let head = self.get(at + UDP_HEADER, 8);
        let (Some(port), Some(head)) = (port, head.and_then(|head| head.first_chunk().copied()))
        else {
            return [None; 5];
        };
        let at = at + UDP_HEADER;
        let geneve = inside_geneve(head, at, end);
        let vxlan = inside_vxlan(head, at, end);
        let [gue, gre, mpls] = [inside_gue, inside_gre, inside_mpls].map(|f| f(head, at, end));
        match port {
            PORT_GENEVE => [geneve, vxlan, gue, gre, mpls],
            _ => [vxlan, gue, gre, mpls, geneve],
        }
    }
}

/// Zero has two forms in one's complement.
fn is_same(a: u16, b: u16) -> bool {
    a == b || (a.is_multiple_of(0xffff) && b.is_multiple_of(0xffff))
}

/// Returns the checksum field of TCP or UDP.
fn transport(
    protocol: u8,
    offset: usize,
    start: usize,
    end: usize,
    addresses: u64,
) -> Option<Field> {
    let len = u32::try_from(end.checked_sub(start)?).ok()?;
    let mut rest = [0; 8];
    rest[3] = protocol;
    rest[4..8].copy_from_slice(&len.to_be_bytes());
    Some(Field {
        start,
        offset,
        seed: fold(sum(&rest, addresses)),
        may_lack: protocol == PROTO_UDP,
    })
}

/// Maps the next protocol's number of NSH (RFC 8300, 2.2) and VXLAN-GPE.
fn behind_next_protocol(next: u8, at: usize, end: usize) -> Option<Place> {
    Some(match next {
        1 | 2 => Place::Ip { at, end },
        3 => Place::Link { at, end },
        4 => Place::Type {
            ethertype: ETHERTYPE_NSH,
            at,
            end,
        },
        5 => Place::Mpls { at, end },
        _ => return None,
    })
}

/// VXLAN (RFC 7348), also with a group policy (draft-smith-vxlan-group-policy) or other protocols
/// (draft-ietf-nvo3-vxlan-gpe).
fn inside_vxlan(head: [u8; 8], at: usize, end: usize) -> Option<Place> {
    let inside = at + 8;
    match head {
        [0x08, 0, 0, 0, .., 0] | [0x88, _, _, _, .., 0] => Some(Place::Link { at: inside, end }),
        // Version 0, with a VNI and a next protocol.
        [flags, 0, 0, next, .., 0] if flags & 0xfc == 0x0c => {
            // Numbers 3 and 4 are Ethernet and NSH in both.
            behind_next_protocol(next, inside, end)
        }
        _ => None,
    }
}

/// Geneve (RFC 8926, 3.4).
fn inside_geneve(head: [u8; 8], at: usize, end: usize) -> Option<Place> {
    let [first, flags, high, low, .., 0] = head else {
        return None;
    };
    (first >> 6 == 0 && flags & 0x3f == 0).then_some(Place::Type {
        ethertype: u16::from_be_bytes([high, low]),
        at: at + 8 + usize::from(first & 0x3f) * 4,
        end,
    })
}

/// Generic UDP encapsulation (draft-ietf-intarea-gue), and bare IP, which is its version 1 and used by FOU and bareudp.
fn inside_gue(head: [u8; 8], at: usize, end: usize) -> Option<Place> {
    let [first, protocol, ..] = head;
    match first >> 4 {
        4 | 6 => Some(Place::Ip { at, end }),
        // A data message of version 0. TCP or UDP cannot follow without an IP header: there would be no addresses.
        0 | 1 if !matches!(protocol, 0 | PROTO_TCP | PROTO_UDP) => Some(Place::Protocol {
            protocol,
            at: at + 4 + usize::from(first & 0x1f) * 4,
            end,
            addresses: 0,
        }),
        _ => None,
    }
}

/// MPLS labels (RFC 7510); the first has a time to live.
fn inside_mpls(head: [u8; 8], at: usize, end: usize) -> Option<Place> {
    (head[3] != 0).then_some(Place::Mpls { at, end })
}

/// GRE in UDP (RFC 8086), as made by FOU.
fn inside_gre(head: [u8; 8], at: usize, end: usize) -> Option<Place> {
    let flags = u16::from_be_bytes([head[0], head[1]]);
    let is_gre = flags & !(GRE_CHECKSUM | GRE_KEY | GRE_SEQUENCE) == 0;
    is_gre.then_some(Place::Protocol {
        protocol: PROTO_GRE,
        at,
        end,
        addresses: 0,
    })
}

/// Returns the last hop of a source route in IPv4's options (RFC 791, 3.1) that is not reached yet.
fn last_hop_ipv4(mut options: &[u8]) -> Option<&[u8]> {
    loop {
        match *options.first()? {
            0 => return None,
            1 => options = options.get(1..)?,
            kind => {
                let option = options.get(..usize::from(*options.get(1)?).max(2))?;
                if matches!(kind, 131 | 137) {
                    let is_on_its_way = usize::from(*option.get(2)?) < option.len();
                    let last = option.get(option.len().checked_sub(4)?..)?;
                    return is_on_its_way.then_some(last);
                }
                options = options.get(option.len()..)?;
            }
        }
    }
}

/// Returns the last address of an IPv6 routing header, which is used in the pseudo-header (RFC 8200, 8.1); `None` if no
/// segments are left, or the kind is not known. `prefix` is the IPv6 header's destination.
fn last_segment(header: &[u8], prefix: &[u8; 16]) -> Option<[u8; 16]> {
    const SEGMENTS_LEFT: usize = 3;
    if *header.get(SEGMENTS_LEFT)? == 0 {
        return None;
    }
    match *header.get(2)? {
        // Source route, and a mobile node's (RFC 6275, 6.4): in the order of the visits.
        0 | 2 => header.last_chunk::<16>().copied(),
        // Without the shared prefix, and padded (RFC 6554, 3).
        3 => {
            let elided = usize::from(*header.get(4)? & 0xf);
            let padding = usize::from(*header.get(5)? >> 4);
            let end = header.len().checked_sub(padding)?;
            let last = header.get(end.checked_sub(16 - elided)?..end)?;
            let mut address = *prefix;
            address.get_mut(elided..)?.copy_from_slice(last);
            Some(address)
        }
        // Segment routing: the last segment first (RFC 8754, 2).
        4 => header.get(8..24)?.first_chunk::<16>().copied(),
        _ => None,
    }
}

/// Returns a mobile node's home address, which is the source in the pseudo-header (RFC 6275, 6.3).
fn home_address(header: &[u8]) -> Option<&[u8]> {
    let mut options = header.get(2..)?;
    loop {
        match *options.first()? {
            0 => options = options.get(1..)?,
            kind => {
                let end = 2 + usize::from(*options.get(1)?);
                if kind == 0xc9 {
                    return options.get(2..end).filter(|address| address.len() == 16);
                }
                options = options.get(end..)?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::{finish, pseudo_header};
    use crate::headers::parse_l4;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    proptest! {
        /// With the pseudo-header sum in the field, finished as virtio specifies, the packet is equal to etherparse's.
        #[test]
        fn a_partial_checksum_is_found_and_finished_right(
            v6: bool, tcp: bool, payload in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut frame = Vec::new();
            let eth = PacketBuilder::ethernet2([2; 6], [4; 6]);
            match (v6, tcp) {
                (false, true) => eth.ipv4([10, 1, 2, 3], [10, 9, 8, 7], 64).tcp(1, 2, 3, 4).write(&mut frame, &payload),
                (false, false) => eth.ipv4([10, 1, 2, 3], [10, 9, 8, 7], 64).udp(1, 2).write(&mut frame, &payload),
                (true, true) => eth.ipv6([3; 16], [9; 16], 64).tcp(1, 2, 3, 4).write(&mut frame, &payload),
                (true, false) => eth.ipv6([3; 16], [9; 16], 64).udp(1, 2).write(&mut frame, &payload),
            }.unwrap();
            let whole = frame.clone();
            let l4 = parse_l4(&frame).unwrap();
            let at = l4.offset + l4.checksum_offset().unwrap();
            let pseudo = pseudo_header(&frame, &l4).unwrap();
            frame[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
            let partial = find_in(&frame).expect("the field holds the pseudo-header sum");
            prop_assert_eq!(usize::from(partial.start + partial.offset), at);
            let done = finish(sum(&frame[partial.start.into()..], 0));
            frame[at..at + 2].copy_from_slice(&done.to_be_bytes());
            prop_assert_eq!(frame, whole);
        }
    }
}
