//! What is set on an interface while it is a port, and put back after.

use std::time::{Duration, Instant};

use crate::namespace::within;
use crate::{Channels, Ethtool, IndirectionTable, Interface, LinkError, Links, Peer};

/// A feature of a driver that must be off: its name in the kernel, and the one that ethtool is given.
type Named = (&'static str, &'static str);

/// What a NIC takes out of the frames that it receives, or adds to them: tags of either kind that it puts beside, their
/// checksums, the tag of a redundant ring.
const RECEIVED: &[Named] = &[
    ("rx-vlan-hw-parse", "rxvlan"),
    ("rx-vlan-stag-hw-parse", "rx-vlan-stag-hw-parse"),
    ("rx-fcs", "rx-fcs"),
    ("hsr-tag-rm-offload", "hsr-tag-rm-offload"),
];
/// What a sender leaves for its NIC to do, and a veth hands on undone: tags of either kind, and checksums that are no sum
/// and so cannot be finished here (CRC32c of SCTP, the CRC of Fibre Channel).
const SENT: &[Named] = &[
    ("tx-vlan-hw-insert", "txvlan"),
    ("tx-vlan-stag-hw-insert", "tx-vlan-stag-hw-insert"),
    ("tx-checksum-sctp", "tx-checksum-sctp"),
    ("tx-checksum-fcoe-crc", "tx-checksum-fcoe-crc"),
];
/// The same of large packets: how they are to be cut is noted beside them. The kernel does this itself where the program
/// is in the driver.
const SENT_LARGE: &[Named] = &[
    ("tx-tcp-segmentation", "tx-tcp-segmentation"),
    ("tx-tcp-ecn-segmentation", "tx-tcp-ecn-segmentation"),
    (
        "tx-tcp-mangleid-segmentation",
        "tx-tcp-mangleid-segmentation",
    ),
    ("tx-tcp6-segmentation", "tx-tcp6-segmentation"),
    ("tx-tcp-accecn-segmentation", "tx-tcp-accecn-segmentation"),
    ("tx-udp-segmentation", "tx-udp-segmentation"),
    ("tx-sctp-segmentation", "tx-sctp-segmentation"),
    ("tx-gso-list", "tx-gso-list"),
];

/// How long a queue may stay in use after its last AF_XDP socket was closed: the kernel takes some 20 ms, and does not
/// take a queue away before.
const RELEASE_PATIENCE: Duration = Duration::from_secs(1);
const RELEASE_PAUSE: Duration = Duration::from_millis(5);

/// How an interface shall be set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Its MTU, bytes; `None`: as it is.
    pub mtu: Option<u32>,
    /// Its number of queues; `None`: as it is.
    pub channels: Option<u32>,
}

/// Whether frames are whole when XDP sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frames {
    /// They are.
    Whole,
    /// They are now. In words, what was changed for it.
    Changed(String),
    /// They may not be, and somebody else has to do something. In words, what.
    Lacking(String),
}

/// What was there before, and what we set in its place.
#[derive(Clone, Debug)]
struct Change<T> {
    was: T,
    set: T,
}

/// What has been changed of one interface. Dropping it puts that back which nobody has changed since. A process that
/// is killed outright puts nothing back.
#[derive(Debug)]
pub struct Settings {
    name: String,
    index: u32,
    mtu: Option<Change<u32>>,
    channels: Option<Change<Channels>>,
    table: Option<Change<IndirectionTable>>,
    /// Features that have been turned off,
    off: Vec<Named>,
    /// and those of the veth's other end, or of those of veths below.
    off_at_peers: Vec<(Peer, Vec<Named>)>,
    /// The veth's other end.
    peer: Option<Peer>,
    /// The other ends of veths below it that have been looked at.
    below: Vec<Peer>,
}

impl Settings {
    /// Nothing is changed yet.
    pub fn new(interface: &Interface) -> Settings {
        Settings {
            name: interface.name.clone(),
            index: interface.index,
            mtu: None,
            channels: None,
            table: None,
            off: Vec::new(),
            off_at_peers: Vec::new(),
            peer: None,
            below: Vec::new(),
        }
    }

