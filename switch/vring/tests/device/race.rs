//! A guest that rewrites its rings continuously while they are read. All effects stay within its own memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crosspoint_frame::Burst;
use crosspoint_guest::{ChainSplit, GuestMemory, RingLayout};
use crosspoint_vring::{Features, GuestRx, GuestTx, Outcome, RxScratch, feature};

use crate::world::{BASE, Guest, MODERN, Random, all, bounded};

const SIZE: u16 = 64;
const LEN: usize = 0x20_0000;
/// Bytes at both ends of the guest's memory that are mapped but not shared: the switch must not touch them.
const MARGIN: u64 = 0x840;
const CANARY: u8 = 0xc5;
const SHORT: Duration = Duration::from_secs(2);
const LONG: Duration = Duration::from_secs(60);
const FEATURES: u64 = MODERN | feature::INDIRECT_DESC | feature::EVENT_IDX;

fn canaries(memory: &GuestMemory) -> Vec<u8> {
    let mut bytes = vec![0; 2 * MARGIN as usize];
    let (low, high) = bytes.split_at_mut(MARGIN as usize);
    memory.read(BASE, low).unwrap();
    memory.read(BASE + LEN as u64 - MARGIN, high).unwrap();
    bytes
}

/// An address in, across or near the ends of the shared memory, or an absurd one.
fn bad_address(random: &mut Random) -> u64 {
    let (start, end) = (BASE + MARGIN, BASE + LEN as u64 - MARGIN);
    match random.below(4) {
        0 => random.next(),
        1 => start - 8 + random.below(16) as u64,
        2 => end - random.below(64) as u64,
        _ => end - random.below(5000) as u64,
    }
}

fn bad_len(random: &mut Random) -> u32 {
    match random.below(4) {
        0 => random.next() as u32,
        1 => 0,
        2 => 16 * random.below(70) as u32,
        _ => random.below(70_000) as u32,
    }
}

/// What one thread rewrites, and how.
struct Scribbler {
    memory: Arc<GuestMemory>,
    layout: RingLayout,
    table: u64,
    /// Direction of this ring's descriptors.
    flags: u8,
    random: Random,
}

impl Scribbler {
    fn descriptor(&mut self, bad: bool) -> [u8; 16] {
        let random = &mut self.random;
        let room = LEN - 2 * MARGIN as usize - 300;
        let (mut address, mut len) = (
            BASE + MARGIN + random.below(room) as u64,
            random.below(300) as u32,
        );
        let mut flags = self.flags | u8::from(random.one_in(4));
        let next = random.below(if bad { 65_536 } else { SIZE.into() }) as u16;
        if random.one_in(8) {
            (address, len, flags) = (self.table, 16 * u32::from(SIZE), 4);
        }
        if bad {
            match random.below(3) {
                0 => address = bad_address(random),
                1 => len = bad_len(random),
                _ => flags = random.below(256) as u8,
            }
        }
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&len.to_le_bytes());
        bytes[12] = flags;
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        bytes
    }

    /// Makes the ring valid, and half of it available, so that after a fault there is work again.
    fn heal(&mut self) {
        for slot in 0..u64::from(SIZE) {
            for at in [self.table, self.layout.descriptors] {
                let mut bytes = self.descriptor(false);
                // A table ends with its last entry.
                if at == self.table {
                    bytes[12] = self.flags;
                }
                self.memory.write(at + 16 * slot, &bytes).unwrap();
            }
            let head = (slot as u16).to_le_bytes();
            let at = self.layout.available + 4 + 2 * slot;
            self.memory.write(at, &head).unwrap();
        }
        let mut used = [0; 2];
        self.memory.read(self.layout.used + 2, &mut used).unwrap();
        let avail = u16::from_le_bytes(used).wrapping_add(SIZE / 2);
        let at = self.layout.available + 2;
        self.memory.write(at, &avail.to_le_bytes()).unwrap();
    }

    /// Writes values, some of them valid, into the ring and its table until stopped.
    fn run(mut self, stop: &AtomicBool) {
        let layout = self.layout;
        let mut odds = 4;
        while !stop.load(Ordering::Relaxed) {
            if self.random.one_in(4096) {
                odds = [2, 100, 10_000, 1_000_000][self.random.below(4)];
            }
            let bad = self.random.one_in(odds);
            let (slot, number) = (
                self.random.below(SIZE.into()) as u64,
                self.random.next() as u16,
            );
            let (at, value) = match self.random.below(16) {
                0..=3 if bad => (layout.available + 2, number),
                // A little ahead of the device, so that it continues.
                0..=3 => {
                    let mut used = [0; 2];
                    self.memory.read(layout.used + 2, &mut used).unwrap();
                    (
                        layout.available + 2,
                        u16::from_le_bytes(used).wrapping_add(number % SIZE),
                    )
                }
                4 if bad => (layout.used + 2, number),
                4..=6 => (
                    layout.available + 4 + 2 * slot,
                    if bad { number } else { number % SIZE },
                ),
                kind => {
                    let bytes = self.descriptor(bad);
                    let at = if kind == 7 {
                        self.table
                    } else {
                        layout.descriptors
                    } + 16 * slot;
                    // The whole descriptor, or one field of it.
                    let part =
                        [0..16, 0..16, 0..8, 8..12, 12..14, 14..16][self.random.below(6)].clone();
                    self.memory
                        .write(at + part.start as u64, &bytes[part])
                        .unwrap();
                    continue;
                }
            };
            self.memory.write(at, &value.to_le_bytes()).unwrap();
        }
    }
}

#[derive(Default, Debug)]
struct Seen {
    frames: u64,
    delivered: u64,
    faults: u64,
}

