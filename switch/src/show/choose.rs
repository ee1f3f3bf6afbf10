//! Which ports `show ports` shows, and in which order.

use clap::ValueEnum;
use crosspoint_config::pattern;
use crosspoint_model::rows::PortRow;
use serde::Deserialize;
use serde_json::Value;

use super::rates::PortRates;
use super::render::Misshapen;

/// A column to sort ports by: words ascending, numbers with the largest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SortBy {
    /// The port's name.
    Port,
    /// vhost or xdp.
    Kind,
    /// Its state.
    State,
    /// Its number of queues.
    Queue,
    /// Its number of addresses.
    Macs,
    /// Frames from it; with --watch, per second.
    Rx,
    /// Copies delivered to it; with --watch, per second.
    Tx,
    /// Drops counted there; with --watch, per second.
    Drops,
    /// Its part of a worker's time.
    Share,
    /// Its VLANs.
    Vlan,
}

/// What to show of all ports.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// Only ports whose names match: `*` is any text, `?` any character.
    pub names: Option<String>,
    /// The column to sort by; without it, the order of the configuration.
    pub sort: Option<SortBy>,
    /// Whether remarks about each port are shown below its line.
    pub detail: bool,
}

/// A place in the order: smaller ones come first.
#[derive(PartialEq, PartialOrd)]
enum Rank {
    Word(String),
    Number(f64),
}

impl Choice {
    fn has(&self, name: &str) -> bool {
        let names = self.names.as_deref();
        names.is_none_or(|pattern| pattern::matches(pattern, name))
    }

    /// Keeps the chosen ports of the JSON of the topic `ports`, in their order.
    pub fn of_json(&self, value: Value) -> Result<Value, Misshapen> {
        let rows = Vec::<PortRow>::deserialize(&value);
        let rows = rows.map_err(|cause| Misshapen {
            topic: "ports",
            cause,
        })?;
        let Value::Array(objects) = value else {
            return Ok(value);
        };
        let mut all: Vec<(PortRow, Value)> = rows.into_iter().zip(objects).collect();
        all.retain(|(row, _)| self.has(&row.name));
        if let Some(by) = self.sort {
            sort(&mut all, |(row, _)| rank(by, row, Numbers::counts(row)));
        }
        Ok(all.into_iter().map(|(_, object)| object).collect())
    }

    /// Keeps the chosen ports, in their order, by rates.
    pub fn of_rates(&self, rates: Vec<PortRates>) -> Vec<PortRates> {
        let mut all = rates;
        all.retain(|one| self.has(&one.row.name));
        if let Some(by) = self.sort {
            sort(&mut all, |one| rank(by, &one.row, Numbers::rates(one)));
        }
        all
    }
}

/// A port's numbers that are counts in one table and rates in the other.
struct Numbers {
    rx: f64,
    tx: f64,
    drops: f64,
    share: f64,
}

impl Numbers {
    fn counts(row: &PortRow) -> Numbers {
        Numbers {
            rx: row.rx_packets as f64,
            tx: row.tx_packets as f64,
            drops: row.drops as f64,
            share: row.share_percent.unwrap_or(-1.0),
        }
    }

    /// An unknown rate is less than none.
    fn rates(one: &PortRates) -> Numbers {
        let or_less = |rate: Option<f64>| rate.unwrap_or(-1.0);
        Numbers {
            rx: or_less(one.traffic.rx_pps),
            tx: or_less(one.traffic.tx_pps),
            drops: or_less(one.traffic.drops),
            share: or_less(one.share_percent),
        }
    }
}

fn rank(by: SortBy, row: &PortRow, numbers: Numbers) -> Rank {
    match by {
        SortBy::Port => Rank::Word(row.name.clone()),
        SortBy::Kind => Rank::Word(row.kind.clone()),
        SortBy::State => Rank::Word(row.state.to_string()),
        SortBy::Vlan => Rank::Word(row.vlan.clone()),
        SortBy::Queue => Rank::Number(-(row.queues as f64)),
        SortBy::Macs => Rank::Number(-f64::from(row.addresses)),
        SortBy::Rx => Rank::Number(-numbers.rx),
        SortBy::Tx => Rank::Number(-numbers.tx),
        SortBy::Drops => Rank::Number(-numbers.drops),
        SortBy::Share => Rank::Number(-numbers.share),
    }
}

/// Sorts; equal ones keep their order.
fn sort<T>(all: &mut [T], rank: impl Fn(&T) -> Rank) {
    all.sort_by(|a, b| {
        let order = rank(a).partial_cmp(&rank(b));
        order.unwrap_or(std::cmp::Ordering::Equal)
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    fn row(name: &str, rx_packets: u64) -> PortRow {
        PortRow {
            name: name.into(),
            rx_packets,
            ..PortRow::default()
        }
    }

    #[test]
    fn ports_are_filtered_and_sorted_with_the_largest_first() {
        let rows = [row("web-1", 5), row("db-1", 70), row("web-2", 30)];
        let names = |choice: Choice| -> Vec<String> {
            let value = serde_json::to_value(&rows).expect("JSON");
            let chosen = choice.of_json(value).expect("ports");
            let chosen = chosen.as_array().expect("an array").iter();
            chosen
                .map(|row| row["name"].as_str().unwrap_or("").to_owned())
                .collect()
        };
        let web = Some("web-*".to_owned());
        let by = |sort, names| Choice {
            names,
            sort,
            detail: false,
        };
        assert_eq!(names(by(None, None)), ["web-1", "db-1", "web-2"]);
        assert_eq!(
            names(by(Some(SortBy::Rx), None)),
            ["db-1", "web-2", "web-1"]
        );
        assert_eq!(
            names(by(Some(SortBy::Port), None)),
            ["db-1", "web-1", "web-2"]
        );
        assert_eq!(names(by(Some(SortBy::Rx), web)), ["web-2", "web-1"]);
    }
}
