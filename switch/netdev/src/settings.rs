//! Settings of an interface that are changed while it is a port, and restored afterwards.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::{Channels, Ethtool, IndirectionTable, Interface, LinkError, Links, Peer};

/// A driver feature that must be off: its name in the kernel, and its name for ethtool.
type Named = (&'static str, &'static str);

/// Features by which a NIC removes parts of received frames, or adds to them: tags of either kind that it puts in
/// metadata, the frame check sequence, the tag of a redundant ring.
const RECEIVED: &[Named] = &[
    ("rx-vlan-hw-parse", "rxvlan"),
    ("rx-vlan-stag-hw-parse", "rx-vlan-stag-hw-parse"),
    ("rx-fcs", "rx-fcs"),
    ("hsr-tag-rm-offload", "hsr-tag-rm-offload"),
];
/// Features by which a sender leaves work to its NIC that a veth passes on undone: tags of either kind, and checksums
/// that cannot be finished here because they are not sums (CRC32c of SCTP, the CRC of Fibre Channel).
const SENT: &[Named] = &[
    ("tx-vlan-hw-insert", "txvlan"),
    ("tx-vlan-stag-hw-insert", "tx-vlan-stag-hw-insert"),
    ("tx-checksum-sctp", "tx-checksum-sctp"),
    ("tx-checksum-fcoe-crc", "tx-checksum-fcoe-crc"),
];
/// The same for large packets: the way to cut them is only in metadata. If the program is in the driver, the kernel turns
/// these off itself.
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

/// How long a queue may stay in use after its last AF_XDP socket was closed: the kernel needs some 20 ms, and does not
/// remove a queue before that.
const RELEASE_PATIENCE: Duration = Duration::from_secs(1);
const RELEASE_PAUSE: Duration = Duration::from_millis(5);

/// Wanted settings of an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// MTU, bytes; `None`: unchanged.
    pub mtu: Option<u32>,
    /// Number of queues; `None`: unchanged.
    pub channels: Option<u32>,
}

/// Whether frames are complete when XDP gets them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frames {
    /// Complete.
    Whole,
    /// Complete after a change. The text says what was changed.
    Changed(String),
    /// Possibly incomplete, and the operator must act. The text says how.
    Lacking(String),
}

/// The previous value, and the value that was set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Change<T> {
    was: T,
    set: T,
}

/// The changes of a [`Settings`], for another process that restores them later. Features are named as the kernel does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingsRecord {
    index: u32,
    mtu: Option<Change<u32>>,
    channels: Option<Change<Channels>>,
    table: Option<Change<IndirectionTable>>,
    off: Vec<String>,
    off_at_peers: Vec<(Peer, Vec<String>)>,
}

/// The features of these names that the switch turns off.
fn named(names: &[String]) -> Vec<Named> {
    let known = RECEIVED.iter().chain(SENT).chain(SENT_LARGE);
    known
        .filter(|(name, _)| names.iter().any(|wanted| wanted == name))
        .copied()
        .collect()
}

fn names(features: &[Named]) -> Vec<String> {
    features
        .iter()
        .map(|(name, _)| (*name).to_owned())
        .collect()
}

/// Changes to one interface. Dropping it restores the settings that no other process has changed since. A killed process
/// restores nothing.
#[derive(Debug)]
pub struct Settings {
    name: String,
    index: u32,
    mtu: Option<Change<u32>>,
    channels: Option<Change<Channels>>,
    table: Option<Change<IndirectionTable>>,
    /// Features that were turned off,
    off: Vec<Named>,
    /// and those turned off at the veth's peer, or at peers of veths below.
    off_at_peers: Vec<(Peer, Vec<Named>)>,
    /// The veth's peer.
    peer: Option<Peer>,
    /// Peers of veths below it that have been checked.
    below: Vec<Peer>,
}

impl Settings {
    /// Creates an empty set of changes.
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

    /// The changes that another process made to the same interface, as this one's own. `None` if it is another interface.
    pub fn resume(interface: &Interface, record: SettingsRecord) -> Option<Settings> {
        if record.index != interface.index {
            return None;
        }
        let peers = record.off_at_peers.into_iter();
        let mut settings = Settings::new(interface);
        settings.mtu = record.mtu;
        settings.channels = record.channels;
        settings.table = record.table;
        settings.off = named(&record.off);
        settings.off_at_peers = peers.map(|(peer, off)| (peer, named(&off))).collect();
        Some(settings)
    }