    /// The number of the interface that this is about.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Sets what is wanted and is not so already.
    pub fn apply(&mut self, wanted: Wanted, interface: &Interface) -> Result<(), LinkError> {
        if let Some(count) = wanted.channels {
            self.set_channels(count)?;
        }
        match wanted.mtu {
            Some(set) if set != interface.mtu => {
                Links::open()?.set_mtu(self.index, set)?;
                let was = self.mtu.as_ref().map_or(interface.mtu, |mtu| mtu.was);
                self.mtu = Some(Change { was, set });
            }
            _ => {}
        }
        Ok(())
    }

    fn set_channels(&mut self, count: u32) -> Result<(), LinkError> {
        let mut ethtool = Ethtool::open()?;
        let now = ethtool.channels(self.index)?;
        let set = now.with(count);
        if set == now {
            return Ok(());
        }
        if count > now.max() {
            let what = "setting the number of queues";
            return Err(LinkError {
                said: Some(format!("it can have {} at most", now.max())),
                ..LinkError::new(what, rustix::io::Errno::INVAL)
            });
        }
        ethtool.set_channels(self.index, set)?;
        let was = self.channels.as_ref().map_or(now, |channels| channels.was);
        self.channels = Some(Change { was, set });
        Ok(())
    }

    /// Spreads what is received evenly over `queues`, and to no other. Unsupported where the driver has no table; with
    /// one queue, and all of them, that needs none.
    pub fn spread(&mut self, queues: &[u32]) -> Result<(), LinkError> {
        let now = IndirectionTable::of(&self.name)?;
        let set = now.over(queues);
        if set == now {
            return Ok(());
        }
        set.set(&self.name)?;
        let was = self.table.take().map_or(now, |table| table.was);
        self.table = Some(Change { was, set });
        Ok(())
    }

    /// Sees to it that nothing of a frame is beside it, where XDP does not see it and it is lost; and, where the program
    /// `is_generic`, that frames are no larger than those on a wire.
    pub fn keep_frames(&mut self, interface: &Interface, is_generic: bool) -> Frames {
        match interface.peer {
            // What a veth "receives" with something beside it was sent so by the other end.
            Some(peer) => {
                // It may have been moved since, and takes along how it was.
                let before = self.peer.replace(peer);
                let noted = self.off_at_peers.iter_mut();
                noted
                    .filter(|(noted, _)| Some(*noted) == before)
                    .for_each(|(noted, _)| *noted = peer);
                let whose = format!("the other end of `{}`", interface.name);
                self.keep_frames_of(peer, &whose, is_generic)
            }
            None => self.keep_frames_in(&interface.name),
        }
    }

    /// The same for the other ends of veths below the interface, whose frames it gets. Of a generic program.
    /// Only those that were not there before are looked at: containers come and go below a bridge.
    pub fn keep_frames_below(&mut self, interface: &Interface) -> Vec<Frames> {
        self.put_back_where_not_below(&interface.peers_below);
        let below = interface.peers_below.iter();
        let new: Vec<Peer> = below
            .filter(|peer| !self.below.contains(peer))
            .copied()
            .collect();
        self.below = interface.peers_below.to_vec();
        let whose = format!("the other end of a veth below `{}`", interface.name);
        let kept = new
            .into_iter()
            .map(|peer| self.keep_frames_of(peer, &whose, true));
        kept.filter(|frames| *frames != Frames::Whole).collect()
    }

    /// Puts back what was turned off at the other ends of veths that are below the interface no more, if there are any left
    /// of those, and forgets them.
    fn put_back_where_not_below(&mut self, below: &[Peer]) {
        let own = self.peer;
        let is_left = |peer: &Peer| Some(*peer) == own || below.contains(peer);
        let all = std::mem::take(&mut self.off_at_peers);
        let (left, gone): (Vec<_>, Vec<_>) = all.into_iter().partition(|(peer, _)| is_left(peer));
        self.off_at_peers = left;
        for (peer, off) in gone {
            // None, or an error: it is gone altogether.
            let _ = at(peer, || turn_on(peer.index, &off));
        }
    }

