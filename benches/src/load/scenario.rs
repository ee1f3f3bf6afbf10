//! The measured scenarios, each identified by its name:
//! `TOPOLOGY-FRAMES[-FLOWS][-Nmacs][-idleN][-packed][-unmerged][-ringN]`, such as `pair-64`, `both-imix-packed`,
//! `pair-64-10000`, `pair-64-4000macs`, `pair-64-idle256`, `chain8-64`, `many-to-one-7` (64 bytes, the default); and
//! `tso[-PIECE[-SEGMENTS]]`.

use crate::lab::Need;
use crate::load::Shape;
use crate::options::FCS_LEN;
use std::fmt;
use std::str::FromStr;

/// Entries of a ring if the name does not contain them.
pub const RING: u16 = 256;
/// 7 : 4 : 1, bytes on the ring of frames of 64, 570 and 1518; mixed well, so that any ring has about that share of each.
/// The mean is 354, FCS included.
static IMIX: [u16; 12] = [60, 566, 60, 60, 566, 60, 1514, 60, 566, 60, 566, 60];
/// Larger frames would not fit a receive buffer.
const SIZE_MAX: u16 = 2000;
/// Allowed ring sizes.
const RINGS: std::ops::RangeInclusive<u16> = 2..=32768;
/// Most guests of one scenario.
const GUESTS_MAX: usize = 512;
/// Most addresses on each side.
const ADDRESSES_MAX: u32 = 60_000;

/// The senders and receivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Topology {
    /// From one guest to another.
    Pair,
    /// In both directions at the same time.
    Both,
    /// This many pairs, in one direction.
    Pairs(usize),
    /// From the first of this many guests through all others to the last, through the switch each time.
    Chain(usize),
    /// From this many guests to one.
    ManyToOne(usize),
    /// Large TCP frames from one guest to another.
    Tso,
}

/// The kind of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frames {
    /// All of one size, FCS included.
    Size(u16),
    /// A mix of three sizes.
    Imix,
    /// Large TCP frames, whole.
    Large(Shape),
}

/// A scenario to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// The senders and receivers.
    pub topology: Topology,
    /// The kind of frames.
    pub frames: Frames,
    /// Flows of each sender, by UDP source port, and beyond 60 000 by address.
    pub flows: u32,
    /// Addresses on each side of every stream, used in turn.
    pub addresses: u32,
    /// Additional guests that are attached and quiet; one of them at a time sends a single frame.
    pub quiet: usize,
    /// Packed rings.
    pub packed: bool,
    /// Mergeable receive buffers.
    pub mergeable: bool,
    /// Entries of each ring.
    pub ring: u16,
}

/// The role of one guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Role {
    /// Number of the switch's port.
    pub port: usize,
    /// The guest to which it sends or forwards frames, by number.
    pub to: Option<usize>,
    /// Whether it generates frames.
    pub sends: bool,
    /// Whether it receives frames, to count or to forward them.
    pub receives: bool,
    /// The number of its generator.
    pub generator: usize,
}

impl Scenario {
    /// A scenario with this topology and these frames, and defaults otherwise.
    pub fn new(topology: Topology, frames: Frames) -> Self {
        Self {
            topology,
            frames,
            flows: 1,
            addresses: 1,
            quiet: 0,
            packed: false,
            mergeable: true,
            ring: RING,
        }
    }

    /// Ports that a switch must have.
    pub fn need(&self) -> Need {
        Need {
            ports: self.ports(),
            large: self.topology == Topology::Tso,
            is_of_pairs: self.is_of_pairs(),
            addresses: self.addresses,
        }
    }

    /// Number of guests that generate frames.
    pub fn senders(&self) -> usize {
        self.roles(1).iter().filter(|role| role.sends).count()
    }

    /// Ports that a switch needs.
    pub fn ports(&self) -> usize {
        self.busy_ports() + self.quiet
    }

