//! Linux as the judge: a large frame goes into a tap device with its virtio header, over a bridge,
//! and out of a tap device that takes no large frames. What the kernel makes of it on the way is
//! what this code must make of it.

use crosspoint_packet::checksum::Partial;
use crosspoint_packet::segment::GsoRequest;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::frames::{
    DESTINATION, IDENTIFICATION, Ip, Large, SOURCE, cut, datagram, finished, large, same,
};
use crate::tap::{Tap, ip, namespace};

/// Segmented datagrams over IPv4 and IPv6, of which Linux knows since 6.2.
const TUN_F_USO: libc::c_uint = 0x20 | 0x40;
/// Most datagrams that every such Linux cuts a frame into (`UDP_MAX_SEGMENTS`; since 6.9 it is 128).
const DATAGRAMS_MAX: usize = 64;

/// Two tap devices on a bridge. The thread is in a network namespace of its own from here on.
fn bridge(offload: libc::c_uint) -> (Tap, Tap) {
    namespace();
    let taps = (Tap::new("in", 0), Tap::new("out", offload));
    // Snooping looks at IP's lengths, too.
    ip("link add bridge type bridge mcast_snooping 0");
    for name in ["in", "out"] {
        // Room for all segments of a frame, and for a frame that is not to be segmented.
        ip(&format!(
            "link set {name} master bridge mtu 65500 txqueuelen 5000 up"
        ));
    }
    ip("link set bridge up");
    // Where netfilter's bridge module is loaded, it drops what has wrong lengths in its IP header.
    for tables in ["iptables", "ip6tables"] {
        let call = format!("/proc/sys/net/bridge/bridge-nf-call-{tables}");
        if std::path::Path::new(&call).exists() {
            std::fs::write(call, "0").expect("root");
        }
    }
    taps
}

/// What the kernel makes of a large frame.
fn kernel_cut(
    taps: &mut (Tap, Tap),
    frame: &[u8],
    request: GsoRequest,
) -> Vec<(Vec<u8>, Option<Partial>)> {
    // A type for experiments (IEEE 802), behind the frame: then all of it has come.
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

/// Whether our segments are the kernel's. `partial`: the kernel leaves the checksums.
fn compare(taps: &mut (Tap, Tap), mut large: Large, partial: bool) -> Result<(), TestCaseError> {
    if large.count() == 1 {
        // The kernel lets such a frame pass as it is; but it takes TCP's options for payload when it
        // asks whether there is more of it than `gso_size`, and drops what it then cannot cut.
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

/// Fragments that have one identification at `at` get that of ours: it is any number.
fn identify(fragments: &mut [(Vec<u8>, Option<Partial>)], at: usize) -> Result<(), TestCaseError> {
    let common = fragments[0].0[at..at + 4].to_vec();
    for (fragment, _) in fragments {
        prop_assert_eq!(&fragment[at..at + 4], &common);
        fragment[at..at + 4].copy_from_slice(&IDENTIFICATION.to_be_bytes());
    }
    Ok(())
}

/// Datagrams whose fragments are right when Linux makes them: it leaves sizes that are no multiple
/// of 8, repeats IPv4 options that only the first fragment should have, and counts IPv6 extension
/// headers into the offsets.
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
    // A thread of its own, since the namespace stays with it.
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
