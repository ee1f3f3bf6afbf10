//! The measured scenarios, each identified by its name:
//! `TOPOLOGY-FRAMES[-FLOWS][-Nmacs][-idleN][-stateful][-packed][-unmerged][-ringN]`, such as `pair-64`, `both-imix-packed`,
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
    /// This many pairs, in one direction.
    Pairs(usize),
    /// A pair, in both directions at the same time.
    Both,
    /// From the first of this many guests through all others to the last, through the switch each time.
    Chain(usize),
    /// From this many guests to one.
    ManyToOne(usize),
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// Its name.
    pub name: String,
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
    /// Connections are tracked: every frame belongs to one that a rule of its sender allows.
    pub stateful: bool,
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
    /// Ports that a switch must have.
    pub fn need(&self) -> Need {
        Need {
            ports: self.ports(),
            large: matches!(self.frames, Frames::Large(_)),
            is_of_pairs: self.is_of_pairs(),
            addresses: self.addresses,
            stateful: self.stateful,
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
            Topology::Both => 2,
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
        f.write_str(&self.name)
    }
}

impl FromStr for Scenario {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let why = "is not a scenario: TOPOLOGY-FRAMES[-FLOWS][-Nmacs][-idleN][-stateful][-packed][-unmerged][-ringN]";
        let scenario = parse(name).filter(Scenario::is_valid);
        scenario.ok_or_else(|| format!("'{name}' {why}"))
    }
}

fn parse(name: &str) -> Option<Scenario> {
    let many = name.strip_prefix("many-to-one-");
    let mut words = many.unwrap_or(name).split('-').peekable();
    let mut scenario = Scenario {
        name: name.into(),
        topology: Topology::Pairs(1),
        frames: Frames::Size(64),
        flows: 1,
        addresses: 1,
        quiet: 0,
        stateful: false,
        packed: false,
        mergeable: true,
        ring: RING,
    };
    scenario.topology = match (many.is_some(), words.next()?) {
        (true, senders) => Topology::ManyToOne(senders.parse().ok()?),
        (false, "pair") => Topology::Pairs(1),
        (false, "both") => Topology::Both,
        (false, "tso") => {
            let mut number = |default| words.next().map_or(Some(default), |w| w.parse().ok());
            let (piece, segments) = (number(4096)?, number(45)? as u16);
            scenario.frames = Frames::Large(Shape { segments, piece });
            return words.next().is_none().then_some(scenario);
        }
        (false, word) => match (word.strip_prefix("pairs"), word.strip_prefix("chain")) {
            (Some(count), _) => Topology::Pairs(count.parse().ok()?),
            (_, Some(guests)) => Topology::Chain(guests.parse().ok()?),
            _ => return None,
        },
    };
    let frames = words.next_if(|word| *word == "imix" || word.parse::<u16>().is_ok());
    scenario.frames = match frames {
        Some("imix") => Frames::Imix,
        Some(size) => Frames::Size(size.parse().ok()?),
        None => many.map(|_| Frames::Size(64))?,
    };
    if let Some(flows) = words.next_if(|word| word.parse::<u32>().is_ok()) {
        scenario.flows = flows.parse().ok()?;
    }
    for word in words {
        match (word, word.strip_suffix("macs")) {
            (_, Some(addresses)) => scenario.addresses = addresses.parse().ok()?,
            ("stateful", _) => scenario.stateful = true,
            ("packed", _) => scenario.packed = true,
            ("unmerged", _) => scenario.mergeable = false,
            _ => match (word.strip_prefix("idle"), word.strip_prefix("ring")) {
                (Some(quiet), _) => scenario.quiet = quiet.parse().ok()?,
                (_, ring) => scenario.ring = ring?.parse().ok()?,
            },
        }
    }
    Some(scenario)
}

impl Scenario {
    fn is_valid(&self) -> bool {
        let guests = match self.topology {
            Topology::Pairs(count) | Topology::ManyToOne(count) => count >= 1,
            Topology::Chain(guests) => guests >= 2,
            Topology::Both => true,
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

    /// The name of the same scenario with one address on each side, without quiet guests and without connections, for
    /// comparison; `None` if it is that already.
    pub fn plain(&self) -> Option<String> {
        let is_plain = |word: &&str| {
            !word.ends_with("macs") && !word.starts_with("idle") && *word != "stateful"
        };
        let plain: Vec<&str> = self.name.split('-').filter(is_plain).collect();
        Some(plain.join("-")).filter(|plain| *plain != self.name)
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

    #[test]
    fn a_name_makes_a_scenario() {
        let scenario: Scenario = "both-imix-1000-4000macs-idle64-packed-unmerged-ring1024"
            .parse()
            .unwrap();
        assert_eq!(
            (scenario.topology, scenario.frames),
            (Topology::Both, Frames::Imix)
        );
        assert_eq!((scenario.flows, scenario.addresses), (1000, 4000));
        assert_eq!((scenario.quiet, scenario.ring), (64, 1024));
        assert!(scenario.packed && !scenario.mergeable);
        let plain = "both-imix-1000-packed-unmerged-ring1024";
        assert_eq!(scenario.plain().as_deref(), Some(plain));
        let wrong = "pair pair-63 pair-2001 pair-64-0 pairs0-64 chain1-64 pair-64-ring100 pair-64-60001macs \
             pair-64-idle1 pair-64-idle511 pair-64- pairs999-64 tso-63 tso-4096-46 tso-4096-45-1";
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
        for name in all().chain(quick()) {
            let scenario: Scenario = name.parse().unwrap();
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
