use super::*;

fn job(start: u64, rate: f64) -> Job {
    Job {
        start,
        time: Duration::from_secs(1),
        until: None,
        away: AWAY,
        rate: Some(rate),
        rate_of_all: Some(rate),
        burst: 32,
        backlog: 1000,
    }
}

#[test]
fn the_longest_gap_is_between_two_frames_or_after_the_last() {
    let mut gap = Gap::default();
    let passed = [(1000, false), (1, true), (30, false), (5, true), (7, true)];
    passed
        .iter()
        .for_each(|(cycles, arrived)| gap.pass(*cycles, *arrived));
    assert_eq!(gap.longest, 35);
    gap.pass(100, false);
    assert_eq!(gap.longest, 100);
}

#[test]
fn every_frame_of_a_burst_bears_when_it_was_due() {
    let clock = Clock::calibrate();
    let rate = clock.hz() / 1000.0; // a frame each 1000 cycles
    let job = job(5_000_000, rate);
    let mut pace = Pace::new(&job, clock);
    pace.skipped = 77;
    let stamp = pace.stamp(10, 0.5, 65_535);
    let mut bytes = [0; crosspoint_guest::pump::HEAD_LEN];
    let at = crosspoint_guest::pump::STAMP_OFFSET;
    bytes[at..at + 8].copy_from_slice(&stamp.to_le_bytes());
    for (sequence, later) in [(65_535_u16, 0), (0, 1000), (9, 10_000)] {
        let at = crosspoint_guest::pump::SEQUENCE_OFFSET;
        bytes[at..at + 2].copy_from_slice(&sequence.to_be_bytes());
        let due = pace.due(&FrameHead { bytes, len: 60 });
        assert!(due.abs_diff(5_000_077 + 10_500 + later) <= 2, "{due}");
    }
}

#[test]
fn no_frames_become_due_while_the_generator_is_away() {
    let clock = Clock::calibrate();
    let job = job(1_000_000, 1e6);
    let mut pace = Pace::new(&job, clock);
    let (away, start) = (clock.cycles(AWAY), job.start);
    assert_eq!(pace.tick(start + away / 2), away / 2);
    assert_eq!(pace.tick(start + away), away);
    assert_eq!(pace.tick(start + 11 * away), 2 * away, "back after long");
    assert_eq!(pace.tick(start + 12 * away), 3 * away);
}
