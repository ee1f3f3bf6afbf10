//! Writes the seeds of the fuzz targets, `seeds/TARGET/NAME`: the rings, frames and sessions of tests, including the
//! hostile ones. Run it in this folder after a change of a target's input format; the files are committed.

mod sessions;

use std::fs;

use etherparse::PacketBuilder;

const BASE: u64 = 0x1_0000;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;
/// Entries of every ring here: what the first two bits of the second byte choose.
const SIZE: usize = 16;
/// Bytes of each guest's image: rings, a table, a frame.
const LEN: usize = 0x400;
const TABLE: u64 = 0x200;
const FRAME: u64 = 0x300;

/// A descriptor: address, length, flags, next.
type Descriptor = (u64, u32, u16, u16);

fn main() -> std::io::Result<()> {
    for (name, bytes) in rings() {
        write("split_ring", name, &bytes)?;
    }
    for (name, bytes) in packed_rings() {
        write("packed_ring", name, &bytes)?;
    }
    for (name, bytes) in frames() {
        write("frame_parser", name, &bytes)?;
    }
    for (name, bytes) in sessions::all() {
        write("message_reader", name, &bytes)?;
    }
    Ok(())
}

fn write(target: &str, name: &str, bytes: &[u8]) -> std::io::Result<()> {
    fs::create_dir_all(format!("seeds/{target}"))?;
    fs::write(format!("seeds/{target}/{name}"), bytes)
}

/// One guest's memory: a ring with these descriptors, the first `offered` of which are available, a table, a frame.
fn image(descriptors: &[Descriptor], offered: u16, table: &[Descriptor]) -> Vec<u8> {
    let mut bytes = vec![0; LEN];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    for (at, list) in [(0, descriptors), (TABLE as usize, table)] {
        for (i, (address, len, flags, next)) in list.iter().enumerate() {
            put(at + 16 * i, &address.to_le_bytes());
            put(at + 16 * i + 8, &len.to_le_bytes());
            put(at + 16 * i + 12, &flags.to_le_bytes());
            put(at + 16 * i + 14, &next.to_le_bytes());
        }
    }
    let available = 16 * SIZE;
    put(available + 2, &offered.to_le_bytes());
    for i in 0..SIZE {
        put(available + 4 + 2 * i, &(i as u16).to_le_bytes());
    }
    put(FRAME as usize + 12, &[0xff; 6]);
    put(FRAME as usize + 24, &[0x08, 0x00]);
    bytes
}

/// The parameters of both sides: features, sizes, bases, tag.
fn ring(features: u8, tag: u8, sender: &[u8], receiver: &[u8]) -> Vec<u8> {
    // Size 2 of 4 for both rings.
    [
        &[features, 2 | 2 << 2, 0, 0, 0, 0, tag, 0],
        sender,
        receiver,
    ]
    .concat()
}

