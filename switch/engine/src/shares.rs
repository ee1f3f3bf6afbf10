//! Shares a worker's time among ports when there is not enough for all.
//!
//! Streams are served in turn, one burst each. The cost of a burst varies by a factor of a thousand: a plain frame takes
//! some hundred cycles; a large one that is cut into small segments, or is flooded, takes a hundred thousand. So each
//! port has an account of the time that it was served for, in cycles over its weight ("virtual time", as in start-time
//! fair queueing; Goyal et al., SIGCOMM '96). A port competes if it wants more than it got: its last burst was full and
//! left frames behind. The least account among competing ports is the *horizon*. A port that is more than a quantum ahead
//! of the horizon waits.
//!
//! - While no port competes, nothing is compared and no port waits. Debts are forgotten.
//! - A port that returns after a pause starts level with the horizon: unused time is not saved up.
//! - A port that waits is served at once when no port competes with it any more. Time that the worker idles meanwhile is
//!   charged to the competing ports: holding up other ports uses a port's own share.
//!
//! A port has two accounts: one for its own streams, and one for the cost of frames *for* it. The second is charged with
//! the cost of its receive buffers beyond the allowance, and with the frames that a NIC has for it: a NIC's stream
//! carries frames of all ports, so it never waits. The second account waits for other accounts, and no account waits for
//! it. Frames for a port whose second account is ahead are dropped after the lookup.

use crate::MAX_PORTS;

/// A port stops competing this many quanta after its last full burst.
const CLAIM_QUANTA: u64 = 8;
/// It also stops when its streams were empty for a quantum divided by this.
const IDLE_DIVISOR: u64 = 2;
/// A burst is heavy if it takes more than a quantum divided by this.
const HEAVY_DIVISOR: u64 = 4;
/// A burst is charged with at most this many quanta. Its cost budget allows about four and a half.
const BURST_QUANTA_MAX: u64 = 8;
/// Frames for a port are dropped when the account that they are charged to is ahead by this many quanta: more than any
/// burst, so that a single earlier burst causes no drop.
const TO_QUANTA: u64 = 16;
/// The horizon while no port competes.
const NO_ONE: u64 = u64::MAX;

/// Key of an account.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Account {
    /// Bursts that were received from a port.
    From(u16),
    /// Frames for a port.
    To(u16),
}

