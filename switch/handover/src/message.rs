//! Messages.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

/// What a message is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Kind {
    /// A kind of a later version, which is ignored.
    Unknown = 0,
    /// Either side: the state of a part, by its name; it replaces an earlier record of that name.
    Record = 1,
    /// From the switch: the part is gone, and so is its record.
    Forget = 2,
    /// To a new process, after all records: it starts as [`Start`] says.
    Begin = 3,
    /// From a new process: it is ready. After an upgrade's start: it has prepared everything, and touches no ring.
    Ready = 4,
    /// To the running process: no port and no session may change until the upgrade is over. Its descriptors are the attempt's
    /// [`Claim`](crate::Claim), and a connection to the new process, for the last records of this one.
    Hold = 5,
    /// From the running process: nothing changes any more; frames still flow.
    Held = 6,
    /// To the running process: stop the rings and send their positions.
    Freeze = 7,
    /// From the running process, after the records of positions: no ring and no socket is touched any more.
    Frozen = 8,
    /// To the new process: start the rings.
    Go = 9,
    /// From the new process: every worker has taken its rings.
    Confirmed = 10,
    /// To the process that has been replaced: end, and leave everything as it is. From it to its successor: these were its last records.
    Leave = 11,
    /// To the running process: the upgrade is off; go on. The text is [`WAS_STARTED`] if the new process may have used the rings.
    Resume = 12,
    /// From any process: it cannot do what it was asked for; the text says why.
    Refused = 13,
    /// To the new process: its predecessor has ended, and its interfaces are free.
    Alone = 14,
    /// From the running process, about once a second while its main loop and every worker make progress.
    Heartbeat = 15,
    /// From the running process: what the service manager is to be told, as sd_notify(3) has it. It hears only the main process,
    /// which is the supervisor.
    Notify = 16,
    /// From the running process to a supervisor that has connected to it ([`adopt`](crate::adopt)), before its records.
    Adopted = 17,
}

impl Kind {
    pub(crate) fn of(number: u16) -> Kind {
        const ALL: [Kind; 17] = [
            Kind::Record,
            Kind::Forget,
            Kind::Begin,
            Kind::Ready,
            Kind::Hold,
            Kind::Held,
            Kind::Freeze,
            Kind::Frozen,
            Kind::Go,
            Kind::Confirmed,
            Kind::Leave,
            Kind::Resume,
            Kind::Refused,
            Kind::Alone,
            Kind::Heartbeat,
            Kind::Notify,
            Kind::Adopted,
        ];
        let known = ALL.into_iter().find(|kind| *kind as u16 == number);
        known.unwrap_or(Kind::Unknown)
    }
}

/// Text of [`Kind::Resume`] after [`Kind::Go`].
pub const WAS_STARTED: &str = "started";

/// The body of [`Kind::Begin`], as JSON. Its descriptors are the socket at which the process waits for another supervisor
/// ([`AdoptionSocket`](crate::AdoptionSocket)) and, for [`Start::Prepare`], the attempt's [`Claim`](crate::Claim) and a connection to the running
/// process.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Begin {
    /// How the process starts.
    pub start: Start,
    /// Upgrades since the supervisor started.
    #[serde(default)]
    pub upgrades: u64,
    /// Ends of a process that were not in order, since the supervisor started.
    #[serde(default)]
    pub crashes: u64,
    /// How long the process goes on after its supervisor has died, while it waits for the next one; 0: not at all.
    #[serde(default)]
    pub unsupervised_s_max: u64,
}

/// How a new process starts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Start {
    /// No process ran before it: there are no records.
    Fresh,
    /// Its predecessor still runs: prepare everything, and wait for [`Kind::Go`].
    Prepare,
    /// Its predecessor has crashed: take over at once.
    AfterCrash,
}

/// A message.
#[derive(Debug)]
pub struct Message {
    /// What it is about.
    pub kind: Kind,
    /// The part that it is about; empty if that is the whole process.
    pub name: String,
    /// Its text: JSON for a record, words for a refusal.
    pub body: Vec<u8>,
    /// Its descriptors, in the order of the body's.
    pub fds: Vec<OwnedFd>,
    /// Of a record: a program that does not know it must not take over in an upgrade, since guests would be lost.
    pub is_critical: bool,
}

impl Message {
    /// The body as text, for people.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}
