//! The datagrams of sFlow version 5 (<https://sflow.org/sflow_version_5.txt>, section 5, in XDR). Only what the switch
//! sends: flow samples with a raw packet header and VLANs, and counter samples of interfaces.

use std::net::IpAddr;

/// The longest datagram, bytes: it fits an MTU of 1500 with IPv6 and a tunnel's header.
pub(super) const DATAGRAM_LEN_MAX: usize = 1400;
/// Version of the datagrams.
const VERSION: u32 = 5;
/// Formats of `sample_data`, compact: interface numbers are below 2^24.
const FLOW_SAMPLE: u32 = 1;
const COUNTERS_SAMPLE: u32 = 2;
/// Formats of `flow_data`.
const RAW_PACKET_HEADER: u32 = 1;
const EXTENDED_SWITCH: u32 = 1001;
/// Formats of `counter_data`. The second is defined in <https://sflow.org/sflow_openflow.txt>.
const GENERIC_INTERFACE: u32 = 1;
const PORT_NAME: u32 = 1005;
/// `header_protocol` of Ethernet.
const ETHERNET: u32 = 1;
/// Lengths of frames count the frame check sequence, and it is stripped from the sampled header.
const FCS_LEN: u32 = 4;
/// `ifType` of Ethernet, and `ifDirection` of full duplex.
const ETHERNET_CSMACD: u32 = 6;
const FULL_DUPLEX: u32 = 1;
/// The value of a counter that is not kept.
const UNKNOWN: u32 = u32::MAX;

/// Where a sampled frame goes: the field `output`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Output {
    /// Format 0: the interface with this number; 0 if it is not known.
    Interface(u32),
    /// Format 1: discarded, for this reason.
    Discarded(u32),
    /// Format 2: to this many interfaces; 0 if their number is not known.
    Several(u32),
}

impl Output {
    fn value(self) -> u32 {
        let (format, value) = match self {
            Output::Interface(index) => (0, index),
            Output::Discarded(reason) => (1, reason),
            Output::Several(count) => (2, count),
        };
        format << 30 | (value & 0x3fff_ffff)
    }
}

/// A sampled frame.
#[derive(Clone, Debug)]
pub(super) struct FlowSample<'s> {
    /// Number of this sample at its source.
    pub sequence: u32,
    /// The interface that it was received on, which is the source.
    pub input: u32,
    pub output: Output,
    /// How many frames there are for each sample, on average.
    pub sampling: u32,
    /// Frames that could have been sampled.
    pub pool: u32,
    /// Samples that were lost for lack of room.
    pub drops: u32,
    /// Length of the frame, without its frame check sequence.
    pub frame_len: u32,
    pub header: &'s [u8],
    pub vlan: u32,
    pub priority: u32,
}

/// An interface's counters.
#[derive(Clone, Debug, Default)]
pub(super) struct Counters<'s> {
    /// Number of this sample at its source.
    pub sequence: u32,
    pub index: u32,
    pub name: &'s str,
    pub is_enabled: bool,
    pub is_up: bool,
    pub in_octets: u64,
    /// All frames; some of them are multicasts or broadcasts.
    pub in_frames: u64,
    pub in_multicasts: u64,
    pub in_broadcasts: u64,
    pub in_discards: u64,
    pub out_octets: u64,
    pub out_frames: u64,
    pub out_discards: u64,
}

/// Samples that are sent together.
#[derive(Debug, Default)]
pub(super) struct Samples {
    bytes: Vec<u8>,
    /// Their number: of frames, and of counters.
    flows: u32,
    counters: u32,
}

/// The beginning of a datagram.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header {
    pub agent: Option<IpAddr>,
    pub sequence: u32,
    pub uptime_ms: u32,
}

impl Samples {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Whether a datagram has room for these samples and `other`.
    pub(super) fn has_room_for(&self, other: &Samples) -> bool {
        Header::LEN_MAX + self.bytes.len() + other.bytes.len() <= DATAGRAM_LEN_MAX
    }

    pub(super) fn append(&mut self, other: &mut Samples) {
        self.bytes.append(&mut other.bytes);
        self.flows += std::mem::take(&mut other.flows);
        self.counters += std::mem::take(&mut other.counters);
    }