impl Account {
    #[inline(always)]
    fn index(self) -> usize {
        match self {
            Account::From(port) => usize::from(port),
            Account::To(port) => MAX_PORTS + usize::from(port),
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Served {
    /// Virtual time: cycles over the weight.
    time: u64,
    /// When it last had a burst that left frames behind, and when it last had any burst; cycles.
    wanted_at: u64,
    seen_at: u64,
    is_listed: bool,
}

/// The accounts of one worker. Only this worker writes them.
pub struct Shares {
    quantum: u64,
    served: Box<[Served]>,
    /// Accounts that compete.
    competing: Vec<u16>,
    /// The least time among the competing accounts.
    horizon: u64,
    /// Where an account starts after a pause.
    floor: u64,
    /// The largest time of any account.
    ceiling: u64,
    /// When the poll iteration began.
    begun: u64,
    /// Whether no port was served in the last iteration, although one waited.
    is_wasted: bool,
}

impl Shares {
    /// Creates empty accounts; `quantum` is in cycles.
    pub fn new(quantum: u64) -> Shares {
        Shares {
            quantum: quantum.max(1),
            served: vec![Served::default(); 2 * MAX_PORTS].into(),
            competing: Vec::with_capacity(2 * MAX_PORTS),
            horizon: NO_ONE,
            floor: 0,
            ceiling: 0,
            begun: 0,
            is_wasted: false,
        }
    }

    /// Begins a poll iteration at `now`.
    #[inline(always)]
    pub fn begin(&mut self, now: u64) {
        if self.competing.is_empty() {
            self.horizon = NO_ONE;
            self.floor = self.ceiling;
        } else {
            self.find_horizon(now);
        }
        self.begun = now;
    }

    /// Notes that no port was served in this poll iteration although one waited. The iteration's time is charged to the
    /// competing ports, for which that port waits.
    #[inline(always)]
    pub fn waste(&mut self) {
        self.is_wasted = true;
    }

    /// Recomputes the horizon. Every port has been polled since the last iteration began, so each competing port could
    /// renew its claim.
    fn find_horizon(&mut self, now: u64) {
        let wasted = match std::mem::take(&mut self.is_wasted) {
            true => now.wrapping_sub(self.begun),
            false => 0,
        };
        let Shares {
            quantum,
            served,
            begun,
            ceiling,
            ..
        } = self;
        let mut least = NO_ONE;
        self.competing.retain(|index| {
            let Some(account) = served.get_mut(usize::from(*index)) else {
                return false;
            };
            account.is_listed = account.wanted_at + CLAIM_QUANTA * *quantum >= *begun
                && account.seen_at + *quantum / IDLE_DIVISOR >= *begun;
            if account.is_listed {
                account.time += wasted;
                *ceiling = (*ceiling).max(account.time);
                least = least.min(account.time);
            }
            account.is_listed
        });
        self.horizon = least;
        self.floor = match least {
            NO_ONE => self.ceiling,
            least => self.floor.max(least),
        };
    }

    /// Returns whether any port wants more than it got.
    #[inline(always)]
    pub fn is_contended(&self) -> bool {
        self.horizon != NO_ONE
    }

    /// Returns whether an account is so far ahead that it waits for the others.
    #[inline(always)]
    pub fn is_ahead(&self, account: Account) -> bool {
        let time = self.served.get(account.index()).map_or(0, |of| of.time);
        let slack = match account {
            Account::From(_) => self.quantum,
            Account::To(_) => TO_QUANTA * self.quantum,
        };
        time > self.horizon.saturating_add(slack)
    }

    /// Returns whether the poll iteration, at `now`, has taken so long that a burst of `cycles` waits for the next one.
    #[inline(always)]
    pub fn puts_off(&self, cycles: u64, now: u64) -> bool {
        cycles > self.quantum / HEAVY_DIVISOR && now.wrapping_sub(self.begun) > self.quantum
    }

    /// Returns how many frames a stream's next burst may have: as many as take a quantum, at least one. Its last burst
    /// had `frames` frames of at most `most`, and took `cycles`.
    #[inline(always)]
    pub fn frames_max(&self, frames: usize, cycles: u64, most: usize) -> usize {
        if cycles > self.quantum {
            return ((frames as u64 * self.quantum / cycles) as usize).max(1);
        }
        if cycles < self.quantum / 2 {
            return (2 * most).min(crosspoint_frame::BURST);
        }
        most
    }

    /// Returns whether a burst of `cycles` takes no more than a quantum.
    #[inline(always)]
    pub fn is_short(&self, cycles: u64) -> bool {
        cycles <= self.quantum
    }

    /// Returns the part of a burst's `cycles` that is charged to its port. A worker sometimes loses its core to an
    /// interrupt or a hypervisor, so an outlier is charged with one quantum, and any burst with no more than its cost
    /// budget allows.
    #[inline(always)]
    pub fn plausible(&self, cycles: u64, is_outlier: bool) -> u64 {
        let quanta = if is_outlier { 1 } else { BURST_QUANTA_MAX };
        cycles.min(quanta * self.quantum)
    }

    /// Charges an account of a port of weight `weight` with `cycles`, at `now`.
    #[inline(always)]
    pub fn charge(&mut self, account: Account, weight: u32, cycles: u64, now: u64) {
        let floor = self.floor;
        let Some(served) = self.served.get_mut(account.index()) else {
            return;
        };
        let time = match weight {
            0 | 1 => cycles,
            // Never 0: the account would not advance, and would hold up all others.
            weight => (cycles / u64::from(weight)).max(1),
        };
        served.time = served.time.max(floor) + time;
        served.seen_at = now;
        self.ceiling = self.ceiling.max(served.time);
    }

    /// Charges a port with work besides its bursts: calls, and the rest of an iteration whose only burst was its own.
    /// This does not count as a burst.
    #[inline(always)]
    pub fn charge_aside(&mut self, port: u16, weight: u32, cycles: u64) {
        let account = Account::From(port);
        let seen_at = self.served.get(account.index()).map_or(0, |of| of.seen_at);
        let cycles = self.plausible(cycles, false);
        self.charge(account, weight, cycles, seen_at);
    }

    /// Notes that a port is not polled in this iteration, at `now`, so that its claim, if it has one, does not expire.
    #[inline(always)]
    pub fn skip(&mut self, account: Account, now: u64) {
        if let Some(served) = self.served.get_mut(account.index())
            && served.is_listed
        {
            (served.wanted_at, served.seen_at) = (now, now);
        }
    }

    /// Notes that an account that was just charged wants more, at `now`.
    #[inline(always)]
    pub fn want(&mut self, account: Account, now: u64) {
        let index = account.index();
        let Some(served) = self.served.get_mut(index) else {
            return;
        };
        served.wanted_at = now;
        if !std::mem::replace(&mut served.is_listed, true) {
            // One entry for each account, so there is room: no allocation.
            self.competing.push(index as u16);
        }
    }

    /// Returns how far an account is ahead of the horizon, in cycles over the weight; 0 while no port competes.
    pub fn debt(&self, account: Account) -> u64 {
        let time = self.served.get(account.index()).map_or(0, |of| of.time);
        time.saturating_sub(self.horizon)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const QUANTUM: u64 = 1000;

    /// Serves ports, given as cost per frame and weight, that always have frames, as a worker does. Returns the time used
    /// by each.
    fn run(ports: &[(u64, u32)], until: u64) -> Vec<u64> {
        let mut shares = Shares::new(QUANTUM);
        let mut streams = vec![(64usize, 0u64); ports.len()];
        let mut used = vec![0; ports.len()];
        let (mut now, mut start) = (0, 0);
        while now < until {
            shares.begin(now);
            let mut put_off = None;
            let before = now;
            for index in (start..ports.len()).chain(0..start) {
                let (cost, weight) = ports[index];
                let (most, last) = &mut streams[index];
                let account = Account::From(index as u16);
                if shares.is_contended() && shares.is_ahead(account) {
                    shares.skip(account, now);
                    continue;
                }
                if shares.puts_off(*last, now) {
                    shares.skip(account, now);
                    put_off.get_or_insert(index);
                    continue;
                }
                // The cost of the first burst is not known, but a burst has a bound.
                let cycles = (*most as u64 * cost).min(QUANTUM * BURST_QUANTA_MAX);
                now += cycles;
                used[index] += cycles;
                *last = cycles;
                *most = shares.frames_max(*most, cycles, *most);
                shares.charge(account, weight, cycles, now);
                shares.want(account, now);
            }
            start = put_off.unwrap_or(0);
            now += u64::from(now == before);
        }
        used
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Ports that always want more get time in proportion to their weights, whatever their frames cost, to within 3 %
        /// and a few of the longest bursts.
        #[test]
        fn time_goes_by_weight_whatever_frames_cost(
            ports in prop::collection::vec((1u64..8_000, 1u32..5), 1..20),
        ) {
            let used = run(&ports, 20_000_000);
            let weights: u32 = ports.iter().map(|(_, weight)| weight).sum();
            let all: u64 = used.iter().sum();
            for ((_, weight), used) in ports.iter().zip(&used) {
                let fair = all as f64 * f64::from(*weight) / f64::from(weights);
                let error = (*used as f64 - fair).abs();
                prop_assert!(error < 0.03 * fair + 100_000.0, "{} of {}: {:?}", used, fair, ports);
            }
        }
    }

    #[test]
    fn a_port_that_is_alone_never_waits() {
        let used = run(&[(15_000, 1)], 1_000_000);
        assert!(used[0] >= 1_000_000);
    }

    #[test]
    fn what_was_used_while_nothing_competed_is_forgotten() {
        let mut shares = Shares::new(QUANTUM);
        shares.begin(0);
        shares.charge(Account::From(1), 1, 1_000_000, 0);
        shares.begin(1_000_000);
        shares.charge(Account::From(2), 1, 10, 1_000_000);
        shares.want(Account::From(2), 1_000_000);
        shares.begin(1_000_010);
        assert!(shares.is_contended() && !shares.is_ahead(Account::From(1)));
        shares.charge(Account::From(1), 1, 5000, 1_000_010);
        assert!(shares.is_ahead(Account::From(1)) && !shares.is_ahead(Account::To(1)));
    }

    #[test]
    fn a_burst_is_charged_with_no_more_than_it_can_have_taken() {
        let shares = Shares::new(QUANTUM);
        for (took, is_outlier, charged) in [
            (10, true, 10),
            (5 * QUANTUM, true, QUANTUM),
            (5 * QUANTUM, false, 5 * QUANTUM),
            (1_000 * QUANTUM, false, BURST_QUANTA_MAX * QUANTUM),
        ] {
            assert_eq!(shares.plausible(took, is_outlier), charged);
        }
    }

    #[test]
    fn a_port_that_has_gone_quiet_competes_no_longer() {
        let mut shares = Shares::new(QUANTUM);
        shares.begin(0);
        shares.charge(Account::From(2), 1, 10, 0);
        shares.want(Account::From(2), 0);
        shares.begin(10);
        shares.charge(Account::From(1), 1, 5_000, 10);
        shares.begin(6_000);
        // Port 2 has not been polled since the long burst.
        assert!(shares.is_ahead(Account::From(1)));
        shares.begin(6_010);
        assert!(!shares.is_contended());
    }
}
