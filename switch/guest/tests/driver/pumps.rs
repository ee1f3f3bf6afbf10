//! Pumps: frames in numbers, in order, from as many flows and addresses as asked.

use super::*;

#[test]
fn pumps_count_and_order_every_frame() {
    for (writes, mergeable, batch) in [
        (TxWrites::Frame, MRG_RXBUF, 32),
        (TxWrites::Frame, 0, 64),
        (TxWrites::Descriptor, MRG_RXBUF, 7),
        (TxWrites::Nothing, 0, 1),
        (TxWrites::Frame, IN_ORDER | MRG_RXBUF, 32),
    ] {
        let base = 65_000;
        let (mut guest, mut device) = started(GuestOptions {
            features: VERSION_1 | mergeable,
            rx_buffer_len: 700,
            base,
            ..GuestOptions::default()
        });
        let frame_len = if mergeable & MRG_RXBUF != 0 { 1514 } else { 60 };
        let options = TxPumpOptions {
            frame_len,
            writes,
            batch,
            flows: 100,
            ..TxPumpOptions::default()
        };
        let mut tx = guest.take_tx_pump(0, &options).unwrap();
        let mut rx = guest.take_rx_pump(0, true).unwrap();
        let (mut frames, mut bytes, mut sequence) = (0u64, 0, 0u16);
        while tx.sent() < 3000 {
            tx.poll_stamped(64, 0x1122_3344_5566_7788).unwrap();
            device.poll();
            let received = rx
                .poll_each(|head| {
                    if writes == TxWrites::Frame {
                        assert_eq!(
                            (head.sequence(), head.stamp()),
                            (sequence, 0x1122_3344_5566_7788)
                        );
                    }
                    sequence = sequence.wrapping_add(1);
                })
                .unwrap();
            frames += u64::from(received.frames);
            bytes += received.bytes;
        }
        for _ in 0..400 {
            device.poll();
            let received = rx.poll().unwrap();
            frames += u64::from(received.frames);
            bytes += received.bytes;
        }
        assert_eq!(tx.drain().unwrap(), 0, "all read by the device");
        assert_eq!(frames, tx.sent());
        assert_eq!(bytes, frames * frame_len as u64);
        assert!(rx.poll().unwrap().empty);
    }
}

#[test]
fn a_pump_sends_as_many_different_flows_as_asked_with_valid_headers() {
    let (mut guest, mut device) = started(GuestOptions::default());
    let options = TxPumpOptions {
        flows: 61_000,
        ..TxPumpOptions::default()
    };
    let mut tx = guest.take_tx_pump(0, &options).unwrap();
    let mut seen = HashMap::new();
    while tx.sent() < 61_000 {
        tx.poll().unwrap();
        device.poll();
        for (_, bytes) in guest.receive(0).unwrap() {
            let sum: u32 = bytes[14..34]
                .chunks(2)
                .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
                .sum();
            assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "IPv4 header checksum");
            let port = u16::from_be_bytes([bytes[34], bytes[35]]);
            *seen.entry((bytes[26..30].to_vec(), port)).or_insert(0) += 1;
        }
    }
    assert_eq!(seen.len(), 61_000);
    let sources: HashSet<_> = seen.keys().map(|(source, _)| source.clone()).collect();
    assert_eq!(sources.len(), 2);
}

#[test]
fn a_pump_sends_from_and_to_as_many_addresses_as_asked_and_no_frame_is_like_the_one_before() {
    let (mut guest, mut device) = started(GuestOptions::default());
    let options = TxPumpOptions {
        addresses: 3000,
        ..TxPumpOptions::default()
    };
    let mut tx = guest.take_tx_pump(0, &options).unwrap();
    let (mut seen, mut before) = ([HashSet::new(), HashSet::new()], Vec::new());
    let mut pairs = HashSet::new();
    while tx.sent() < 3000 {
        tx.poll().unwrap();
        device.poll();
        for (_, bytes) in guest.receive(0).unwrap() {
            assert!(bytes[..6] != before[..] && bytes[..2] == [2, 0] && bytes[4..6] == [0, 2]);
            seen[0].insert(bytes[..6].to_vec());
            seen[1].insert(bytes[6..12].to_vec());
            pairs.insert(bytes[..12].to_vec());
            before = bytes[..6].to_vec();
        }
    }
    assert_eq!(
        (seen[0].len(), seen[1].len(), pairs.len()),
        (3000, 3000, 3000)
    );
}

#[test]
fn a_pump_sends_a_mix_of_lengths_in_turn_with_valid_headers() {
    let (mut guest, mut device) = started(GuestOptions::default());
    let options = TxPumpOptions {
        mix: &[60, 566, 60, 1514],
        flows: 70_000,
        ..TxPumpOptions::default()
    };
    let mut tx = guest.take_tx_pump(0, &options).unwrap();
    let mut frames = Vec::new();
    while tx.sent() < 3200 {
        tx.poll().unwrap();
        device.poll();
        frames.extend(guest.receive(0).unwrap());
    }
    assert_eq!(frames.len(), 3200);
    for ((_, bytes), len) in frames.iter().zip(options.mix.iter().cycle()) {
        let field = |at| usize::from(u16::from_be_bytes([bytes[at], bytes[at + 1]]));
        assert_eq!(
            (bytes.len(), field(16)),
            (usize::from(*len), bytes.len() - 14)
        );
        assert_eq!(field(38), bytes.len() - 34, "UDP length");
        let sum: usize = (14..34).step_by(2).map(field).sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff, "IPv4 header checksum");
    }
}

#[test]
fn a_pump_reports_a_full_ring_and_respects_its_limit() {
    let (mut guest, _device) = started(GuestOptions {
        ring_size: 64,
        ..GuestOptions::default()
    });
    let mut tx = guest.take_tx_pump(0, &TxPumpOptions::default()).unwrap();
    assert_eq!(tx.poll_stamped(5, 0).unwrap().frames, 5);
    assert_eq!(tx.poll().unwrap().frames, 32);
    assert_eq!(tx.poll().unwrap().frames, 27);
    assert!(tx.poll().unwrap().full);
    assert_eq!(tx.drain().unwrap(), 64);
    assert!(matches!(
        guest.send(0, &[&[0; 60]]),
        Err(GuestError::NoQueue(0))
    ));
}
