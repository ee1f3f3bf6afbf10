//! The messages of IPFIX (RFC 7011) that the switch sends: templates, and records of connections in both directions (RFC 5103).
//! Information elements are those of the IANA registry.

use std::net::IpAddr;

/// The longest message, bytes: it fits an MTU of 1500 with IPv6 and a tunnel's header.
pub(super) const MESSAGE_LEN_MAX: usize = 1400;
/// The longest name in a record, bytes: its length takes one byte (RFC 7011, 7).
pub(super) const NAME_LEN_MAX: usize = 254;
/// Version of the messages (RFC 7011, 3.1), and the length of their header.
const VERSION: u16 = 10;
const HEADER_LEN: usize = 16;
/// Number of the set of templates (RFC 7011, 3.3.2), and length of a set's header.
const TEMPLATE_SET: u16 = 2;
const SET_HEADER_LEN: usize = 4;
/// Private enterprise number of elements of the other direction (RFC 5103, 6.1).
const REVERSE_PEN: u32 = 29305;
/// In place of a length: each record has its own (RFC 7011, 7).
const VARIABLE: u16 = u16::MAX;
/// `biflowDirection`: the source is the initiator (RFC 5103, 6.3).
const INITIATOR: u8 = 1;

/// What a record is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum What {
    Begun,
    /// A connection that goes on, after the active timeout.
    Goes,
    Idle,
    Closed,
    Forced,
    Denied,
}

impl What {
    /// The value of `firewallEvent` (233): created, deleted, denied, updated.
    fn event(self) -> u8 {
        match self {
            What::Begun => 1,
            What::Idle | What::Closed | What::Forced => 2,
            What::Denied => 3,
            What::Goes => 5,
        }
    }

    /// The value of `flowEndReason` (136). What is denied has no better one than "forced end".
    fn end_reason(self) -> u8 {
        match self {
            What::Idle => 1,
            What::Begun | What::Goes => 2,
            What::Closed => 3,
            What::Forced | What::Denied => 4,
        }
    }
}

/// A record of a connection. Index 0: from the originator; 1: the other way.
#[derive(Clone, Debug)]
pub(super) struct Record<'r> {
    pub what: What,
    /// Milliseconds since 1970.
    pub began_ms: u64,
    pub ended_ms: u64,
    pub source: (IpAddr, u16),
    pub destination: (IpAddr, u16),
    pub protocol: u8,
    pub octets: [u64; 2],
    pub packets: [u64; 2],
    /// Whether the guest of the port has begun it: then it came into the switch at the port.
    pub is_from_guest: bool,
    pub vlan: u16,
    pub port: &'r str,
    pub bridge: &'r str,
}

/// An element of a template: its number, its length, and whether it is of the other direction.
type Element = (u16, u16, bool);

/// The elements of each template, in the order of [`Record::put`].
fn elements(is_v6: bool, has_counts: bool) -> Vec<Element> {
    let (source, destination, len) = match is_v6 {
        false => (8, 12, 4),
        true => (27, 28, 16),
    };
    let mut all = vec![
        // flowStartMilliseconds, addresses, ports, protocolIdentifier, firewallEvent, flowDirection, biflowDirection, vlanId.
        (152, 8, false),
        (source, len, false),
        (destination, len, false),
        (7, 2, false),
        (11, 2, false),
        (4, 1, false),
        (233, 1, false),
        (61, 1, false),
        (239, 1, false),
        (58, 2, false),
    ];
    if has_counts {
        // flowEndMilliseconds, flowEndReason, octetDeltaCount and packetDeltaCount in both directions.
        all.extend([(153, 8, false), (136, 1, false)]);
        all.extend([(1, 8, false), (2, 8, false), (1, 8, true), (2, 8, true)]);
    }
    // interfaceName, VRFname.
    all.extend([(82, VARIABLE, false), (236, VARIABLE, false)]);
    all
}

/// The numbers of the templates: IPv4 and IPv6, of connections that begin and of all others.
const TEMPLATES: [(u16, bool, bool); 4] = [
    (256, false, true),
    (257, true, true),
    (258, false, false),
    (259, true, false),
];

/// Records that wait to be sent together, in the sets of one message.
#[derive(Debug, Default)]
pub(super) struct Message {
    bytes: Vec<u8>,
    /// The template of the last set, and where that set begins.
    open: Option<(u16, usize)>,
    records: u32,
}

