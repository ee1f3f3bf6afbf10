//! The object as the switch uses it: loaded by aya, attached by link.

mod common;

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use aya::maps::XskMap;
use aya::programs::links::FdLink;
use aya::programs::{Xdp, XdpMode};
use common::netns;
use common::xsk::{Wire, Xsk};
use crosspoint_ebpf::{OBJECT, PROGRAM, PROGRAM_FRAGS, SOCKETS};

/// Longest wait for any event.
const PATIENCE: Duration = Duration::from_secs(10);

/// Names the interface to hold for this test when it runs again as a child.
const HOLD: &str = "CROSSPOINT_EBPF_TEST_HOLD_IFINDEX";

const NATIVE: u8 = libbpf_rs::libbpf_sys::XDP_ATTACHED_DRV as u8;
const GENERIC: u8 = libbpf_rs::libbpf_sys::XDP_ATTACHED_SKB as u8;
const NOTHING: u8 = libbpf_rs::libbpf_sys::XDP_ATTACHED_NONE as u8;

#[test]
fn the_program_is_attached_while_its_link_is_held() {
    netns::enter_new();
    let ifindex = netns::veth(1, 1);
    for (mode, attached) in [(XdpMode::Driver, NATIVE), (XdpMode::Skb, GENERIC)] {
        for name in [PROGRAM, PROGRAM_FRAGS] {
            let mut ebpf = load(name);
            let link = attach_by_link(&mut ebpf, name, ifindex, mode);
            assert_eq!(attachment(ifindex), attached, "{name}, {mode:?}");
            // Only the link keeps the program attached.
            drop(ebpf);
            assert_eq!(attachment(ifindex), attached, "{name}, {mode:?}");
            drop(link);
            assert_eq!(attachment(ifindex), NOTHING, "{name}, {mode:?}");
        }
    }
}

#[test]
fn frames_on_the_wire_reach_the_socket_of_their_queue_and_otherwise_the_kernel() {
    for mode in [XdpMode::Driver, XdpMode::Skb] {
        netns::enter_new();
        let ifindex = netns::veth(2, 1);
        let mut ebpf = load(PROGRAM);
        let _link = attach_by_link(&mut ebpf, PROGRAM, ifindex, mode);
        let peer = Wire::open(netns::ifindex(c"peer0"));
        let kernel = Wire::open(ifindex);
        let sockets = [Xsk::bind(ifindex, 0), Xsk::bind(ifindex, 1)];
        let mut map = XskMap::try_from(ebpf.map_mut(SOCKETS).expect("the map")).expect("its type");

        // The peer has one transmit queue, so its frames arrive on queue 0, which has no socket yet.
        map.set(1, sockets[1].as_fd(), 0)
            .expect("queue 1 has room in the map");
        let mut frame = [0x5a; 60];
        for sequence in 0..20 {
            frame[59] = sequence;
            peer.send(&frame);
            wait(|| kernel.received(&frame) == 1);
        }
        assert_eq!(sockets.each_ref().map(Xsk::frames), [0, 0], "{mode:?}");

        map.set(0, sockets[0].as_fd(), 0)
            .expect("queue 0 has room in the map");
        for sequence in 0..20 {
            frame[59] = sequence;
            peer.send(&frame);
            wait(|| sockets[0].frames() == u64::from(sequence) + 1);
            assert_eq!(kernel.received(&frame), 0, "{mode:?}");
        }
        assert_eq!(sockets[1].frames(), 0, "{mode:?}");
    }
}

#[test]
fn the_program_goes_with_the_process_that_attached_it() {
    const THIS: &str = "the_program_goes_with_the_process_that_attached_it";
    if let Ok(ifindex) = std::env::var(HOLD) {
        let mut ebpf = load(PROGRAM);
        let _link = attach_by_link(
            &mut ebpf,
            PROGRAM,
            ifindex.parse().expect("an index"),
            XdpMode::Driver,
        );
        // Until the parent's end of the pipe is closed, which also happens when the parent dies.
        let _ = std::io::read_to_string(std::io::stdin());
        return;
    }
    netns::enter_new();
    let ifindex = netns::veth(1, 1);
    let mut child = std::process::Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", THIS])
        .env(HOLD, ifindex.to_string())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::null())
        .spawn()
        .expect("this test runs as a child");
    wait(|| attachment(ifindex) == NATIVE);
    // SIGKILL: no code of the child runs.
    child.kill().expect("the child is there to kill");
    child.wait().expect("the child ends");
    wait(|| attachment(ifindex) == NOTHING);
}

#[test]
fn cap_bpf_and_cap_net_admin_are_all_it_takes() {
    netns::enter_new();
    let ifindex = netns::veth(1, 1);
    common::caps::keep_only(&[common::caps::NET_ADMIN, common::caps::BPF]);
    for mode in [XdpMode::Driver, XdpMode::Skb] {
        for name in [PROGRAM, PROGRAM_FRAGS] {
            let mut ebpf = load(name);
            let _link = attach_by_link(&mut ebpf, name, ifindex, mode);
        }
    }
}