    /// Adds a flow sample: `flow_sample`, with `sampled_header` and `extended_switch`.
    pub(super) fn add_flow(&mut self, sample: &FlowSample<'_>) {
        self.flows += 1;
        record(&mut self.bytes, FLOW_SAMPLE, |out| {
            // The source's type, an interface, is 0 in the first byte.
            for word in [
                sample.sequence,
                sample.input,
                sample.sampling,
                sample.pool,
                sample.drops,
                sample.input,
                sample.output.value(),
                2,
            ] {
                put(out, word);
            }
            record(out, RAW_PACKET_HEADER, |out| {
                put(out, ETHERNET);
                put(out, sample.frame_len + FCS_LEN);
                put(out, FCS_LEN);
                put_opaque(out, sample.header);
            });
            record(out, EXTENDED_SWITCH, |out| {
                // A bridge does not change the VLAN; that of an untagged port is the one that it is assigned to.
                for _side in ["src", "dst"] {
                    put(out, sample.vlan);
                    put(out, sample.priority);
                }
            });
        });
    }

    /// Adds a counter sample: `counters_sample`, with `if_counters` and `port_name`.
    pub(super) fn add_counters(&mut self, of: &Counters<'_>) {
        self.counters += 1;
        record(&mut self.bytes, COUNTERS_SAMPLE, |out| {
            for word in [of.sequence, of.index, 2] {
                put(out, word);
            }
            record(out, GENERIC_INTERFACE, |out| {
                put_if_counters(out, of);
            });
            record(out, PORT_NAME, |out| put_opaque(out, of.name.as_bytes()));
        });
    }

    /// Makes the datagram of these samples, and forgets them. Returns how many are of frames, and how many of counters.
    pub(super) fn finish(&mut self, header: Header, datagram: &mut Vec<u8>) -> (u32, u32) {
        datagram.clear();
        header.put(datagram);
        let counts = (
            std::mem::take(&mut self.flows),
            std::mem::take(&mut self.counters),
        );
        put(datagram, counts.0 + counts.1);
        datagram.append(&mut self.bytes);
        counts
    }
}

impl Header {
    /// Version, address with its type, sub-agent, sequence number, uptime, number of samples.
    const LEN_MAX: usize = 4 + 20 + 16;

    fn put(self, out: &mut Vec<u8>) {
        put(out, VERSION);
        match self.agent {
            None => put(out, 0),
            Some(IpAddr::V4(address)) => {
                put(out, 1);
                out.extend(address.octets());
            }
            Some(IpAddr::V6(address)) => {
                put(out, 2);
                out.extend(address.octets());
            }
        }
        let sub_agent = 0;
        for word in [sub_agent, self.sequence, self.uptime_ms] {
            put(out, word);
        }
    }
}

/// `if_counters`, as in RFC 2233. Counters of 32 bits wrap.
fn put_if_counters(out: &mut Vec<u8>, of: &Counters<'_>) {
    let status = u32::from(of.is_enabled) | u32::from(of.is_up) << 1;
    put(out, of.index);
    put(out, ETHERNET_CSMACD);
    // The speed is not known: a guest has none.
    put_long(out, 0);
    put(out, FULL_DUPLEX);
    put(out, status);
    let unicasts = of
        .in_frames
        .saturating_sub(of.in_multicasts + of.in_broadcasts);
    let (errors, unknown_protocols) = (0, 0);
    put_long(out, of.in_octets);
    for count in [
        unicasts,
        of.in_multicasts,
        of.in_broadcasts,
        of.in_discards,
        errors,
        unknown_protocols,
    ] {
        put(out, count as u32);
    }
    put_long(out, of.out_octets);
    put(out, of.out_frames as u32);
    // Sent frames are not counted by kind.
    put(out, UNKNOWN);
    put(out, UNKNOWN);
    put(out, of.out_discards as u32);
    put(out, errors as u32);
    let promiscuous = 0;
    put(out, promiscuous);
}

/// A record: its format, its length, its content.
fn record(out: &mut Vec<u8>, format: u32, content: impl FnOnce(&mut Vec<u8>)) {
    put(out, format);
    let place = out.len();
    put(out, 0);
    content(out);
    let len = (out.len() - place - 4) as u32;
    if let Some(field) = out.get_mut(place..place + 4) {
        field.copy_from_slice(&len.to_be_bytes());
    }
}

fn put(out: &mut Vec<u8>, word: u32) {
    out.extend(word.to_be_bytes());
}

fn put_long(out: &mut Vec<u8>, word: u64) {
    out.extend(word.to_be_bytes());
}