impl Seen {
    fn enough(&self) -> bool {
        self.frames > 20_000 && self.delivered > 2000 && self.faults > 2000
    }
}

/// From the hostile guest to itself and to a victim, and from the victim to the hostile guest, for some seconds.
fn run() -> Seen {
    let mut enemy = Guest::with(&[(BASE, LEN)], MARGIN);
    for at in [BASE, BASE + LEN as u64 - MARGIN] {
        enemy.memory.write(at, &[CANARY; MARGIN as usize]).unwrap();
    }
    let ((tx_ring, _), (rx_ring, _)) =
        (enemy.ring(SIZE, 0, FEATURES), enemy.ring(SIZE, 0, FEATURES));
    let (tx_at, rx_at, table) = (
        tx_ring.layout(),
        rx_ring.layout(),
        enemy.take(2 * 16 * usize::from(SIZE)),
    );

    let mut victim = Guest::for_queues(256, 2000, 2048);
    let (mut receiver, to_victim) = victim.receive(
        (256, 0),
        MODERN,
        2048,
        ChainSplit::Single,
        1,
        Arc::default(),
    );
    let (mut sender, mut from_victim) = victim.transmit(64, 0, MODERN, 2000);

    let stop = Arc::new(AtomicBool::new(false));
    let scribbler = |layout, flags: u8| Scribbler {
        memory: enemy.memory.clone(),
        layout,
        table: table + 16 * u64::from(SIZE) * u64::from(flags / 2),
        flags,
        random: Random(flags.into()),
    };
    let threads = [(tx_at, 0), (rx_at, 2)].map(|(layout, flags)| {
        let (scribbler, stop) = (scribbler(layout, flags), stop.clone());
        std::thread::spawn(move || scribbler.run(&stop))
    });
    let (mut tx_healer, mut rx_healer) = (scribbler(tx_at, 0), scribbler(rx_at, 2));
    let features = Features::new(FEATURES);
    let tx = |base| {
        GuestTx::new(
            enemy.device_ring(tx_at, FEATURES),
            features,
            Arc::default(),
            base,
        )
        .unwrap()
    };
    let rx = |base| {
        GuestRx::new(
            enemy.device_ring(rx_at, FEATURES),
            features,
            Arc::default(),
            base,
            1,
        )
        .unwrap()
    };
    let (mut from_enemy, mut to_enemy) = (tx(0), rx(0));
    let (mut burst, mut scratch, mut seen) = (Burst::new(), RxScratch::default(), Seen::default());
    let bytes = Random(9).bytes(1500);
    let start = Instant::now();
    // On a loaded machine the writers may hardly run: then it takes longer to see enough cases.
    while start.elapsed() < SHORT || (!seen.enough() && start.elapsed() < LONG) {
        // The hostile guest sends to the victim, whose ring must stay valid, and to itself.
        burst.clear();
        from_enemy.receive(&mut burst);
        if burst.is_empty() && from_enemy.fault().is_some() {
            // Quarantine, and a new session at the position that the hostile guest gives.
            seen.faults += 1;
            tx_healer.heal();
            from_enemy = tx(tx_ring.used_idx().into());
            burst.clear();
        }
        seen.frames += burst.len() as u64;
        receiver.post(u16::MAX).unwrap();
        let _ = receiver.ring().publish();
        let picks: Vec<_> = all(&burst)
            .into_iter()
            .filter(|pick| burst.frames()[usize::from(pick.frame)].len <= 65_550)
            .collect();
        scratch.begin_burst();
        let outcome = to_victim.deliver(0, &burst, &picks, &mut scratch);
        assert_eq!(outcome.frames + outcome.full, picks.len() as u32);
        let got = receiver
            .receive()
            .expect("the victim's ring is none of the enemy's business");
        assert_eq!(got.len() as u32, outcome.frames);
        account(
            to_enemy.deliver(0, &burst, &picks, &mut scratch),
            picks.len(),
            &mut seen,
        );
        from_enemy.complete();
        from_enemy.flush();

        // The victim sends to the hostile guest.
        assert!(sender.send(&Default::default(), &bytes).unwrap());
        let _ = sender.ring().publish();
        burst.clear();
        scratch.begin_burst();
        assert_eq!(from_victim.receive(&mut burst), 1);
        if account(
            to_enemy.deliver(0, &burst, &all(&burst), &mut scratch),
            1,
            &mut seen,
        ) {
            rx_healer.heal();
            to_enemy = rx(rx_ring.used_idx().into());
        }
        to_enemy.flush(0);
        from_victim.complete();
        sender
            .reap()
            .expect("the victim's ring is none of the enemy's business");
    }
    stop.store(true, Ordering::Relaxed);
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    assert!(
        canaries(&enemy.memory).iter().all(|byte| *byte == CANARY),
        "bytes beyond the shared memory were written"
    );
    seen
}

/// Whether there was a fault; every copy is counted.
fn account(outcome: Outcome, picks: usize, seen: &mut Seen) -> bool {
    let Outcome {
        frames,
        full,
        small,
        contended,
        costly,
        faulty,
        ..
    } = outcome;
    let sum = frames + full + small + contended + costly + faulty;
    assert_eq!(sum, picks as u32, "{outcome:?}");
    seen.delivered += u64::from(frames);
    seen.faults += u64::from(faulty > 0);
    faulty > 0
}

#[test]
fn rings_rewritten_while_they_are_read_harm_no_other() {
    let seen = bounded(90, run);
    println!("{seen:?}");
    assert!(seen.enough(), "the race was not run: {seen:?}");
}