#[test]
fn an_interface_that_has_a_program_answers_ebusy_or_in_the_other_mode_eexist() {
    netns::enter_new();
    let ifindex = netns::veth(1, 1);
    for (first, other) in [
        (XdpMode::Driver, XdpMode::Skb),
        (XdpMode::Skb, XdpMode::Driver),
    ] {
        let mut ebpf = load(PROGRAM);
        let _link = attach_by_link(&mut ebpf, PROGRAM, ifindex, first);
        assert_eq!(refusal(ifindex, first), libc::EBUSY, "{first:?} twice");
        assert_eq!(
            refusal(ifindex, other),
            libc::EEXIST,
            "{first:?}, {other:?}"
        );
    }
    // By netlink, as `ip link set dev up0 xdp object ...` does: without a BPF link.
    let object = common::load();
    let program = common::program(&object, PROGRAM);
    let by_netlink = libbpf_rs::Xdp::new(program.as_fd());
    by_netlink
        .attach(ifindex as i32, libbpf_rs::XdpFlags::DRV_MODE)
        .expect("attaches");
    assert_eq!(refusal(ifindex, XdpMode::Driver), libc::EBUSY);
    assert_eq!(refusal(ifindex, XdpMode::Skb), libc::EEXIST);
    assert_eq!(attachment(ifindex), NATIVE, "the other program stays");
}

#[test]
fn a_veth_whose_peer_has_more_transmit_queues_answers_enospc_in_native_mode() {
    netns::enter_new();
    let ifindex = netns::veth(1, 2);
    assert_eq!(refusal(ifindex, XdpMode::Driver), libc::ENOSPC);
    // The kernel does not choose the other mode itself.
    assert_eq!(refusal(ifindex, XdpMode::Default), libc::ENOSPC);
    let _link = attach_by_link(&mut load(PROGRAM), PROGRAM, ifindex, XdpMode::Skb);
}

#[test]
fn a_veth_whose_peer_has_a_large_mtu_answers_erange_except_to_the_frags_program() {
    netns::enter_new();
    let ifindex = netns::veth(1, 1);
    netns::ip("link set peer0 mtu 9000");
    assert_eq!(refusal(ifindex, XdpMode::Driver), libc::ERANGE);
    let _link = attach_by_link(
        &mut load(PROGRAM_FRAGS),
        PROGRAM_FRAGS,
        ifindex,
        XdpMode::Driver,
    );
}

#[test]
fn an_interface_without_native_xdp_answers_eopnotsupp_in_native_mode() {
    netns::enter_new();
    let loopback = netns::ifindex(c"lo");
    assert_eq!(refusal(loopback, XdpMode::Driver), libc::EOPNOTSUPP);
    let _link = attach_by_link(&mut load(PROGRAM), PROGRAM, loopback, XdpMode::Skb);
}

#[test]
fn a_missing_interface_answers_enodev() {
    netns::enter_new();
    assert_eq!(refusal(u32::MAX >> 1, XdpMode::Driver), libc::ENODEV);
}

/// Loads the object and one of its programs.
fn load(name: &str) -> aya::Ebpf {
    let mut ebpf = aya::Ebpf::load(OBJECT).expect("aya reads the object");
    program(&mut ebpf, name)
        .load()
        .expect("the verifier accepts the program");
    ebpf
}

fn program<'e>(ebpf: &'e mut aya::Ebpf, name: &str) -> &'e mut Xdp {
    let program = ebpf.program_mut(name).expect("the object has the program");
    program.try_into().expect("it is an XDP program")
}

/// Attaches, and fails if aya falls back to netlink, which would leave the program attached after the process has died.
fn attach_by_link(ebpf: &mut aya::Ebpf, name: &str, ifindex: u32, mode: XdpMode) -> FdLink {
    let program = program(ebpf, name);
    let id = program
        .attach_to_if_index(ifindex, mode)
        .unwrap_or_else(|error| panic!("attach {name}, {mode:?}: {error:?}"));
    let link = program.take_link(id).expect("the link just made");
    FdLink::try_from(link).expect("attached by link")
}

/// Returns the error number of an attachment that must fail.
fn refusal(ifindex: u32, mode: XdpMode) -> i32 {
    use aya::programs::{ProgramError, xdp::XdpError};
    let mut ebpf = load(PROGRAM);
    let error = program(&mut ebpf, PROGRAM)
        .attach_to_if_index(ifindex, mode)
        .expect_err("must be refused");
    let number = match &error {
        ProgramError::SyscallError(error) => error.io_error.raw_os_error(),
        // aya's fallback: BPF_LINK_CREATE returns EINVAL, also for a missing interface, and then aya uses netlink.
        ProgramError::XdpError(XdpError::NetlinkError(error)) => error.raw_os_error(),
        _ => None,
    };
    number.unwrap_or_else(|| panic!("no error number in {error:?}"))
}

/// Returns how a program is attached to the interface, if any.
fn attachment(ifindex: u32) -> u8 {
    // The query needs no program; libbpf-rs requires some descriptor.
    let stdin = std::io::stdin();
    let xdp = libbpf_rs::Xdp::new(stdin.as_fd());
    xdp.query(ifindex as i32, libbpf_rs::XdpFlags::NONE)
        .expect("the interface is there")
        .attach_mode
}

/// Waits for an asynchronous action of the kernel.
#[track_caller]
fn wait(mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}