    /// Ports of guests with traffic: the first ones.
    pub fn busy_ports(&self) -> usize {
        match self.topology {
            Topology::Pair | Topology::Both | Topology::Tso => 2,
            Topology::Pairs(pairs) => 2 * pairs,
            Topology::Chain(guests) => guests,
            Topology::ManyToOne(senders) => senders + 1,
        }
    }

    /// How often the switch handles each frame that arrives.
    pub fn passes(&self) -> usize {
        match self.topology {
            Topology::Chain(guests) => guests - 1,
            _ => 1,
        }
    }

    /// Whether each stream goes to the other port of its pair, as in testpmd: 0 to 1, 2 to 3, and so on.
    pub fn is_of_pairs(&self) -> bool {
        !matches!(
            self.topology,
            Topology::Chain(3..) | Topology::ManyToOne(2..)
        )
    }

    /// The guests' roles, in the order in which they connect. A switch that gives each new stream to the worker with the
    /// fewest thus distributes the senders over the workers.
    pub fn roles(&self, generators: usize) -> Vec<Role> {
        match self.topology {
            Topology::Pair | Topology::Tso => pairs(1, generators),
            Topology::Pairs(count) => pairs(count, generators),
            Topology::Both => vec![
                Role::new(0, Some(1), true, true, 0),
                Role::new(1, Some(0), true, true, 0),
            ],
            Topology::Chain(guests) => chain(guests, generators),
            Topology::ManyToOne(senders) => many_to_one(senders, generators),
        }
    }

    /// Bytes on the ring: of all frames, or of each in turn.
    pub fn frame_lens(&self) -> (usize, &'static [u16]) {
        match self.frames {
            Frames::Size(size) => ((size - FCS_LEN).into(), &[]),
            Frames::Imix => (1514, &IMIX),
            Frames::Large(shape) => (shape.frame_len(), &[]),
        }
    }
}

impl Role {
    fn new(port: usize, to: Option<usize>, sends: bool, receives: bool, generator: usize) -> Self {
        Self {
            port,
            to,
            sends,
            receives,
            generator,
        }
    }
}

/// The senders, on every other port, and then the receivers; each pair belongs to one generator.
fn pairs(count: usize, generators: usize) -> Vec<Role> {
    let sender = |i| Role::new(2 * i, Some(count + i), true, false, i % generators);
    let receiver = |i| Role::new(2 * i + 1, None, false, true, i % generators);
    let senders = (0..count).map(sender);
    senders.chain((0..count).map(receiver)).collect()
}

fn chain(guests: usize, generators: usize) -> Vec<Role> {
    let guest = |i| {
        let next = Some(i + 1).filter(|next| *next < guests);
        Role::new(i, next, i == 0, i > 0, i % generators)
    };
    (0..guests).map(guest).collect()
}

/// The receiver belongs to the first generator, which has nothing else if there are others.
fn many_to_one(senders: usize, generators: usize) -> Vec<Role> {
    let generator = |i| match generators {
        1 => 0,
        more => 1 + i % (more - 1),
    };
    let sender = |i| Role::new(i, Some(senders), true, false, generator(i));
    let mut roles: Vec<Role> = (0..senders).map(sender).collect();
    roles.push(Role::new(senders, None, false, true, 0));
    roles
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.topology {
            Topology::Pair => f.write_str("pair")?,
            Topology::Both => f.write_str("both")?,
            Topology::Pairs(count) => write!(f, "pairs{count}")?,
            Topology::Chain(guests) => write!(f, "chain{guests}")?,
            Topology::ManyToOne(senders) => write!(f, "many-to-one-{senders}")?,
            Topology::Tso => f.write_str("tso")?,
        }
        match (self.topology, self.frames) {
            (Topology::ManyToOne(_), Frames::Size(64)) if self.flows == 1 => {}
            (_, Frames::Size(size)) => write!(f, "-{size}")?,
            (_, Frames::Imix) => f.write_str("-imix")?,
            (_, Frames::Large(Shape::LARGEST)) => {}
            (_, Frames::Large(shape)) => {
                write!(f, "-{}", shape.piece)?;
                if shape.segments != Shape::LARGEST.segments {
                    write!(f, "-{}", shape.segments)?;
                }
            }
        }
        if self.flows != 1 {
            write!(f, "-{}", self.flows)?;
        }
        if self.addresses != 1 {
            write!(f, "-{}macs", self.addresses)?;
        }
        if self.quiet != 0 {
            write!(f, "-idle{}", self.quiet)?;
        }
        if self.packed {
            f.write_str("-packed")?;
        }
        if !self.mergeable {
            f.write_str("-unmerged")?;
        }
        if self.ring != RING {
            write!(f, "-ring{}", self.ring)?;
        }
        Ok(())
    }
}