impl Record<'_> {
    fn is_v6(&self) -> bool {
        self.source.0.is_ipv6() || self.destination.0.is_ipv6()
    }

    fn template(&self) -> u16 {
        let has_counts = self.what != What::Begun;
        let of =
            |(_, v6, counts): &&(u16, bool, bool)| (*v6, *counts) == (self.is_v6(), has_counts);
        TEMPLATES
            .iter()
            .find(of)
            .map_or(256, |(number, ..)| *number)
    }

    fn put(&self, out: &mut Vec<u8>) {
        out.extend(self.began_ms.to_be_bytes());
        for (address, _) in [self.source, self.destination] {
            match (address, self.is_v6()) {
                (IpAddr::V4(address), false) => out.extend(address.octets()),
                (IpAddr::V4(address), true) => out.extend(address.to_ipv6_mapped().octets()),
                (IpAddr::V6(address), _) => out.extend(address.octets()),
            }
        }
        for (_, port) in [self.source, self.destination] {
            out.extend(port.to_be_bytes());
        }
        let direction = u8::from(!self.is_from_guest);
        out.extend([self.protocol, self.what.event(), direction, INITIATOR]);
        out.extend(self.vlan.to_be_bytes());
        if self.what != What::Begun {
            out.extend(self.ended_ms.to_be_bytes());
            out.push(self.what.end_reason());
            for side in 0..2 {
                out.extend(self.octets[side].to_be_bytes());
                out.extend(self.packets[side].to_be_bytes());
            }
        }
        put_name(out, self.port);
        put_name(out, self.bridge);
    }
}

/// A text of variable length, cut at [`NAME_LEN_MAX`].
fn put_name(out: &mut Vec<u8>, name: &str) {
    let bytes = name.as_bytes();
    let bytes = bytes.get(..NAME_LEN_MAX).unwrap_or(bytes);
    out.push(bytes.len() as u8);
    out.extend(bytes);
}

impl Message {
    /// Whether there is nothing to send.
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Adds the templates, before any record.
    pub(super) fn add_templates(&mut self) {
        self.open(TEMPLATE_SET);
        for (number, is_v6, has_counts) in TEMPLATES {
            let elements = elements(is_v6, has_counts);
            self.bytes.extend(number.to_be_bytes());
            self.bytes.extend((elements.len() as u16).to_be_bytes());
            for (element, len, is_reverse) in elements {
                let element = element | u16::from(is_reverse) << 15;
                self.bytes.extend(element.to_be_bytes());
                self.bytes.extend(len.to_be_bytes());
                if is_reverse {
                    self.bytes.extend(REVERSE_PEN.to_be_bytes());
                }
            }
        }
    }

    /// Adds a record. Returns `false`, and adds nothing, if there is no room for it.
    pub(super) fn add(&mut self, record: &Record<'_>) -> bool {
        let before = (self.bytes.len(), self.open);
        self.open(record.template());
        record.put(&mut self.bytes);
        if HEADER_LEN + self.bytes.len() > MESSAGE_LEN_MAX {
            self.bytes.truncate(before.0);
            self.open = before.1;
            return false;
        }
        self.records += 1;
        true
    }

    /// Begins a set, unless the last one has the same number.
    fn open(&mut self, number: u16) {
        if self.open.is_some_and(|(open, _)| open == number) {
            return;
        }
        self.close();
        self.open = Some((number, self.bytes.len()));
        self.bytes.extend(number.to_be_bytes());
        self.bytes.extend([0; 2]);
    }

    /// Writes the length of the last set.
    fn close(&mut self) {
        if let Some((_, at)) = self.open.take() {
            let len = (self.bytes.len() - at) as u16;
            if let Some(field) = self.bytes.get_mut(at + 2..at + SET_HEADER_LEN) {
                field.copy_from_slice(&len.to_be_bytes());
            }
        }
    }

