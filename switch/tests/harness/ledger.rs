//! The ledger: no frame is lost without a drop reason.
//!
//! For every port, received frames plus copies added by flooding equal copies delivered plus copies dropped. In total,
//! copies delivered equal the frames that ports transmitted, and copies dropped equal the drops of all reasons.

use std::collections::BTreeMap;
use std::fmt;

use super::Metrics;

/// The counters of one port, summed over all its queues.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Port {
    pub rx: u64,
    pub tx: u64,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub flood_copies: u64,
    pub segment_copies: u64,
    pub mirror_copies: u64,
    pub joined_copies: u64,
    pub delivered_copies: u64,
    pub dropped_copies: u64,
    /// Drops by reason; reasons that never occurred are absent.
    pub drops: BTreeMap<String, u64>,
}

/// All ports, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    pub ports: BTreeMap<String, Port>,
}

impl Ledger {
    /// Reads it from a scrape.
    pub fn new(metrics: &Metrics) -> Self {
        let mut ledger = Self::default();
        for sample in &metrics.samples {
            let entry = || sample.label("port").to_owned();
            let value = sample.value as u64;
            let ports = &mut ledger.ports;
            match (sample.name.as_str(), sample.label("direction")) {
                ("crosspoint_port_up", _) => drop(ports.entry(entry()).or_default()),
                ("crosspoint_queue_packets_total", "rx") => {
                    ports.entry(entry()).or_default().rx += value
                }
                ("crosspoint_queue_packets_total", "tx") => {
                    ports.entry(entry()).or_default().tx += value
                }
                ("crosspoint_queue_bytes_total", "rx") => {
                    ports.entry(entry()).or_default().rx_bytes += value
                }
                ("crosspoint_queue_bytes_total", "tx") => {
                    ports.entry(entry()).or_default().tx_bytes += value
                }
                ("crosspoint_queue_flood_copies_total", _) => {
                    ports.entry(entry()).or_default().flood_copies += value
                }
                ("crosspoint_queue_mirror_copies_total", _) => {
                    ports.entry(entry()).or_default().mirror_copies += value
                }
                ("crosspoint_queue_segment_copies_total", _) => {
                    ports.entry(entry()).or_default().segment_copies += value
                }
                ("crosspoint_queue_joined_copies_total", _) => {
                    ports.entry(entry()).or_default().joined_copies += value
                }
                ("crosspoint_queue_delivered_copies_total", _) => {
                    ports.entry(entry()).or_default().delivered_copies += value;
                }
                ("crosspoint_queue_dropped_copies_total", _) => {
                    ports.entry(entry()).or_default().dropped_copies += value;
                }
                ("crosspoint_drops_total", _) if value > 0 => {
                    let drops = &mut ports.entry(entry()).or_default().drops;
                    *drops.entry(sample.label("reason").to_owned()).or_default() += value;
                }
                _ => {}
            }
        }
        ledger
    }

    /// What does not balance, if anything.
    pub fn fault(&self) -> Option<String> {
        let sum = |of: fn(&Port) -> u64| self.ports.values().map(of).sum::<u64>();
        for (name, port) in &self.ports {
            let made = port.flood_copies + port.segment_copies + port.mirror_copies;
            if port.rx + made != port.delivered_copies + port.dropped_copies + port.joined_copies {
                return Some(format!(
                    "{name}: rx + flood and segment copies is not delivered + dropped + joined"
                ));
            }
        }
        if sum(|port| port.delivered_copies) != sum(|port| port.tx) {
            return Some("copies delivered are not the frames transmitted".to_owned());
        }
        if sum(|port| port.dropped_copies) != sum(|port| port.drops.values().sum()) {
            return Some("copies dropped are not the drops of all reasons".to_owned());
        }
        None
    }

    /// One port.
    pub fn port(&self, name: &str) -> &Port {
        self.ports
            .get(name)
            .unwrap_or_else(|| panic!("no port {name:?} in\n{self}"))
    }

    /// Checks that each port has counted its half of an exchange of `frames` frames, and at most one more to be learned; and that
    /// none was dropped.
    pub fn assert_exchanged(&self, names: [&str; 2], frames: u64) {
        for name in names {
            let port = self.port(name);
            let sent = frames / 2..=frames / 2 + 1;
            assert!(sent.contains(&port.rx), "{name}: {frames} frames\n{self}");
            assert_eq!(port.dropped_copies, 0, "{name}\n{self}");
        }
    }
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heads = [
            "port",
            "rx",
            "flood",
            "cut",
            "joined",
            "delivered",
            "dropped",
            "tx",
        ];
        writeln!(
            f,
            "{:<12}{:>12}{:>12}{:>12}{:>12}{:>12}{:>12}{:>12}  drops",
            heads[0], heads[1], heads[2], heads[3], heads[4], heads[5], heads[6], heads[7]
        )?;
        for (name, p) in &self.ports {
            let numbers = [
                p.rx,
                p.flood_copies,
                p.segment_copies,
                p.joined_copies,
                p.delivered_copies,
                p.dropped_copies,
                p.tx,
            ];
            write!(f, "{name:<12}")?;
            numbers
                .iter()
                .try_for_each(|number| write!(f, "{number:>12}"))?;
            writeln!(f, "  {:?}", p.drops)?;
        }
        Ok(())
    }
}