impl FromStr for Scenario {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let why = "is not a scenario: TOPOLOGY-FRAMES[-FLOWS][-Nmacs][-idleN][-packed][-unmerged][-ringN]";
        parse(name).ok_or_else(|| format!("'{name}' {why}"))
    }
}

/// `None` if `name` is not the exact name of a scenario.
fn parse(name: &str) -> Option<Scenario> {
    if let Some(shape) = name.strip_prefix("tso") {
        let mut numbers = shape.split('-').skip(1);
        let mut shape = Shape::LARGEST;
        if let Some(piece) = numbers.next() {
            shape.piece = piece.parse().ok()?;
        }
        if let Some(segments) = numbers.next() {
            shape.segments = segments.parse().ok()?;
        }
        let scenario = Scenario::new(Topology::Tso, Frames::Large(shape));
        return (scenario.is_valid() && scenario.to_string() == name).then_some(scenario);
    }
    let many = name.strip_prefix("many-to-one-");
    let mut words = many.unwrap_or(name).split('-').peekable();
    let topology = match (many.is_some(), words.next()?) {
        (true, senders) => Topology::ManyToOne(senders.parse().ok()?),
        (false, "pair") => Topology::Pair,
        (false, "both") => Topology::Both,
        (false, word) => match (word.strip_prefix("pairs"), word.strip_prefix("chain")) {
            (Some(count), _) => Topology::Pairs(count.parse().ok()?),
            (_, Some(guests)) => Topology::Chain(guests.parse().ok()?),
            _ => return None,
        },
    };
    let mut scenario = Scenario::new(topology, Frames::Size(64));
    let frames = words.next_if(|word| *word == "imix" || word.parse::<u16>().is_ok());
    scenario.frames = match frames {
        Some("imix") => Frames::Imix,
        Some(size) => Frames::Size(size.parse().ok()?),
        None => scenario.frames,
    };
    if let Some(flows) = words.next_if(|word| word.parse::<u32>().is_ok()) {
        scenario.flows = flows.parse().ok()?;
    }
    if let Some(addresses) = words.next_if(|word| word.ends_with("macs")) {
        scenario.addresses = addresses.strip_suffix("macs")?.parse().ok()?;
    }
    if let Some(quiet) = words.next_if(|word| word.starts_with("idle")) {
        scenario.quiet = quiet.strip_prefix("idle")?.parse().ok()?;
    }
    scenario.packed = words.next_if_eq(&"packed").is_some();
    scenario.mergeable = words.next_if_eq(&"unmerged").is_none();
    if let Some(ring) = words.next_if(|word| word.starts_with("ring")) {
        scenario.ring = ring["ring".len()..].parse().ok()?;
    }
    let is_valid = scenario.is_valid() && words.next().is_none() && scenario.to_string() == name;
    is_valid.then_some(scenario)
}