    fn keep_frames_of(&mut self, peer: Peer, whose: &str, is_generic: bool) -> Frames {
        let large = if is_generic { SENT_LARGE } else { &[] };
        let features = [SENT, large].concat();
        match self.turn_off_at(peer, &features) {
            Ok(off) if off.is_empty() => Frames::Whole,
            Ok(off) => Frames::Changed(format!(
                "{whose} (interface number {} there) now sends complete frames: turned off there until this port ends: {}",
                peer.index,
                words(&off)
            )),
            Err(why) => Frames::Lacking(format!(
                "{whose} (interface number {} there) does not send complete frames, and what is missing (VLAN tags, for example) is lost: {why}; run `ethtool -K PEER {}` in its network namespace",
                peer.index,
                words_off(&features)
            )),
        }
    }

    fn keep_frames_in(&mut self, name: &str) -> Frames {
        let turned_off =
            Ethtool::open().map(|mut ethtool| turn_off(&mut ethtool, self.index, RECEIVED));
        match turned_off {
            Ok((off, left)) => {
                note(&mut self.off, &off);
                match left {
                    Err(why) if why.is_unsupported() || why.is_gone() => Frames::Whole,
                    Err(why) => Frames::Lacking(format!(
                        "VLAN tags are lost if `{name}` takes them out of the frames: {why}; run `ethtool -K {name} {}`",
                        words_off(RECEIVED)
                    )),
                    Ok(left) if !left.is_empty() => Frames::Lacking(format!(
                        "`{name}` delivers incomplete frames, whose missing parts are lost, and its driver cannot turn that off: {}",
                        words(&left)
                    )),
                    Ok(_) if off.is_empty() => Frames::Whole,
                    Ok(_) => Frames::Changed(format!(
                        "`{name}` now delivers complete frames: turned off until this port ends: {}",
                        words(&off)
                    )),
                }
            }
            // A kernel without the family knows of none.
            Err(why) if why.is_unsupported() => Frames::Whole,
            Err(why) => Frames::Lacking(format!(
                "VLAN tags are lost if `{name}` takes them out of the frames: {why}; run `ethtool -K {name} {}`",
                words_off(RECEIVED)
            )),
        }
    }

    /// What was turned off.
    fn turn_off_at(&mut self, peer: Peer, features: &[Named]) -> Result<Vec<Named>, String> {
        let job =
            || Ethtool::open().map(|mut ethtool| turn_off(&mut ethtool, peer.index, features));
        match at(peer, job) {
            Some(Ok((off, left))) => {
                self.note_at(peer, &off);
                match left {
                    Ok(left) if left.is_empty() => Ok(off),
                    Ok(left) => Err(format!("it does not let {} be turned off", words(&left))),
                    Err(why) => Err(why.to_string()),
                }
            }
            Some(Err(why)) => Err(why.to_string()),
            None => Err("its network namespace is out of reach".to_owned()),
        }
    }

    fn note_at(&mut self, peer: Peer, off: &[Named]) {
        if off.is_empty() {
            return;
        }
        match self.off_at_peers.iter_mut().find(|(is, _)| *is == peer) {
            Some((_, noted)) => note(noted, off),
            None => self.off_at_peers.push((peer, off.to_vec())),
        }
    }

    /// Puts back what nobody has changed since. Returns what could not be, unless the interface is gone.
    pub fn put_back(&mut self) -> Vec<LinkError> {
        let results = [
            // First: it may name queues that go with the channels.
            self.put_back_table(),
            self.put_back_channels(),
            self.put_back_features(),
            self.put_back_mtu(),
        ];
        let errors = results.into_iter().filter_map(Result::err);
        errors.filter(|error| !error.is_gone()).collect()
    }

    fn put_back_table(&mut self) -> Result<(), LinkError> {
        match self.table.take() {
            Some(table) if IndirectionTable::of(&self.name)? == table.set => {
                table.was.restore(&self.name)
            }
            _ => Ok(()),
        }
    }

