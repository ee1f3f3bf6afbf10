//! The views and their columns.

use clap::ValueEnum;
use clap::builder::PossibleValue;

use super::Order;

/// A view of `top`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// Ports and their traffic.
    Ports,
    /// Queues and their traffic.
    Queues,
    /// Workers, their time, and the streams that it is spent on.
    Workers,
    /// Drops by queue and reason.
    Drops,
    /// Completion times by queue.
    Latency,
    /// Ports' use of workers' time, and which of them limits hold back.
    Shares,
    /// Addresses that move between ports.
    Moves,
    /// Flooded frames of ports, and what they cost.
    Floods,
    /// Connections of ports with security groups.
    Connections,
}

/// A column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Column {
    pub(in super::super) name: &'static str,
    /// Words are flush left, and sorted in ascending order; numbers are flush right, in descending order.
    pub(in super::super) words: bool,
    /// Minimum width, so that columns do not jump with every digit.
    pub(in super::super) width_min: usize,
}

const fn words(name: &'static str) -> Column {
    Column {
        name,
        words: true,
        width_min: name.len(),
    }
}

const fn number(name: &'static str, width_min: usize) -> Column {
    Column {
        name,
        words: false,
        width_min,
    }
}

/// The largest width of a rate or a time.
const RATE: usize = 5;

const PORTS: &[Column] = &[
    words("PORT"),
    words("KIND"),
    words("STATE"),
    number("RX-PPS", RATE),
    number("RX-BIT/S", RATE),
    number("TX-PPS", RATE),
    number("TX-BIT/S", RATE),
    number("DROP/S", RATE),
    number("ADDRS", RATE),
    number("SHARE", 6),
];
const QUEUES: &[Column] = &[
    words("QUEUE"),
    number("WORKER", 2),
    number("RX-PPS", RATE),
    number("RX-BIT/S", RATE),
    number("TX-PPS", RATE),
    number("TX-BIT/S", RATE),
    number("DROP/S", RATE),
    number("KICK/S", RATE),
    number("CALL/S", RATE),
];
const WORKERS: &[Column] = &[
    number("WORKER", 2),
    number("CORE", 2),
    number("BUSY", 6),
    number("IDLE", 6),
    number("SLEEP", 6),
    number("BURST/S", RATE),
    number("PREEMPT/S", RATE),
    words("STREAMS"),
];
const DROPS: &[Column] = &[
    words("QUEUE"),
    words("REASON"),
    number("DROP/S", RATE),
    number("TOTAL", RATE),
    words("SENDER"),
    words("MEANING"),
];
const LATENCY: &[Column] = &[
    words("QUEUE"),
    number("WORKER", 2),
    number("DONE/S", RATE),
    number("MEAN", RATE),
    number("P50", RATE),
    number("P90", RATE),
    number("P99", RATE),
    number("P99.9", RATE),
    number("MAX", RATE),
];

const SHARES: &[Column] = &[
    words("PORT"),
    number("WEIGHT", 3),
    number("SHARE", 6),
    number("HELD/S", RATE),
    number("OVER/S", RATE),
    number("STORM/S", RATE),
    number("MOVE/S", RATE),
    number("DAMP/S", RATE),
    number("ADDRS", RATE),
];
const MOVES: &[Column] = &[
    words("ADDRESS"),
    number("VLAN", 4),
    words("HOME"),
    words("OTHER"),
    words("PORT"),
    number("MOVES", 3),
    number("SINCE", RATE),
    words("DAMPED"),
];

const FLOODS: &[Column] = &[
    words("PORT"),
    number("BCAST/S", RATE),
    number("MCAST/S", RATE),
    number("UNKN/S", RATE),
    number("EXTRA/S", RATE),
    number("STORM/S", RATE),
    number("MOVE/S", RATE),
    number("SHARE", 6),
];

const CONNECTIONS: &[Column] = &[
    words("PORT"),
    number("CONNECTIONS", RATE),
    number("OF-MAX", 6),
    number("HALF-OPEN", RATE),
    number("NEW/S", RATE),
    number("REFUSED/S", RATE),
    number("MAX", RATE),
];

impl ValueEnum for View {
    fn value_variants<'a>() -> &'a [View] {
        &View::ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(self.name()))
    }
}

impl View {
    /// All views, in the order of their keys.
    pub const ALL: [View; 9] = [
        View::Ports,
        View::Queues,
        View::Workers,
        View::Drops,
        View::Latency,
        View::Shares,
        View::Moves,
        View::Floods,
        View::Connections,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            View::Ports => "ports",
            View::Queues => "queues",
            View::Workers => "workers",
            View::Drops => "drops",
            View::Latency => "latency",
            View::Shares => "shares",
            View::Moves => "moves",
            View::Floods => "floods",
            View::Connections => "connections",
        }
    }

    pub(in super::super) const fn columns(self) -> &'static [Column] {
        match self {
            View::Ports => PORTS,
            View::Queues => QUEUES,
            View::Workers => WORKERS,
            View::Drops => DROPS,
            View::Latency => LATENCY,
            View::Shares => SHARES,
            View::Moves => MOVES,
            View::Floods => FLOODS,
            View::Connections => CONNECTIONS,
        }
    }

    /// The initial order: the configuration's; for drops and times, the worst first.
    pub(in super::super) const fn order(self) -> Order {
        let column = match self {
            View::Ports | View::Queues | View::Workers | View::Moves => None,
            View::Shares => Some(2),
            View::Drops => Some(2),
            View::Latency => Some(6),
            View::Floods => Some(4),
            View::Connections => Some(2),
        };
        Order {
            column,
            reversed: false,
        }
    }
}
