//! Checks the ports' `direct = { ... }`: each by itself, then against the uplinks that they name.

use std::collections::HashMap;

use super::check::{Checker, Place};
use super::error::SourceFile;
use super::key::Reader;
use super::rules::Nested;
use super::{Direct, Port, PortKind, Queues};

pub(super) const HELP: &str = "for example: direct = { uplink = \"up0\", queue = 3 }";

/// A `direct` that is valid by itself, with the places of its parts.
pub(super) struct Placed {
    direct: Direct,
    uplink: Place,
    queue: Place,
}

impl Placed {
    /// The `direct` of the port that is read.
    pub(super) fn new(reader: &Reader<'_>, direct: &Direct) -> Option<Self> {
        let table = reader.item("direct")?.get_ref().as_table()?;
        let place = |key: &str| Some(reader.checker.place(table.get(key)?.span()));
        Some(Self {
            direct: direct.clone(),
            uplink: place("uplink")?,
            queue: place("queue")?,
        })
    }
}

impl Nested for Direct {
    type Keys = Self;
    const MUST: &'static str = "a table with `uplink` and `queue`";
    const HELP: &'static str = HELP;

    fn check(reader: &mut Reader<'_>, keys: Self) -> Option<Self> {
        let is_given = |key: &&str| reader.item(key).is_some();
        let both = ["uplink", "queue"].iter().all(is_given);
        // A wrong value or a misspelt key has been reported already.
        if !both && !reader.checker.has_problem_in(&reader.place) {
            let message = "`direct` must have `uplink` and `queue`".to_owned();
            reader.problem(message, "not both", HELP);
        }
        reader.is_whole.then_some(keys)
    }

    fn to_keys(&self) -> Option<Self> {
        Some(self.clone())
    }
}

/// Checks each `direct` against its uplink and against the others. `names` contains every port's name, including ports
/// with mistakes, which are not in `ports` and cannot be checked against. An unknown name is not reported if some files
/// could not be read (`are_all`).
///
/// A conflict between a guest and its uplink is reported at the guest; of their files, the one with the higher rank is
/// to blame.
pub(super) fn against_uplinks(
    checker: &mut Checker,
    placed: Vec<Placed>,
    ports: &[Port],
    names: &HashMap<String, Place>,
    are_all: bool,
) {
    let by_name: HashMap<&str, &Port> = ports
        .iter()
        .map(|port| (port.name.as_str(), port))
        .collect();
    let mut taken: HashMap<Direct, Place> = HashMap::new();
    for place in placed {
        let uplink = &place.direct.uplink;
        let (own, other) = (&place.queue.file, names.get(uplink));
        let blamed = other
            .map(|other| &other.file)
            .filter(|other| other.rank > own.rank);
        let blamed = blamed.unwrap_or(own);
        match by_name.get(uplink.as_str()).map(|port| &port.kind) {
            Some(PortKind::Xdp(xdp)) => {
                of_uplink(checker, &place, blamed, &xdp.queues, xdp.channels);
            }
            Some(PortKind::Vhost(_)) => {
                let message = format!("{uplink:?} is a guest's port");
                let help = "name a port of type \"xdp\" here";
                checker.problem_by(blamed, place.uplink.clone(), message, "no uplink", help);
            }
            None if names.contains_key(uplink) || !are_all => {}
            None => {
                let message = format!("no port is named {uplink:?}");
                let help = "name a port of type \"xdp\" of this configuration";
                checker.problem_at(place.uplink.clone(), message, "no such port", help);
            }
        }
        match taken.get(&place.direct).cloned() {
            Some(first) => {
                let message = format!("two guests have queue {} of {uplink:?}", place.direct.queue);
                let help = "give each guest a queue of its own";
                checker.clash_at(place.queue, Some(first), message, help);
            }
            None => drop(taken.insert(place.direct, place.queue)),
        }
    }
}

/// Checks a guest's queue against the uplink's own queues.
fn of_uplink(
    checker: &mut Checker,
    place: &Placed,
    blamed: &SourceFile,
    queues: &Queues,
    channels: Option<u32>,
) {
    let Direct { uplink, queue } = &place.direct;
    if let Queues::List(list) = queues
        && list.contains(queue)
    {
        let message = format!("queue {queue} is among the `queues` of {uplink:?}");
        let help = "a queue is a guest's or the uplink's: remove it there, or take another here";
        checker.problem_by(blamed, place.queue.clone(), message, "taken", help);
    }
    if let Some(channels) = channels.filter(|channels| queue >= channels) {
        let message = format!(
            "{uplink:?} has `channels = {channels}`, so its interface has no queue {queue}"
        );
        let help = "queues count from 0: take a lower one, or raise `channels`";
        checker.problem_by(blamed, place.queue.clone(), message, "too large", help);
    }
}