fn rings() -> Vec<(&'static str, Vec<u8>)> {
    let frame = BASE + FRAME;
    let plain: Vec<Descriptor> = (0..SIZE).map(|_| (frame, 112, 0, 0)).collect();
    let buffers: Vec<Descriptor> = (0..SIZE)
        .map(|i| (BASE + 0x400 + 128 * i as u64, 128, WRITE, 0))
        .collect();
    let (good, room) = (image(&plain, 8, &[]), image(&buffers, 16, &[]));
    let everything = 0x3f;
    let sending = |descriptors: &[Descriptor], table: &[Descriptor]| {
        ring(everything, 0, &image(descriptors, 1, table), &room)
    };
    let receiving = |descriptors: &[Descriptor], table: &[Descriptor]| {
        ring(everything, 0, &good, &image(descriptors, 1, table))
    };
    let table = BASE + TABLE;
    vec![
        ("plain", ring(everything, 0, &good, &room)),
        ("legacy", ring(0, 0, &good, &room)),
        ("tag_pushed", ring(3, 1, &good, &room)),
        ("tag_popped", ring(3, 2, &good, &room)),
        (
            "available_jumps",
            ring(everything, 0, &image(&plain, 60_000, &[]), &room),
        ),
        (
            "chain",
            sending(
                &[
                    (frame, 12, NEXT, 1),
                    (frame + 12, 60, NEXT, 2),
                    (frame, 40, 0, 0),
                ],
                &[],
            ),
        ),
        (
            "chain_loops",
            sending(&[(frame, 12, NEXT, 1), (frame, 12, NEXT, 0)], &[]),
        ),
        ("next_beyond", sending(&[(frame, 12, NEXT, 16)], &[])),
        (
            "table",
            sending(
                &[(table, 32, INDIRECT, 0)],
                &[(frame, 12, NEXT, 1), (frame, 60, 0, 0)],
            ),
        ),
        (
            "table_in_table",
            sending(&[(table, 16, INDIRECT, 0)], &[(table, 16, INDIRECT, 0)]),
        ),
        ("table_odd", sending(&[(table, 17, INDIRECT, 0)], &[])),
        (
            "table_over_the_end",
            sending(&[(BASE + 0xfff8, 16, INDIRECT, 0)], &[]),
        ),
        (
            "over_two_regions",
            sending(&[(BASE + 0x7ff0, 100, 0, 0)], &[]),
        ),
        (
            "address_overflows",
            sending(&[(u64::MAX, u32::MAX, 0, 0)], &[]),
        ),
        (
            "empty",
            sending(&[(frame, 0, NEXT, 1), (frame, 0, 0, 0)], &[]),
        ),
        ("write_only", sending(&[(frame, 100, WRITE, 0)], &[])),
        (
            "oversize",
            sending(&[(BASE, 0xffff, NEXT, 1), (BASE, 0xffff, 0, 0)], &[]),
        ),
        ("far_region", sending(&[(1 << 40, 100, 0, 0)], &[])),
        (
            "receive_chain",
            receiving(
                &[
                    (BASE + 0x400, 30, WRITE | NEXT, 1),
                    (BASE + 0x500, 200, WRITE, 0),
                ],
                &[],
            ),
        ),
        (
            "receive_table",
            receiving(
                &[(table, 32, INDIRECT, 0)],
                &[
                    (BASE + 0x400, 10, WRITE | NEXT, 1),
                    (BASE + 0x500, 200, WRITE, 0),
                ],
            ),
        ),
        (
            "receive_read_only",
            receiving(&[(BASE + 0x400, 200, 0, 0)], &[]),
        ),
        (
            "receive_into_the_ring",
            receiving(&[(BASE, 300, WRITE, 0)], &[]),
        ),
        (
            "receive_end",
            receiving(&[(BASE + 0xffff, 200, WRITE, 0)], &[]),
        ),
    ]
}

/// AVAIL flag of a packed descriptor, in the first lap.
const AVAIL: u16 = 1 << 7;

/// The same for packed rings: their descriptors have the buffer id where a split ring's have the flags, and the flags
/// where a split ring's have `next`.
fn packed_rings() -> Vec<(&'static str, Vec<u8>)> {
    let frame = BASE + FRAME;
    let packed = |(i, (address, len, flags)): (usize, (u64, u32, u16))| {
        (address, len, i as u16, flags | AVAIL)
    };
    let image = |list: &[(u64, u32, u16)], table: &[(u64, u32, u16)]| {
        let of = |list: &[(u64, u32, u16)]| -> Vec<Descriptor> {
            list.iter().copied().enumerate().map(packed).collect()
        };
        let mut bytes = image(&of(list), 0, &of(table));
        // No event is requested; the split ring's heads are removed.
        bytes[16 * SIZE..16 * SIZE + 4 + 2 * SIZE].fill(0);
        bytes
    };
    let buffers: Vec<_> = (0..SIZE)
        .map(|i| (BASE + 0x400 + 128 * i as u64, 128, WRITE))
        .collect();
    let (good, room) = (image(&[(frame, 112, 0); 8], &[]), image(&buffers, &[]));
    let ring = |features: u8, tag: u8, sender: &[u8], receiver: &[u8]| {
        let mut bytes = ring(features, tag, sender, receiver);
        // Both begin at 0 with the wrap counter set.
        (bytes[3], bytes[5]) = (0x80, 0x80);
        bytes
    };
    let sending = |list: &[(u64, u32, u16)], table: &[(u64, u32, u16)]| {
        ring(0x3f, 0, &image(list, table), &room)
    };
    let receiving = |list: &[(u64, u32, u16)], table: &[(u64, u32, u16)]| {
        ring(0x3f, 0, &good, &image(list, table))
    };
    let table = BASE + TABLE;
    vec![
        ("plain", ring(0x3f, 0, &good, &room)),
        ("legacy_buffers", ring(1, 0, &good, &room)),
        ("tag_pushed", ring(3, 1, &good, &room)),
        (
            "chain",
            sending(&[(frame, 12, NEXT), (frame, 60, NEXT), (frame, 40, 0)], &[]),
        ),
        (
            "chain_round_the_ring",
            sending(&[(frame, 1, NEXT); SIZE], &[]),
        ),
        (
            "table",
            sending(&[(table, 32, INDIRECT)], &[(frame, 12, 0), (frame, 60, 0)]),
        ),
        (
            "table_in_table",
            sending(&[(table, 16, INDIRECT)], &[(table, 16, INDIRECT)]),
        ),
        ("table_odd", sending(&[(table, 17, INDIRECT)], &[])),
        (
            "table_over_the_end",
            sending(&[(BASE + 0xfff8, 16, INDIRECT)], &[]),
        ),
        ("over_two_regions", sending(&[(BASE + 0x7ff0, 100, 0)], &[])),
        (
            "address_overflows",
            sending(&[(u64::MAX, u32::MAX, 0)], &[]),
        ),
        ("write_only", sending(&[(frame, 100, WRITE)], &[])),
        ("empty", sending(&[(frame, 0, NEXT), (frame, 0, 0)], &[])),
        (
            "receive_chain",
            receiving(
                &[(BASE + 0x400, 30, WRITE | NEXT), (BASE + 0x500, 200, WRITE)],
                &[],
            ),
        ),
        (
            "receive_table",
            receiving(
                &[(table, 32, INDIRECT)],
                &[(BASE + 0x400, 10, WRITE), (BASE + 0x500, 200, WRITE)],
            ),
        ),
        (
            "receive_read_only",
            receiving(&[(BASE + 0x400, 200, 0)], &[]),
        ),
        (
            "receive_into_the_ring",
            receiving(&[(BASE, 300, WRITE)], &[]),
        ),
    ]
}