    fn put_back_channels(&mut self) -> Result<(), LinkError> {
        let Some(channels) = self.channels.take() else {
            return Ok(());
        };
        let mut ethtool = Ethtool::open()?;
        if ethtool.channels(self.index)? != channels.set {
            return Ok(());
        }
        let started = Instant::now();
        loop {
            match ethtool.set_channels(self.index, channels.was) {
                Err(why) if !why.is_gone() && started.elapsed() < RELEASE_PATIENCE => {
                    std::thread::sleep(RELEASE_PAUSE);
                }
                result => return result,
            }
        }
    }

    fn put_back_features(&mut self) -> Result<(), LinkError> {
        let mut at_peers = Ok(());
        for (peer, off) in std::mem::take(&mut self.off_at_peers) {
            // None: its namespace has gone, and it with it.
            let at_peer = at(peer, || turn_on(peer.index, &off)).unwrap_or(Ok(()));
            at_peers = at_peers.and(at_peer);
        }
        let here = turn_on(self.index, &std::mem::take(&mut self.off));
        at_peers.and(here)
    }

    fn put_back_mtu(&mut self) -> Result<(), LinkError> {
        let Some(mtu) = self.mtu.take() else {
            return Ok(());
        };
        let mut links = Links::open()?;
        let is_ours = |now: Interface| now.index == self.index && now.mtu == mtu.set;
        if links.find(&self.name)?.is_some_and(is_ours) {
            links.set_mtu(self.index, mtu.was)?;
        }
        Ok(())
    }
}

impl Drop for Settings {
    fn drop(&mut self) {
        // Who wants to know what could not be put back has asked before.
        let _ = self.put_back();
    }
}

/// Turns off those of the features that are on. Returns which were, and which are still on, or why that is not known.
fn turn_off(
    ethtool: &mut Ethtool,
    index: u32,
    features: &[Named],
) -> (Vec<Named>, Result<Vec<Named>, LinkError>) {
    let mut off = Vec::new();
    let mut left = Vec::new();
    for named in features {
        let mut change = || {
            let before = ethtool.feature(index, named.0)?;
            if !before.active || !before.changeable {
                return Ok(before.active);
            }
            ethtool.set_feature(index, named.0, false)?;
            // From here on it is to be put back, also where nothing more is known of it.
            off.push(*named);
            Ok(ethtool.feature(index, named.0)?.active)
        };
        match change() {
            Ok(is_on) => left.extend(is_on.then_some(*named)),
            Err(why) => return (off, Err(why)),
        }
    }
    (off, Ok(left))
}

fn turn_on(index: u32, features: &[Named]) -> Result<(), LinkError> {
    if features.is_empty() {
        return Ok(());
    }
    let mut ethtool = Ethtool::open()?;
    let all = features.iter();
    // All of them, whatever becomes of one; the first error is told.
    let results: Vec<_> = all
        .map(|(name, _)| ethtool.set_feature(index, name, true))
        .collect();
    results.into_iter().collect()
}

/// Adds those that are not noted yet.
fn note(noted: &mut Vec<Named>, more: &[Named]) {
    noted.extend(
        more.iter()
            .filter(|named| !noted.contains(named))
            .collect::<Vec<_>>(),
    );
}

/// As in "txvlan, tx-checksum-sctp".
fn words(features: &[Named]) -> String {
    let words: Vec<&str> = features.iter().map(|(_, word)| *word).collect();
    words.join(", ")
}

/// As ethtool wants it.
fn words_off(features: &[Named]) -> String {
    let words: Vec<String> = features
        .iter()
        .map(|(_, word)| format!("{word} off"))
        .collect();
    words.join(" ")
}

/// Runs `job` in the namespace of a veth's other end.
fn at<T: Send>(peer: Peer, job: impl FnOnce() -> T + Send) -> Option<T> {
    match peer.namespace {
        None => Some(job()),
        Some(id) => within(id, job),
    }
}