impl Scenario {
    fn is_valid(&self) -> bool {
        let guests = match self.topology {
            Topology::Pairs(count) | Topology::ManyToOne(count) => count >= 1,
            Topology::Chain(guests) => guests >= 2,
            _ => true,
        };
        let size = match self.frames {
            Frames::Size(size) => (64..=SIZE_MAX).contains(&size),
            Frames::Imix => true,
            Frames::Large(shape) => shape.is_valid(),
        };
        let ring = self.ring.is_power_of_two() && RINGS.contains(&self.ring);
        let addresses = (1..=ADDRESSES_MAX).contains(&self.addresses);
        // One quiet guest sends and another receives, so there cannot be only one.
        let quiet = self.quiet != 1;
        let counts = self.flows >= 1 && self.ports() <= GUESTS_MAX;
        guests && size && ring && addresses && quiet && counts
    }

    /// The same scenario with one address on each side and without quiet guests, for comparison; `None` if it is that
    /// already.
    pub fn plain(&self) -> Option<Self> {
        let plain = Self {
            addresses: 1,
            quiet: 0,
            ..*self
        };
        (plain != *self).then_some(plain)
    }
}

/// The names of the scenarios that are measured by default, in order.
const ALL: &str = "\
    pair-64 pair-128 pair-256 pair-512 pair-1518 pair-imix both-64 both-1518 both-imix pair-64-1000 \
    pair-64-10000 pair-64-100000 both-64-10000 pair-64-4000macs pair-64-30000macs pair-64-4000macs-packed \
    pair-64-30000macs-packed pair-64-idle64 pair-64-idle256 pair-64-packed pair-1518-packed \
    pair-64-10000-packed both-64-packed pair-64-unmerged pair-1518-unmerged pair-64-packed-unmerged \
    pair-64-ring1024 pair-1518-ring1024 tso pairs4-64 pairs16-64 pairs64-64 pairs64-1518 pairs64-64-packed \
    chain2-64 chain4-64 chain8-64 chain8-1518 chain8-64-packed many-to-one-1 many-to-one-2 many-to-one-3 \
    many-to-one-4 many-to-one-5 many-to-one-6 many-to-one-7";

/// The scenarios of `--quick`.
const QUICK: &str = "\
    pair-64 pair-1518 both-64 pair-64-packed pairs16-64 chain4-64 many-to-one-4";

/// The names of the scenarios that are measured by default.
pub fn all() -> impl Iterator<Item = &'static str> {
    ALL.split(' ')
}

/// The names of the scenarios of `--quick`.
pub fn quick() -> impl Iterator<Item = &'static str> {
    QUICK.split(' ')
}

/// The scenarios named by `patterns`, in that order: globs over [`ALL`], or any name.
pub fn select(patterns: &[String]) -> Result<Vec<Scenario>, String> {
    let mut chosen: Vec<Scenario> = Vec::new();
    for pattern in patterns {
        let mut names: Vec<&str> = all().filter(|name| matches(pattern, name)).collect();
        if names.is_empty() {
            names.push(pattern);
        }
        for name in names {
            let scenario = name.parse()?;
            if !chosen.contains(&scenario) {
                chosen.push(scenario);
            }
        }
    }
    Ok(chosen)
}