    /// Makes the message of what there is, and forgets it. `sequence`: the number of records sent before (RFC 7011, 3.1).
    /// Returns how many records it has.
    pub(super) fn finish(
        &mut self,
        (time_s, sequence, domain): (u32, u32, u32),
        datagram: &mut Vec<u8>,
    ) -> u32 {
        self.close();
        datagram.clear();
        datagram.extend(VERSION.to_be_bytes());
        datagram.extend(((HEADER_LEN + self.bytes.len()) as u16).to_be_bytes());
        for word in [time_s, sequence, domain] {
            datagram.extend(word.to_be_bytes());
        }
        datagram.append(&mut self.bytes);
        std::mem::take(&mut self.records)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    /// The fields of a template: element, length, enterprise.
    type Fields = Vec<(u16, u16, u32)>;
    /// A record as a collector reads it: values by element and enterprise.
    type Read = HashMap<(u16, u32), Vec<u8>>;

    fn take<'b>(bytes: &mut &'b [u8], len: usize) -> &'b [u8] {
        let (first, rest) = bytes.split_at(len);
        *bytes = rest;
        first
    }

    fn number(bytes: &[u8]) -> u64 {
        bytes
            .iter()
            .fold(0, |all, byte| all << 8 | u64::from(*byte))
    }

    fn word(bytes: &mut &[u8]) -> u16 {
        number(take(bytes, 2)) as u16
    }

    /// A reader that knows only RFC 7011: everything else comes from the templates.
    fn read(mut message: &[u8], templates: &mut HashMap<u16, Fields>) -> (u64, Vec<Read>) {
        assert!(message.len() <= MESSAGE_LEN_MAX);
        let whole = message.len();
        let header = take(&mut message, 16);
        assert_eq!(
            (number(&header[..2]), number(&header[2..4])),
            (10, whole as u64)
        );
        let mut records = Vec::new();
        while !message.is_empty() {
            let (set, len) = (word(&mut message), word(&mut message));
            let mut content = take(&mut message, usize::from(len) - 4);
            while !content.is_empty() {
                if set == 2 {
                    let (id, count) = (word(&mut content), word(&mut content));
                    let fields = (0..count).map(|_| {
                        let (id, len) = (word(&mut content), word(&mut content));
                        let pen = if id >> 15 == 1 {
                            number(take(&mut content, 4)) as u32
                        } else {
                            0
                        };
                        (id & 0x7fff, len, pen)
                    });
                    templates.insert(id, fields.collect());
                    continue;
                }
                let fields = &templates[&set];
                records.push(
                    fields
                        .iter()
                        .map(|(id, len, pen)| {
                            let len = match *len {
                                u16::MAX => number(take(&mut content, 1)) as usize,
                                len => usize::from(len),
                            };
                            ((*id, *pen), take(&mut content, len).to_vec())
                        })
                        .collect(),
                );
            }
        }
        (number(&header[8..12]), records)
    }

    const ALL: [What; 6] = [
        What::Begun,
        What::Goes,
        What::Idle,
        What::Closed,
        What::Forced,
        What::Denied,
    ];

    proptest! {
        /// A collector that knows only RFC 7011 and 5103 finds each field of every record, in messages within the MTU, whatever
        /// the records are; and the sequence number of a message is the number of records before it.
        #[test]
        fn records_are_read_back(
            records in prop::collection::vec((any::<[u64; 6]>(), any::<u128>(), 0usize..6, any::<bool>(), "[a-z]{0,300}"), 1..60),
        ) {
            let (mut templates, mut message) = (HashMap::new(), Message::default());
            let (mut datagram, mut sent, mut got) = (Vec::new(), 0, Vec::new());
            message.add_templates();
            let made: Vec<Record<'_>> = records.iter().map(|(words, address, what, is_v6, name)| {
                let address = match is_v6 {
                    true => IpAddr::from(address.to_be_bytes()),
                    false => IpAddr::from((*address as u32).to_be_bytes()),
                };
                Record {
                    what: ALL[*what], began_ms: words[0], ended_ms: words[1], source: (address, words[2] as u16),
                    destination: (address, 53), protocol: 17, octets: [words[2], words[3]], packets: [words[4], words[5]],
                    is_from_guest: *is_v6, vlan: words[1] as u16, port: name, bridge: "blue",
                }
            }).collect();
            let mut finish = |message: &mut Message| {
                let records = message.finish((7, sent, 9), &mut datagram);
                let (sequence, read) = read(&datagram, &mut templates);
                assert_eq!((sequence, read.len()), (u64::from(sent), records as usize));
                sent += records;
                got.extend(read);
            };
            for record in &made {
                if !message.add(record) {
                    finish(&mut message);
                    prop_assert!(message.add(record));
                }
            }
            finish(&mut message);
            prop_assert_eq!(got.len(), made.len());
            for (record, got) in made.iter().zip(&got) {
                let value = |id: u16| number(&got[&(id, 0)]);
                let (source, destination) = if record.is_v6() { (27, 28) } else { (8, 12) };
                let octets = |address: IpAddr| match address {
                    IpAddr::V4(address) => address.octets().to_vec(),
                    IpAddr::V6(address) => address.octets().to_vec(),
                };
                prop_assert_eq!(&got[&(source, 0)], &octets(record.source.0));
                prop_assert_eq!(&got[&(destination, 0)], &octets(record.destination.0));
                prop_assert_eq!((value(7), value(11), value(4)), (u64::from(record.source.1), 53, 17));
                prop_assert_eq!((value(152), value(58)), (record.began_ms, record.vlan.into()));
                prop_assert_eq!((value(233), value(61)), (record.what.event().into(), u64::from(!record.is_from_guest)));
                let name = record.port.as_bytes();
                prop_assert_eq!(&got[&(82, 0)][..], &name[..name.len().min(NAME_LEN_MAX)]);
                prop_assert_eq!(&got[&(236, 0)][..], b"blue");
                if record.what != What::Begun {
                    prop_assert_eq!((value(153), value(136)), (record.ended_ms, record.what.end_reason().into()));
                    let both = |id: u16| [0, REVERSE_PEN].map(|pen| number(&got[&(id, pen)]));
                    prop_assert_eq!((both(1), both(2)), (record.octets, record.packets));
                }
            }
        }
    }

    /// The templates alone fit a message, with room for a record with the longest names.
    #[test]
    fn templates_and_the_longest_record_fit_a_message() {
        let mut message = Message::default();
        message.add_templates();
        let name = "n".repeat(NAME_LEN_MAX + 1);
        let address = IpAddr::from([1; 16]);
        let record = Record {
            what: What::Idle,
            began_ms: 1,
            ended_ms: 2,
            source: (address, 1),
            destination: (address, 2),
            protocol: 6,
            octets: [1; 2],
            packets: [1; 2],
            is_from_guest: true,
            vlan: 1,
            port: &name,
            bridge: &name,
        };
        assert!(message.add(&record) && message.records == 1 && !message.is_empty());
    }
}
