//! Shared by the tests: a separate network namespace, and AF_XDP sockets.
//!
//! Each test file uses a part of it.
#![allow(dead_code)]

pub mod caps;
pub mod elf;
pub mod netns;
pub mod xsk;

use std::os::fd::{AsFd, AsRawFd};

use libbpf_rs::{MapCore, ObjectBuilder};

/// The committed object, loaded by libbpf: the kernel's verifier has accepted every program in it.
pub fn load() -> libbpf_rs::Object {
    let open = ObjectBuilder::default()
        .open_memory(crosspoint_ebpf::OBJECT)
        .expect("libbpf opens the object");
    open.load().expect("the verifier accepts the object")
}

/// The program called `name` in `object`.
pub fn program<'o>(object: &'o libbpf_rs::Object, name: &str) -> libbpf_rs::ProgramMut<'o> {
    object
        .progs_mut()
        .find(|program| program.name() == name)
        .unwrap_or_else(|| panic!("the object has no program {name}"))
}

/// Puts `socket` in the socket map for `queue`.
pub fn put_socket(object: &libbpf_rs::Object, queue: u32, socket: &impl AsFd) {
    let sockets = object
        .maps()
        .find(|map| map.name() == crosspoint_ebpf::SOCKETS)
        .expect("the object has the socket map");
    sockets
        .update(
            &queue.to_ne_bytes(),
            &socket.as_fd().as_raw_fd().to_ne_bytes(),
            libbpf_rs::MapFlags::ANY,
        )
        .unwrap_or_else(|error| panic!("socket of queue {queue} into the map: {error}"));
}
