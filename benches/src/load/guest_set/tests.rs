use super::*;
use crate::lab::{Setup, crosspoint};

fn roles(name: &str, generators: usize) -> Vec<Role> {
    name.parse::<Scenario>().unwrap().roles(generators)
}

#[test]
fn each_sender_is_visited_before_those_that_its_frames_go_through() {
    assert_eq!(visits(&roles("both-64", 1)), [0, 1]);
    assert_eq!(visits(&roles("pairs3-64", 1)), [0, 3, 1, 4, 2, 5]);
    assert_eq!(visits(&roles("chain4-64", 1)), [0, 1, 2, 3]);
    assert_eq!(visits(&roles("many-to-one-3", 1)), [0, 3, 1, 2]);
}

/// Two cores that this process may use; the same one twice if there is only one.
fn cores() -> (usize, usize) {
    let set = rustix::thread::sched_getaffinity(None).unwrap();
    let all: Vec<usize> = (0..1024).filter(|core| set.is_set(*core)).collect();
    (all[0], *all.last().unwrap())
}

/// Offers until something arrives, since this thread or the switch's may lose their cores.
fn offers(set: &mut GuestSet, rate: Option<f64>, name: &str, check: impl Fn(&Offered)) {
    for _ in 0..100 {
        let offered = set.offer(rate, Duration::from_millis(40)).unwrap();
        check(&offered);
        if offered.arrived > 0 {
            return;
        }
    }
    panic!("{name}: nothing arrives");
}

/// A stream lasts until it is stopped, and accounts for each frame that became due.
fn is_stopped(set: &mut GuestSet) {
    let stop = Arc::new(AtomicBool::new(false));
    let stream = std::thread::scope(|scope| {
        let stream = scope.spawn(|| set.stream(10_000.0, AWAY, &stop).unwrap());
        std::thread::sleep(Duration::from_millis(100));
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        stream.join().unwrap()
    });
    assert!(stream.seconds > 0.05 && stream.due > 0, "{stream:?}");
    assert!(stream.sent + stream.refused <= stream.due, "{stream:?}");
    assert!(stream.longest_gap_ns > 0, "{stream:?}");
}

#[test]
fn through_the_real_switch_every_frame_is_accounted_for() {
    let test = std::env::current_exe().unwrap();
    let binary = test.ancestors().nth(2).unwrap().join("crosspoint");
    if !binary.is_file() {
        eprintln!("not run: there is no crosspoint beside this test; cargo build -p crosspoint");
        return;
    }
    let (first, last) = cores();
    let clock = Clock::calibrate();
    let setup = Setup {
        workers: "poll = \"adaptive\"\n".into(),
        guests: 6,
        guest_lines: vec!["mac_limit = 0\n".into(); 6],
        ..Setup::busy(last)
    };
    let switch = crosspoint::start(&binary, &setup).unwrap();
    let settings = GuestSetOptions {
        backlog: u64::MAX,
        ..GuestSetOptions::on(first)
    };
    let rate = 50_000.0;
    for name in [
        "pair-64-1000",
        "both-imix-packed",
        "pairs2-1518-unmerged",
        "chain5-64",
        "chain3-imix-packed-ring64",
        "many-to-one-3",
        "pair-64-1500macs-idle4",
    ] {
        let scenario: Scenario = name.parse().unwrap();
        let mut set = GuestSet::connect(&switch.ports, &scenario, &settings, clock).unwrap();
        offers(&mut set, Some(rate), name, |offered| {
            let due_most = rate * offered.seconds + 8.0;
            assert!(offered.due as f64 <= due_most, "{name}: due");
            assert!(offered.sent <= offered.due, "{name}: sent");
            assert!(offered.arrived <= offered.sent, "{name}: arrived");
            let times = offered.latency_ns.len();
            assert_eq!(times, offered.arrived, "{name}: all are sampled");
        });
        offers(&mut set, None, name, |offered| {
            assert_eq!(offered.due, offered.sent, "{name}");
        });
        if name == "pair-64-1000" {
            is_stopped(&mut set);
        }
    }
}
