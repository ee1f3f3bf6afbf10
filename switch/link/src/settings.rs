//! What is set on an interface while it is a port, and put back after.

use std::time::{Duration, Instant};

use crate::namespace::within;
use crate::{Channels, Ethtool, IndirectionTable, Interface, LinkError, Links, Peer};

/// The NIC takes the VLAN tag out of what it receives, and puts it beside the frame.
const RX_VLAN: &str = "rx-vlan-hw-parse";
/// The sender leaves the VLAN tag beside the frame, for the NIC to put in. A veth hands it on beside the frame.
const TX_VLAN: &str = "tx-vlan-hw-insert";

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

/// What becomes of VLAN tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tags {
    /// They are where they should be.
    Kept,
    /// They are now. In words, what was changed for it.
    Changed(String),
    /// They are not, and somebody else has to do something. In words, what.
    Lost(String),
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
    /// [`RX_VLAN`] has been turned off.
    rx_vlan: bool,
    /// [`TX_VLAN`] of the veth's other end has been turned off.
    peer: Option<Peer>,
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
            rx_vlan: false,
            peer: None,
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

    /// Sees to it that VLAN tags are in the frames when XDP sees them, and not beside them, where they are lost.
    pub fn keep_tags(&mut self, interface: &Interface) -> Tags {
        match interface.peer {
            // What a veth "receives" with a tag beside it was sent so by the other end.
            Some(peer) => self.keep_tags_of(peer, &interface.name),
            None => self.keep_tags_in(&interface.name),
        }
    }

    fn keep_tags_of(&mut self, peer: Peer, name: &str) -> Tags {
        match self.turn_off_at(peer) {
            Ok(false) => Tags::Kept,
            Ok(true) => Tags::Changed(format!(
                "the other end of `{name}` (interface number {} there) puts VLAN tags into its frames now: \
                 its txvlan offload is turned off until this port ends",
                peer.index
            )),
            Err(why) => Tags::Lost(format!(
                "VLAN tags are lost, if the other end of `{name}` leaves them beside its frames: {why}; \
                 run `ethtool -K PEER txvlan off` in its network namespace"
            )),
        }
    }

    fn keep_tags_in(&mut self, name: &str) -> Tags {
        let mut turned_off = false;
        let mut turn_off = |ethtool: &mut Ethtool| -> Result<(bool, bool), LinkError> {
            let before = ethtool.feature(self.index, RX_VLAN)?;
            if before.active && before.changeable {
                ethtool.set_feature(self.index, RX_VLAN, false)?;
                turned_off = true;
            }
            let after = ethtool.feature(self.index, RX_VLAN)?;
            Ok((before.active, after.active))
        };
        let found = Ethtool::open().and_then(|mut ethtool| turn_off(&mut ethtool));
        // Also where nothing is known of how it is now.
        self.rx_vlan |= turned_off;
        match found {
            Ok((_, true)) => Tags::Lost(format!(
                "VLAN tags are lost: `{name}` takes them out of the frames, and its driver cannot do otherwise"
            )),
            Ok((true, false)) => {
                self.rx_vlan = true;
                Tags::Changed(format!(
                    "`{name}` leaves VLAN tags in the frames now: its rxvlan offload is turned off until this port ends"
                ))
            }
            Ok((false, false)) => Tags::Kept,
            // A driver that tells nothing of features has none.
            Err(why) if why.is_unsupported() || why.is_gone() => Tags::Kept,
            Err(why) => Tags::Lost(format!(
                "VLAN tags are lost, if `{name}` takes them out of the frames: {why}; run `ethtool -K {name} rxvlan off`"
            )),
        }
    }

    /// Whether there was something to turn off.
    fn turn_off_at(&mut self, peer: Peer) -> Result<bool, String> {
        let job = || -> Result<bool, LinkError> {
            let mut ethtool = Ethtool::open()?;
            let is_on = ethtool.feature(peer.index, TX_VLAN)?.active;
            if is_on {
                ethtool.set_feature(peer.index, TX_VLAN, false)?;
            }
            Ok(is_on)
        };
        match at(peer, job) {
            Some(Ok(was_on)) => {
                // It may have been moved since it was turned off.
                if was_on || self.peer.is_some() {
                    self.peer = Some(peer);
                }
                Ok(was_on)
            }
            Some(Err(why)) => Err(why.to_string()),
            None => Err("its network namespace is out of reach".to_owned()),
        }
    }

    /// Puts back what nobody has changed since. Returns what could not be, unless the interface is gone.
    pub fn put_back(&mut self) -> Vec<LinkError> {
        let results = [
            // First: it may name queues that go with the channels.
            self.put_back_table(),
            self.put_back_channels(),
            self.put_back_tags(),
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

    fn put_back_tags(&mut self) -> Result<(), LinkError> {
        if let Some(peer) = self.peer.take() {
            // None: its namespace has gone, and it with it.
            let job = || Ethtool::open()?.set_feature(peer.index, TX_VLAN, true);
            at(peer, job).unwrap_or(Ok(()))?;
        }
        if std::mem::take(&mut self.rx_vlan) {
            Ethtool::open()?.set_feature(self.index, RX_VLAN, true)?;
        }
        Ok(())
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

/// Runs `job` in the namespace of a veth's other end.
fn at<T: Send>(peer: Peer, job: impl FnOnce() -> T + Send) -> Option<T> {
    match peer.namespace {
        None => Some(job()),
        Some(id) => within(id, job),
    }
}
