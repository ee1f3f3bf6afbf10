//! Linux as the reference: a large frame goes into a tap device with its virtio header, over a bridge, and out of a tap
//! device that takes no large frames. This code must make the same segments as the kernel.

use crosspoint_packet::checksum::Partial;
use crosspoint_packet::segment::GsoRequest;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::frames::{
    DESTINATION, IDENTIFICATION, Ip, Large, SOURCE, cut, datagram, finished, large, same,
};
use crate::netns::{ip, namespace};
use crate::tap::Tap;

/// Segmented datagrams over IPv4 and IPv6, supported since Linux 6.2.
const TUN_F_USO: libc::c_uint = 0x20 | 0x40;
/// Most datagrams that all these versions cut a frame into (`UDP_MAX_SEGMENTS`; since 6.9 it is 128).
const DATAGRAMS_MAX: usize = 64;

/// Makes two tap devices on a bridge. The thread gets its own network namespace.
fn bridge(offload: libc::c_uint) -> (Tap, Tap) {
    namespace();
    let taps = (Tap::new("in", 0), Tap::new("out", offload));
    // Snooping also checks IP's lengths.
    ip("link add bridge type bridge mcast_snooping 0");
    for name in ["in", "out"] {
        // Room for all segments of a frame, and for a frame that is not segmented.
        ip(&format!(
            "link set {name} master bridge mtu 65500 txqueuelen 5000 up"
        ));
    }
    ip("link set bridge up");
    // If netfilter's bridge module is loaded, it drops frames with wrong lengths in their IP headers.
    for tables in ["iptables", "ip6tables"] {
        let call = format!("/proc/sys/net/bridge/bridge-nf-call-{tables}");
        if std::path::Path::new(&call).exists() {
            std::fs::write(call, "0").expect("root");
        }
    }
    taps
}

/// Returns the frames that the kernel makes of a large frame.
fn kernel_cut(
    taps: &mut (Tap, Tap),
    frame: &[u8],
    request: GsoRequest,
) -> Vec<(Vec<u8>, Option<Partial>)> {
    // A last frame with a type for experiments (IEEE 802): after it, all segments have arrived.
    let mut end = [DESTINATION, SOURCE].concat();
    end.extend([0x88, 0xb5]);
    end.resize(60, 0x55);
    taps.0.send(request, frame);
    let nothing = GsoRequest {
        gso_type: 0,
        gso_size: 0,
        checksum: None,
    };
    taps.0.send(nothing, &end);
    let mut segments = Vec::new();
    loop {
        let segment = taps.1.receive();
        if segment.0 == end {
            return segments;
        }
        segments.push(segment);
    }
}

/// Compares our segments with the kernel's. `partial`: the kernel leaves the checksums.
fn compare(taps: &mut (Tap, Tap), mut large: Large, partial: bool) -> Result<(), TestCaseError> {
    if large.count() == 1 {
        // The kernel passes such a frame unchanged; but it counts TCP's options as payload when it compares that with
        // `gso_size`, and drops frames that it then cannot cut.
        large.ip_len = None;
        if large.is_tcp() {
            large.gso_size += 40;
        }
    }
    if !large.is_tcp() && large.fragments.is_none() {
        large.payload.truncate(DATAGRAMS_MAX * large.gso_size);
    }
    let frame = large.frame();
    let ours = cut(&frame, large.request());
    let mut theirs = kernel_cut(taps, &frame, large.request());
    prop_assert_eq!(ours.len(), theirs.len());
    if large.is_v6() && large.fragments.is_some() && theirs.len() > 1 {
        identify(&mut theirs, large.fragmented_from() + 4)?;
    }
    for (index, (ours, (theirs, left))) in ours.into_iter().zip(theirs).enumerate() {
        prop_assert_eq!(left, ours.1.filter(|_| partial));
        let at = ours.1;
        let ours = if partial { ours.0 } else { finished(ours) };
        prop_assert!(
            same(&ours, &theirs, at),
            "segment {}:\n{:02x?}\nfrom Linux:\n{:02x?}",
            index,
            ours,
            theirs
        );
    }
    Ok(())
}

/// Replaces the fragments' common identification at `at` by ours, since it is arbitrary.
fn identify(fragments: &mut [(Vec<u8>, Option<Partial>)], at: usize) -> Result<(), TestCaseError> {
    let common = fragments[0].0[at..at + 4].to_vec();
    for (fragment, _) in fragments {
        prop_assert_eq!(&fragment[at..at + 4], &common);
        fragment[at..at + 4].copy_from_slice(&IDENTIFICATION.to_be_bytes());
    }
    Ok(())
}

/// Datagrams that Linux fragments correctly: it does not round sizes that are not a multiple of 8, repeats IPv4 options
/// that only the first fragment should have, and counts IPv6 extension headers in the offsets.
fn linux_datagram() -> impl Strategy<Value = Large> {
    datagram().prop_filter_map("fragments as Linux makes them", |mut large| {
        large.gso_size = large.fragment_size();
        let repeated = match &large.ip {
            Ip::V4(header) => large.fragments.as_deref() == Some(header.options.as_slice()),
            Ip::V6(_, extensions) => extensions.is_empty(),
        };
        repeated.then_some(large)
    })
}

fn kernel_agrees(offload: libc::c_uint) {
    // A separate thread, since the namespace stays with it.
    let judged = std::thread::spawn(move || {
        let taps = std::cell::RefCell::new(bridge(offload));
        let datagrams = taps.borrow().0.take(libc::TUN_F_CSUM | TUN_F_USO).is_ok();
        if !datagrams {
            eprintln!("this kernel cuts no datagrams: it is asked about TCP only");
        }
        let frames = prop_oneof![2 => large(), 1 => linux_datagram()];
        let run = TestRunner::default().run(&frames, |large| {
            if !datagrams && !large.is_tcp() && large.fragments.is_none() {
                return Ok(());
            }
            compare(&mut taps.borrow_mut(), large, offload != 0)
        });
        if let Err(difference) = run {
            panic!("{difference}");
        }
    });
    judged
        .join()
        .unwrap_or_else(|e| std::panic::resume_unwind(e));
}

#[test]
fn segments_are_those_that_linux_makes() {
    kernel_agrees(0);
}

#[test]
fn partial_checksums_are_those_that_linux_leaves() {
    kernel_agrees(libc::TUN_F_CSUM);
}
