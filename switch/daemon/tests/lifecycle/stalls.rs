//! Workers that lose their core.

use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_setaffinity};

use super::{DataplaneOptions, PATIENCE, Switch, options};

/// Long enough to be noticed, and shorter than the kernel's limit for real-time threads per second.
const HOG: Duration = Duration::from_millis(500);

fn run_on(cores: &[usize]) {
    let mut set = CpuSet::new();
    cores.iter().for_each(|core| set.set(*core));
    sched_setaffinity(None, &set).expect("our own cores");
}

/// Occupies a core for a while, so that no other thread runs there.
fn hog(core: usize) {
    run_on(&[core]);
    let first = libc::sched_param { sched_priority: 1 };
    // SAFETY: the pointer is to a local that lives through the call, which copies it; 0 is this thread.
    let done = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &first) };
    assert_eq!(
        done,
        0,
        "run this test as root: {}",
        std::io::Error::last_os_error()
    );
    let start = Instant::now();
    while start.elapsed() < HOG {
        std::hint::spin_loop();
    }
}

#[test]
fn a_worker_whose_core_is_taken_is_noticed_and_so_is_its_return() {
    let cores = core_affinity::get_core_ids().expect("cores");
    let cores: Vec<usize> = cores.iter().map(|core| core.id).collect();
    let [others @ .., core] = &*cores else {
        return;
    };
    if others.is_empty() {
        return; // no core for the watch thread
    }
    // The watch thread is started by this thread, and inherits its cores.
    run_on(others);
    let options = DataplaneOptions {
        cores: vec![*core],
        sleep_after: None,
        ..options(1, 0)
    };
    let switch = Switch::start_with(options, &["a"], 1);
    let worker = || switch.dataplane.status().workers.remove(0);
    let wait = |stalled| {
        let start = Instant::now();
        while worker().stalled != stalled {
            assert!(start.elapsed() < PATIENCE, "{:#?}", worker());
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    let core = *core;
    // On a busy machine it may have lost its core already when its switches are counted first: then it is taken again.
    let mut is_counted = false;
    for _ in 0..3 {
        wait(false);
        let before = worker();
        let thief = std::thread::spawn(move || hog(core));
        wait(true);
        thief.join().expect("a thread of the first order");
        wait(false);
        let after = worker();
        assert!(after.stalls > before.stalls, "{before:#?} {after:#?}");
        is_counted |= after.involuntary_switches > before.involuntary_switches;
        if is_counted {
            break;
        }
    }
    assert!(is_counted);
    let after = worker();
    assert!(
        after.window.busy + after.window.idle > 0.5,
        "it polls: {after:#?}"
    );
}
