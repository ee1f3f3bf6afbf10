//! The program's action for a frame, by BPF_PROG_TEST_RUN.

mod common;

use common::{load, netns, program, put_socket, xsk::Xsk};
use crosspoint_ebpf::{MAX_QUEUES, PROGRAM, PROGRAM_FRAGS};

/// From linux/bpf.h.
const XDP_PASS: u32 = 2;
const XDP_REDIRECT: u32 = 4;

/// From the smallest Ethernet frame that the kernel runs a program on, to the longest with a standard MTU and a VLAN tag.
const FRAME_SIZES: std::ops::RangeInclusive<usize> = 14..=1518;

#[test]
fn the_verifier_accepts_every_program() {
    netns::enter_new();
    let object = load();
    for name in [PROGRAM, PROGRAM_FRAGS] {
        let kind = program(&object, name).prog_type();
        assert!(
            matches!(kind, libbpf_rs::ProgramType::Xdp),
            "{name}: {kind:?}"
        );
    }
}

#[test]
fn a_frame_on_a_queue_without_a_socket_goes_to_the_kernel_unchanged() {
    let mut bench = Bench::new();
    // Its neighbours have one.
    bench.give_socket(1);
    bench.give_socket(3);
    bench.expect(2, XDP_PASS);
}

#[test]
fn a_frame_on_a_queue_with_a_socket_is_redirected_unchanged() {
    let mut bench = Bench::new();
    for queue in [0, 1, MAX_QUEUES - 1] {
        bench.give_socket(queue);
        bench.expect(queue, XDP_REDIRECT);
    }
}

#[test]
fn a_frame_on_a_queue_beyond_the_socket_map_goes_to_the_kernel_unchanged() {
    let mut bench = Bench::new();
    bench.give_socket(MAX_QUEUES - 1);
    bench.expect(MAX_QUEUES, XDP_PASS);
}

#[test]
fn a_queue_whose_socket_closes_goes_back_to_the_kernel() {
    let mut bench = Bench::new();
    bench.give_socket(5);
    bench.expect(5, XDP_REDIRECT);
    bench.sockets.clear();
    bench.expect(5, XDP_PASS);
}

/// A veth with one more queue than the map has room for, and the loaded object.
struct Bench {
    object: libbpf_rs::Object,
    ifindex: u32,
    sockets: Vec<Xsk>,
    /// A veth's receive queues are known to XDP, test runs included, only while a program is attached.
    _link: libbpf_rs::Link,
}

impl Bench {
    fn new() -> Self {
        netns::enter_new();
        let ifindex = netns::veth(MAX_QUEUES + 1, 1);
        let object = load();
        let link = program(&object, PROGRAM)
            .attach_xdp(ifindex as i32)
            .expect("attaches to a veth");
        Self {
            object,
            ifindex,
            sockets: Vec::new(),
            _link: link,
        }
    }

    fn give_socket(&mut self, queue: u32) {
        let socket = Xsk::bind(self.ifindex, queue);
        put_socket(&self.object, queue, &socket);
        self.sockets.push(socket);
    }

    /// Checks that every program returns `action` for a frame of every size on this queue, and changes no byte.
    fn expect(&self, queue: u32, action: u32) {
        for name in [PROGRAM, PROGRAM_FRAGS] {
            let program = program(&self.object, name);
            for size in FRAME_SIZES {
                let frame: Vec<u8> = (0..size).map(|at| (at * 7 + size) as u8).collect();
                let (answer, after) = self.run(&program, &frame, queue);
                assert_eq!(answer, action, "{name}, queue {queue}, {size} bytes");
                assert_eq!(after, frame, "{name}, queue {queue}, {size} bytes");
            }
        }
    }

    fn run(&self, program: &libbpf_rs::ProgramMut<'_>, frame: &[u8], queue: u32) -> (u32, Vec<u8>) {
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
        let mut context: Vec<u8> = [0, frame.len() as u32, 0, self.ifindex, queue, 0]
            .iter()
            .flat_map(|field: &u32| field.to_ne_bytes())
            .collect();
        // With room to detect a frame that grew.
        let mut after = vec![0; frame.len() + 256];
        let output = program
            .test_run(libbpf_rs::ProgramInput {
                context_in: Some(&mut context),
                data_in: Some(frame),
                data_out: Some(&mut after),
                ..Default::default()
            })
            .unwrap_or_else(|error| {
                panic!("test run, queue {queue}, {} bytes: {error}", frame.len())
            });
        (
            output.return_value,
            output.data.expect("the frame comes back").to_vec(),
        )
    }
}