    /// The changes, for another process.
    pub fn record(&self) -> SettingsRecord {
        let peers = self.off_at_peers.iter();
        SettingsRecord {
            index: self.index,
            mtu: self.mtu.clone(),
            channels: self.channels.clone(),
            table: self.table.clone(),
            off: names(&self.off),
            off_at_peers: peers.map(|(peer, off)| (*peer, names(off))).collect(),
        }
    }

    /// Returns the interface's number.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Applies the wanted settings that differ from the current ones.
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

    /// Spreads received frames evenly over `queues` only. Unsupported if the driver has no table; if `queues` are
    /// all its queues, none is needed.
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

    /// Makes frames complete: no part of a frame is only in metadata, which XDP does not get, so that it would be lost.
    /// If the program `is_generic`, also makes sure that frames are no larger than on a wire.
    pub fn keep_frames(&mut self, interface: &Interface, is_generic: bool) -> Frames {
        match interface.peer {
            // Metadata of frames that a veth "receives" was set by its peer.
            Some(peer) => {
                // The peer may have been moved to another namespace; its settings move with it.
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

    /// The same for the peers of veths below the interface, whose frames it gets. For a generic program. Only new peers
    /// are checked: containers come and go below a bridge.
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

    /// Restores the features of peers whose veths are no longer below the interface, if they still exist, and removes
    /// them from the list.
    fn put_back_where_not_below(&mut self, below: &[Peer]) {
        let own = self.peer;
        let is_left = |peer: &Peer| Some(*peer) == own || below.contains(peer);
        let all = std::mem::take(&mut self.off_at_peers);
        let (left, gone): (Vec<_>, Vec<_>) = all.into_iter().partition(|(peer, _)| is_left(peer));
        self.off_at_peers = left;
        for (peer, off) in gone {
            // None, or an error: the peer was removed.
            let _ = turn_on_at(peer, &off);
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
            // A kernel without this family has no such features.
            Err(why) if why.is_unsupported() => Frames::Whole,
            Err(why) => Frames::Lacking(format!(
                "VLAN tags are lost if `{name}` takes them out of the frames: {why}; run `ethtool -K {name} {}`",
                words_off(RECEIVED)
            )),
        }
    }

    /// Turns features off at a peer. Returns those that were on.
    fn turn_off_at(&mut self, peer: Peer, features: &[Named]) -> Result<Vec<Named>, String> {
        match Ethtool::open_at(peer) {
            Some(Ok(mut ethtool)) => {
                let (off, left) = turn_off(&mut ethtool, peer.index, features);
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

    /// Restores the settings that no other process has changed since. Returns the errors, except if the interface is
    /// gone.
    pub fn put_back(&mut self) -> Vec<LinkError> {
        let results = [
            // First: it may refer to queues that are removed with the channels.
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
            // None: its namespace was removed, and the peer with it.
            let at_peer = turn_on_at(peer, &off);
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
        // A caller that needs the errors has called `put_back` before.
        let _ = self.put_back();
    }
}

/// Turns off the features that are on. Returns those turned off, and those still on, or the error.
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
            // From here on it must be restored, also if a later step fails.
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
    turn_on_with(&mut Ethtool::open()?, index, features)
}

fn turn_on_with(ethtool: &mut Ethtool, index: u32, features: &[Named]) -> Result<(), LinkError> {
    let all = features.iter();
    // Tries all of them even if one fails; the first error is returned.
    let results: Vec<_> = all
        .map(|(name, _)| ethtool.set_feature(index, name, true))
        .collect();
    results.into_iter().collect()
}

/// Adds the features that are not in the list yet.
fn note(noted: &mut Vec<Named>, more: &[Named]) {
    noted.extend(
        more.iter()
            .filter(|named| !noted.contains(named))
            .collect::<Vec<_>>(),
    );
}

/// Formats features as in "txvlan, tx-checksum-sctp".
fn words(features: &[Named]) -> String {
    let words: Vec<&str> = features.iter().map(|(_, word)| *word).collect();
    words.join(", ")
}

/// Formats features as arguments of ethtool.
fn words_off(features: &[Named]) -> String {
    let words: Vec<String> = features
        .iter()
        .map(|(_, word)| format!("{word} off"))
        .collect();
    words.join(" ")
}

/// The same at a veth's peer. One that is out of reach is left as it is.
fn turn_on_at(peer: Peer, features: &[Named]) -> Result<(), LinkError> {
    if features.is_empty() {
        return Ok(());
    }
    match Ethtool::open_at(peer) {
        Some(ethtool) => turn_on_with(&mut ethtool?, peer.index, features),
        None => Ok(()),
    }
}