/// Matches a glob in which only `*` and `?` are special.
pub fn matches(pattern: &str, name: &str) -> bool {
    match (pattern.chars().next(), name.chars().next()) {
        (None, None) => true,
        (Some('*'), first) => {
            matches(&pattern[1..], name)
                || first.is_some_and(|first| matches(pattern, &name[first.len_utf8()..]))
        }
        (Some(wanted), Some(first)) if wanted == '?' || wanted == first => {
            matches(&pattern[wanted.len_utf8()..], &name[first.len_utf8()..])
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Scenarios of every kind, also those that are not in a list.
    fn many() -> Vec<Scenario> {
        let topologies = [
            Topology::Pair,
            Topology::Both,
            Topology::Pairs(7),
            Topology::Chain(5),
            Topology::ManyToOne(3),
        ];
        let shape = |piece, segments| Frames::Large(Shape { piece, segments });
        let large = [shape(4096, 45), shape(32768, 45), shape(4096, 10)];
        let mut all: Vec<Scenario> = large.map(|f| Scenario::new(Topology::Tso, f)).into();
        for bits in 0..1 << 4 {
            for topology in topologies {
                for frames in [Frames::Size(64), Frames::Size(1518), Frames::Imix] {
                    all.push(Scenario {
                        topology,
                        frames,
                        flows: if bits & 1 == 0 { 1 } else { 100_000 },
                        addresses: if bits & 3 == 0 { 1 } else { 4000 },
                        quiet: if bits & 6 == 0 { 0 } else { 64 },
                        packed: bits & 2 != 0,
                        mergeable: bits & 4 == 0,
                        ring: if bits & 8 == 0 { RING } else { 1024 },
                    });
                }
            }
        }
        all
    }

    #[test]
    fn every_scenario_has_one_name_and_the_name_makes_it() {
        let all = many();
        let names: BTreeSet<String> = all.iter().map(Scenario::to_string).collect();
        assert_eq!(names.len(), all.len());
        for scenario in all {
            assert_eq!(scenario.to_string().parse(), Ok(scenario));
        }
        for name in super::all().chain(quick()) {
            assert_eq!(name.parse::<Scenario>().unwrap().to_string(), name);
        }
        let wrong = "pair pair-63 pair-2001 pair-64-0 pair-64-1 pairs0-64 chain1-64 pair-64-ring100 \
             pair-64-ring1 pair-64-ring256 pair-64-1macs pair-64-60001macs pair-64-idle0 \
             pair-64-idle1 pair-64-idle511 pair-64-idle64-4000macs pair-64-unmerged-packed \
             many-to-one-3-64 pair-64- pair-064 pairs999-64 tso-63 tso-4096 tso-4096-45 tso-4096-46";
        for wrong in wrong.split(' ').chain([""]) {
            assert!(wrong.parse::<Scenario>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn globs_choose_from_the_list_and_any_other_name_is_made() {
        let names = |patterns: &str| -> Vec<String> {
            let patterns: Vec<String> = patterns.split(',').map(Into::into).collect();
            let chosen = select(&patterns).unwrap();
            chosen.iter().map(Scenario::to_string).collect()
        };
        assert_eq!(names("*"), all().collect::<Vec<_>>());
        let chains = ["chain2-64", "chain4-64", "chain8-64"];
        assert_eq!(names("chain?-64,chain4*"), chains);
        assert_eq!(names("pairs7-64,pair-64,pair-64"), ["pairs7-64", "pair-64"]);
        assert!(select(&["nothing*".into()]).is_err());
    }

    #[test]
    fn in_every_scenario_guests_have_ports_of_their_own_and_frames_end_at_a_receiver() {
        for scenario in many() {
            for generators in 1..4 {
                let roles = scenario.roles(generators);
                let ports: BTreeSet<usize> = roles.iter().map(|role| role.port).collect();
                assert_eq!(
                    (ports.len(), roles.len()),
                    (scenario.busy_ports(), scenario.busy_ports())
                );
                assert_eq!(ports.last(), Some(&(scenario.busy_ports() - 1)));
                assert!(roles.iter().all(|role| role.generator < generators));
                assert!(roles[0].sends, "{scenario}: a sender connects first");
                for (first, role) in roles.iter().enumerate().filter(|(_, role)| role.sends) {
                    let mut passes = 1;
                    let mut at = role.to.unwrap();
                    while let Some(next) = roles[at].to.filter(|_| !roles[at].sends) {
                        assert!(roles[at].receives);
                        (at, passes) = (next, passes + 1);
                    }
                    assert!(roles[at].receives && at != first);
                    assert_eq!(passes, scenario.passes(), "{scenario}");
                    let pair = roles[at].port ^ 1 == role.port;
                    assert!(pair || !scenario.is_of_pairs(), "{scenario}");
                }
            }
        }
    }
}