/// Bytes of variable length, filled up to a multiple of four.
fn put_opaque(out: &mut Vec<u8>, bytes: &[u8]) {
    put(out, bytes.len() as u32);
    out.extend(bytes);
    out.resize(out.len() + bytes.len().wrapping_neg() % 4, 0);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use sflow_parser::models::{CounterData, FlowData, SFlowDatagram, SampleData};
    use sflow_parser::parsers::parse_datagram;

    use super::*;

    fn parsed(samples: &mut Samples, agent: Option<IpAddr>) -> SFlowDatagram {
        let header = Header {
            agent,
            sequence: 17,
            uptime_ms: 12_345,
        };
        let mut datagram = Vec::new();
        samples.finish(header, &mut datagram);
        assert!(datagram.len() <= DATAGRAM_LEN_MAX && samples.is_empty());
        parse_datagram(&datagram).expect("a datagram of sFlow version 5")
    }

    proptest! {
        /// An independent parser finds every field of a flow sample, for any length of the header.
        #[test]
        fn flow_samples_are_read_back(
            header in prop::collection::vec(any::<u8>(), 0..=256),
            words in prop::array::uniform6(any::<u32>()),
            input in 1u32..1 << 24, kind in 0usize..3, vlan in 0u32..4095,
        ) {
            let [sequence, sampling, pool, drops, frame_len, value] = words;
            let value = value & 0x3fff_ffff;
            let output = [Output::Interface(value), Output::Discarded(value), Output::Several(value)][kind];
            let mut samples = Samples::default();
            samples.add_flow(&FlowSample {
                sequence, input, output, sampling, pool, drops, vlan, priority: 5,
                frame_len: frame_len / 2, header: &header,
            });
            let datagram = parsed(&mut samples, Some([10, 1, 2, 3].into()));
            prop_assert_eq!((datagram.sequence_number, datagram.uptime, datagram.sub_agent_id), (17, 12_345, 0));
            let [sample] = &datagram.samples[..] else { panic!("{datagram:?}") };
            let SampleData::FlowSample(flow) = &sample.sample_data else { panic!("{sample:?}") };
            prop_assert_eq!((flow.sequence_number, flow.sampling_rate), (sequence, sampling));
            prop_assert_eq!((flow.sample_pool, flow.drops), (pool, drops));
            prop_assert_eq!((flow.source_id.index(), flow.input.value()), (input, input));
            prop_assert_eq!(flow.output.0, (kind as u32) << 30 | value);
            let [raw, switch] = &flow.flow_records[..] else { panic!("{flow:?}") };
            let FlowData::SampledHeader(raw) = &raw.flow_data else { panic!("{raw:?}") };
            prop_assert_eq!((raw.frame_length, raw.stripped), (frame_len / 2 + 4, 4));
            prop_assert_eq!(&raw.header, &header);
            let FlowData::ExtendedSwitch(switch) = &switch.flow_data else { panic!("{switch:?}") };
            let vlans = (switch.src_vlan, switch.dst_vlan, switch.src_priority, switch.dst_priority);
            prop_assert_eq!(vlans, (vlan, vlan, 5, 5));
        }
    }

    #[test]
    fn counter_samples_are_read_back() {
        let counters = Counters {
            sequence: 3,
            index: 7,
            name: "web-1",
            is_enabled: true,
            is_up: true,
            in_octets: 1 << 40,
            in_frames: (1 << 32) + 100,
            in_multicasts: 20,
            in_broadcasts: 30,
            in_discards: 4,
            out_octets: 5,
            out_frames: 6,
            out_discards: 8,
        };
        let mut samples = Samples::default();
        samples.add_counters(&counters);
        let datagram = parsed(&mut samples, "2001:db8::1".parse().ok());
        let [sample] = &datagram.samples[..] else {
            panic!("{datagram:?}")
        };
        let SampleData::CountersSample(sample) = &sample.sample_data else {
            panic!("{sample:?}")
        };
        assert_eq!((sample.sequence_number, sample.source_id.index()), (3, 7));
        let [generic, name] = &sample.counters[..] else {
            panic!("{sample:?}")
        };
        let CounterData::GenericInterface(of) = &generic.counter_data else {
            panic!("{generic:?}")
        };
        assert_eq!((of.if_index, of.if_type, of.if_status), (7, 6, 3));
        assert_eq!((of.if_in_octets, of.if_in_ucast_pkts), (1 << 40, 50));
        let kinds = (of.if_in_multicast_pkts, of.if_in_broadcast_pkts);
        assert_eq!(kinds, (20, 30));
        assert_eq!((of.if_in_discards, of.if_out_discards), (4, 8));
        assert_eq!((of.if_out_octets, of.if_out_ucast_pkts), (5, 6));
        assert_eq!(of.if_out_multicast_pkts, UNKNOWN);
        assert!(format!("{name:?}").contains("web-1"), "{name:?}");
    }
}