fn frames() -> Vec<(&'static str, Vec<u8>)> {
    let packet = |v6: bool, tcp: bool, vlan: bool| {
        let mut bytes = Vec::new();
        let (eth, payload) = (PacketBuilder::ethernet2([2; 6], [4; 6]), [7; 30]);
        let vid = etherparse::VlanId::try_new(5).expect("below 4096");
        macro_rules! finish {
            ($ip:expr) => {
                match tcp {
                    true => $ip.tcp(1, 2, 3, 4).write(&mut bytes, &payload),
                    false => $ip.udp(1, 2).write(&mut bytes, &payload),
                }
            };
        }
        let done = match (v6, vlan) {
            (false, false) => finish!(eth.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)),
            (false, true) => finish!(eth.single_vlan(vid).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)),
            (true, false) => finish!(eth.ipv6([1; 16], [2; 16], 64)),
            (true, true) => finish!(eth.single_vlan(vid).ipv6([1; 16], [2; 16], 64)),
        };
        done.expect("a packet");
        bytes
    };
    let with = |orders: [u8; 8], frame: Vec<u8>| [&orders[..], &frame].concat();
    let names = [
        "udp4",
        "udp4_vlan",
        "tcp4",
        "tcp4_vlan",
        "udp6",
        "udp6_vlan",
        "tcp6",
        "tcp6_vlan",
    ];
    let mut seeds: Vec<(&'static str, Vec<u8>)> = names
        .into_iter()
        .enumerate()
        .map(|(i, name)| {
            (
                name,
                with(
                    [0, 0, 0, 0, 0, 40, 0, 0],
                    packet(i & 4 != 0, i & 2 != 0, i & 1 != 0),
                ),
            )
        })
        .collect();
    seeds.extend([
        (
            "checksum",
            with([2, 34, 0, 6, 0, 9, 0, 0], packet(false, false, false)),
        ),
        (
            "checksum_absurd",
            with(
                [3, 0xff, 0xff, 0xff, 0xff, 1, 0, 0],
                packet(false, true, false),
            ),
        ),
        (
            "checksum_at_the_end",
            with([2, 14, 0, 60, 0, 64, 0, 0], packet(false, true, false)),
        ),
        ("short", with([0; 8], vec![0xff; 13])),
        (
            "tag_cut_off",
            with([0; 8], [&[0xff; 12][..], &[0x81, 0x00, 0x60]].concat()),
        ),
        (
            "fragment",
            with([0; 8], {
                let mut bytes = packet(false, false, false);
                bytes[20] = 0x20;
                bytes
            }),
        ),
    ]);
    seeds
}
