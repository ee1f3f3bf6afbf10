//! Tests of a forwarding guest, with a device on the memory of two guests.

mod device;

use crosspoint_guest::net::features::{MRG_RXBUF, RING_PACKED, VERSION_1};
use crosspoint_guest::{Guest, GuestError, GuestOptions, VirtioNetHdr};
use device::packed::{Order, PackedDevice, PackedLoopback};
use device::{DeviceRing, Loopback};
use std::collections::VecDeque;

const NEXT: [u8; 6] = [2, 0, 0, 0, 0, 9];
const OWN: [u8; 6] = [2, 0, 0, 0, 0, 8];

/// From one guest's transmit ring to another's receive ring.
enum Wire {
    Split(Loopback),
    Packed(PackedLoopback),
}

impl Wire {
    fn new(from: &mut Guest, to: &mut Guest, options: &GuestOptions) -> Self {
        let transmit = from.transmit_queue(0).unwrap().virtqueue().layout();
        let receive = to.receive_queue(0).unwrap().virtqueue().layout();
        let mergeable = options.features & MRG_RXBUF != 0;
        match options.packed {
            false => Self::Split(Loopback {
                transmit: DeviceRing::new(from.memory(), transmit, options.base),
                receive: DeviceRing::new(to.memory(), receive, options.base),
                mergeable,
                dropped: 0,
            }),
            true => Self::Packed(PackedLoopback {
                transmit: PackedDevice::new(from.memory(), transmit, options.base),
                receive: PackedDevice::new(to.memory(), receive, options.base),
                mergeable,
                order: Order::Sequence,
                pool: VecDeque::new(),
                waiting: VecDeque::new(),
            }),
        }
    }

    fn poll(&mut self) -> usize {
        match self {
            Self::Split(wire) => wire.poll(),
            Self::Packed(wire) => wire.poll(),
        }
    }
}

fn guest(options: &GuestOptions) -> Guest {
    let mut guest = Guest::new(options.clone()).unwrap();
    let packed = if options.packed { RING_PACKED } else { 0 };
    guest.start(options.features | packed).unwrap();
    guest
}

fn frame(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| ((seed * 131) ^ (i * 7)) as u8).collect()
}

fn variants() -> impl Iterator<Item = GuestOptions> {
    [(false, MRG_RXBUF), (true, MRG_RXBUF), (false, 0), (true, 0)]
        .into_iter()
        .map(|(packed, mergeable)| GuestOptions {
            packed,
            features: VERSION_1 | mergeable,
            rx_buffer_len: 700,
            ring_size: 64,
            base: 65_000,
            ..GuestOptions::default()
        })
}

#[test]
fn every_frame_goes_on_in_order_with_other_addresses_and_the_same_bytes() {
    for options in variants() {
        let (mut end, mut middle) = (guest(&options), guest(&options));
        let mut forth = Wire::new(&mut end, &mut middle, &options);
        let mut back = Wire::new(&mut middle, &mut end, &options);
        let mut pump = middle.take_forward_pump(0, NEXT, OWN).unwrap();
        let frames: Vec<_> = (0..1500).map(|i| frame(i, 14 + i % 600)).collect();
        let (mut sent, mut arrived, mut forwarded) = (0, Vec::new(), 0);
        for _ in 0..1000 {
            for _ in 0..1 + sent % 90 {
                let Some(frame) = frames.get(sent) else { break };
                sent += end.send(0, &[frame]).unwrap();
            }
            forth.poll();
            forwarded += pump.poll().unwrap().frames;
            back.poll();
            arrived.extend(end.receive(0).unwrap());
        }
        assert_eq!((arrived.len(), forwarded), (1500, 1500), "{options:?}");
        for ((header, got), sent) in arrived.iter().zip(&frames) {
            assert_eq!(got[..12], [NEXT, OWN].concat());
            assert_eq!(got[12..], sent[12..]);
            let num_buffers = header.num_buffers; // the device's
            let empty = VirtioNetHdr {
                num_buffers,
                ..VirtioNetHdr::default()
            };
            assert_eq!(*header, empty);
        }
        assert_eq!(pump.in_flight().unwrap(), 0);
    }
}

#[test]
fn frames_longer_than_a_buffer_are_dropped_and_those_after_them_are_not() {
    for options in variants().filter(|options| options.features & MRG_RXBUF != 0) {
        let (mut end, mut middle) = (guest(&options), guest(&options));
        let mut forth = Wire::new(&mut end, &mut middle, &options);
        let mut back = Wire::new(&mut middle, &mut end, &options);
        let mut pump = middle.take_forward_pump(0, NEXT, OWN).unwrap();
        let mut arrived = 0;
        for i in 0..200 {
            end.send(0, &[&frame(i, 1900), &frame(i, 60)]).unwrap();
            forth.poll();
            let forwarded = pump.poll().unwrap();
            assert_eq!((forwarded.frames, forwarded.dropped), (1, 3), "buffers");
            back.poll();
            arrived += end.receive(0).unwrap().len();
        }
        assert_eq!(arrived, 200);
    }
}

#[test]
fn frames_wait_while_there_is_no_room_to_send() {
    for options in variants() {
        let (mut end, mut middle) = (guest(&options), guest(&options));
        let mut forth = Wire::new(&mut end, &mut middle, &options);
        let mut back = Wire::new(&mut middle, &mut end, &options);
        let mut pump = middle.take_forward_pump(0, NEXT, OWN).unwrap();
        let (mut sent, mut forwarded) = (0, 0);
        for _ in 0..10 {
            while end.send(0, &[&frame(sent, 60)]).unwrap() == 1 {
                sent += 1;
            }
            forth.poll();
            forwarded += pump.poll().unwrap().frames;
        }
        assert_eq!((forwarded, pump.in_flight().unwrap()), (64, 64));
        assert!(pump.poll().unwrap().full);
        let mut arrived = 0;
        for _ in 0..10 {
            back.poll();
            arrived += end.receive(0).unwrap().len();
            pump.poll().unwrap();
            forth.poll();
        }
        assert_eq!(arrived, sent);
        assert!(matches!(
            middle.take_forward_pump(0, NEXT, OWN),
            Err(GuestError::NoQueue(0))
        ));
    }
}
