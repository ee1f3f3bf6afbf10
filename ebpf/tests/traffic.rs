//! Compares the bench's object with its source, and runs its programs in the kernel.

mod common;

use std::path::Path;
use std::process::Command;

use aya::Ebpf;
use aya::maps::{Array, PerCpuArray, PerCpuValues};
use aya::programs::{SchedClassifier, TcAttachType, TestRun, TestRunAttrs, TestRunOptions, Xdp};
use common::elf::Elf;
use common::netns;
use crosspoint_ebpf::traffic::{
    ARRIVED, ArrivedValue, GENERATE, HistogramValue, LATENCIES, LOSS_RUNS, NEXT_UNKNOWN, OBJECT,
    PLANS, PlanValue, REFLECT, SENT, SINK, SINK_XDP, SentValue,
};
use libbpf_rs::ObjectBuilder;

#[test]
fn committed_object_is_what_the_source_builds_to() {
    let folder = tempfile::tempdir().expect("a temporary directory");
    let path = folder.path().join("rebuilt.bpf.o");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("build.sh");
    let run = Command::new(script)
        .arg(&path)
        .arg("crosspoint_traffic")
        .output()
        .expect("cannot run build.sh");
    assert!(
        run.status.success(),
        "{}",
        String::from_utf8_lossy(&run.stderr)
    );
    let rebuilt = std::fs::read(&path).expect("the object that build.sh wrote");
    let (rebuilt, committed) = (Elf::parse(&rebuilt), Elf::parse(OBJECT));
    for section in ["xdp", "classifier"] {
        assert_eq!(
            committed.section(section),
            rebuilt.section(section),
            "run ebpf/build.sh and commit crosspoint_traffic.bpf.o"
        );
        assert_eq!(committed.relocations(section), rebuilt.relocations(section));
    }
}

#[test]
fn the_verifier_accepts_every_program_and_libbpf_the_object() {
    netns::enter_new();
    let open = ObjectBuilder::default()
        .open_memory(OBJECT)
        .expect("libbpf opens the object");
    let object = open.load().expect("the verifier accepts the object");
    let mut names: Vec<String> = object
        .progs()
        .map(|program| program.name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert_eq!(names, [GENERATE, REFLECT, SINK, SINK_XDP]);
}

/// Through a veth whose near end has a program, like a switch's: exactly the generated frames arrive.
#[test]
fn what_is_generated_is_counted_once_and_in_order() {
    const FRAMES: u64 = 12 * 100;
    netns::enter_new();
    netns::veth(1, 1);
    let mut ebpf = Ebpf::load(OBJECT).expect("aya loads the object");
    // The receiving end makes packet buffers of frames, so it must poll.
    let gro = Command::new("ethtool")
        .args(["-K", "up0", "gro", "on"])
        .status();
    assert!(
        gro.expect("cannot run ethtool: apt install ethtool")
            .success()
    );
    let sink: &mut SchedClassifier = ebpf.program_mut(SINK).unwrap().try_into().unwrap();
    sink.load().expect("the sink loads");
    sink.attach("up0", TcAttachType::Ingress)
        .expect("the sink attaches");
    let cores = aya::util::nr_cpus().expect("the number of cores");
    let mut arrived: PerCpuArray<_, ArrivedValue> =
        ebpf.take_map(ARRIVED).unwrap().try_into().unwrap();
    let empty = PerCpuValues::try_from(vec![[0, 0, NEXT_UNKNOWN]; cores]).unwrap();
    arrived.set(0, empty, 0).unwrap();
    let mut plans: Array<_, PlanValue> = ebpf.take_map(PLANS).unwrap().try_into().unwrap();
    let peer = u64::from(netns::ifindex(c"peer0"));
    // IMIX, without an end, at full speed.
    plans.set(0, [peer, 0, u64::MAX, 0, 10, 0, 0], 0).unwrap();
    let mut frame = vec![0; 1514];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
    (frame[14], frame[23]) = (0x45, 17);
    let generate: &mut Xdp = ebpf.program_mut(GENERATE).unwrap().try_into().unwrap();
    generate.load().expect("the generator loads");
    let run = TestRunOptions {
        data_in: Some(&frame),
        repeat: FRAMES as u32,
        attrs: TestRunAttrs::new().xdp_live_frames(64),
        ..TestRunOptions::new()
    };
    generate.test_run(run).expect("live frames (Linux 5.18)");
    let sent: Array<_, SentValue> = ebpf.take_map(SENT).unwrap().try_into().unwrap();
    assert_eq!(sent.get(&0, 0).unwrap(), [FRAMES, 0]);
    let sum = |at: usize| -> u64 {
        let values = arrived.get(&0, 0).unwrap();
        values.iter().map(|of_core| of_core[at]).sum()
    };
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
    while sum(0) < FRAMES && std::time::Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert_eq!(
        (sum(0), sum(1)),
        (FRAMES, (7 * 60 + 4 * 566 + 1514) * FRAMES / 12)
    );
    for (map, counted) in [(LATENCIES, FRAMES / 8), (LOSS_RUNS, 0)] {
        let map: PerCpuArray<_, HistogramValue> = ebpf.take_map(map).unwrap().try_into().unwrap();
        let total: u64 = map.get(&0, 0).unwrap().iter().flatten().sum();
        assert_eq!(total, counted);
    }
}
