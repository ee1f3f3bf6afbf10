//! One datagram cut into fragments: compared with etherparse's, and reassembled by it.

use etherparse::defrag::IpDefragPool;
use etherparse::{SlicedPacket, ip_number};
use proptest::prelude::*;

use crate::frames::{Large, cut, datagram, finished};

proptest! {
    #[test]
    fn fragments_are_what_a_sender_without_fragmentation_by_its_device_sends(large in datagram()) {
        let fragments = cut(&large.frame(), large.request());
        prop_assert_eq!(fragments.len(), large.count());
        for (index, fragment) in fragments.into_iter().enumerate() {
            prop_assert_eq!(fragment.1.is_none(), large.count() > 1);
            let (fragment, expected) = (finished(fragment), large.expected(index));
            prop_assert!(
                fragment == expected,
                "fragment {}:\n{:02x?}\nshould be\n{:02x?}", index, fragment, expected
            );
        }
    }

    /// In any order, and some of them twice. (Etherparse takes the beginning of a later fragment for an extension header,
    /// if the first has one after its fragment header.)
    #[test]
    fn fragments_are_put_together_to_what_the_guest_has_sent(
        (large, order) in datagram().prop_flat_map(|large| {
            let indices: Vec<usize> = (0..large.count()).collect();
            (Just(large), Just(indices).prop_shuffle())
        }),
        twice: bool,
    ) {
        prop_assume!(large.count() > 1 && large.fragmented_from() == large.transport_offset());
        let mut fragments = cut(&large.frame(), large.request());
        let mut pool = IpDefragPool::<(), ()>::new();
        for (place, index) in order.iter().enumerate() {
            let fragment = finished((std::mem::take(&mut fragments[*index].0), None));
            let packet = SlicedPacket::from_ethernet(&fragment).unwrap();
            prop_assert_eq!(packet.link_exts.len(), large.tags.len());
            let mut whole = pool.process_sliced_packet(&packet, (), ()).unwrap();
            if place + 1 < order.len() {
                prop_assert!(whole.is_none());
                if twice {
                    whole = pool.process_sliced_packet(&packet, (), ()).unwrap();
                    prop_assert!(whole.is_none());
                }
                continue;
            }
            let whole = whole.expect("all fragments are there");
            let sent = large.whole();
            prop_assert!(whole.payload == sent[large.transport_offset()..], "another datagram");
            prop_assert_eq!(whole.ip_number, ip_number::UDP);
        }
    }

    /// A size that is not a multiple of 8 is rounded down: that is the unit of offsets.
    #[test]
    fn a_size_is_rounded_down_to_the_unit_of_offsets(large in datagram(), more in 0usize..8) {
        let exact = Large { gso_size: large.fragment_size(), ..large };
        prop_assume!(exact.count() > 2 && exact.gso_size < 60_000);
        let odd = Large { gso_size: exact.gso_size + more, ..exact.clone() };
        prop_assert_eq!(cut(&odd.frame(), odd.request()), cut(&exact.frame(), exact.request()));
    }
}
