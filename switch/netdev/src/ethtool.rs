//! Messages of the ethtool netlink family: the common part.

use netlink_packet_core::{
    DecodeError, DefaultNla, Emitable, NLA_F_NESTED, Nla, NlaBuffer, NlasIterator, Parseable,
    ParseableParametrized,
};
use netlink_packet_generic::ctrl::nlas::{GenlCtrlAttrs, McastGrpAttrs};
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use netlink_sys::protocols::NETLINK_GENERIC;

use crate::namespace::generic_socket;
use crate::request::Requests;
use crate::{LinkError, Peer};

const FAMILY: &str = "ethtool";
/// The multicast group for changed settings.
const MONITOR: &str = "monitor";
const VERSION: u8 = 1;
/// Number of the attribute with the interface, in all requests (ETHTOOL_A_..._HEADER).
pub(crate) const HEADER: u16 = 1;
/// ETHTOOL_A_HEADER_DEV_INDEX and _DEV_NAME.
const HEADER_INDEX: u16 = 1;
const HEADER_NAME: u16 = 2;
/// ETHTOOL_A_HEADER_FLAGS, and in it ETHTOOL_FLAG_OMIT_REPLY: no answer but the acknowledgement.
const HEADER_FLAGS: u16 = 3;
const OMIT_REPLY: u32 = 2;

/// A message: a command and its attributes. It belongs to the ethtool family unless another family's number is set.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    pub command: u8,
    pub attributes: Vec<DefaultNla>,
}

impl GenlFamily for Message {
    fn family_name() -> &'static str {
        FAMILY
    }

    fn command(&self) -> u8 {
        self.command
    }

    fn version(&self) -> u8 {
        VERSION
    }
}

impl Emitable for Message {
    fn buffer_len(&self) -> usize {
        self.attributes.as_slice().buffer_len()
    }

    fn emit(&self, buffer: &mut [u8]) {
        self.attributes.as_slice().emit(buffer);
    }
}

impl ParseableParametrized<[u8], GenlHeader> for Message {
    fn parse_with_param(bytes: &[u8], header: GenlHeader) -> Result<Message, DecodeError> {
        let attributes = NlasIterator::new(bytes).map(|found| DefaultNla::parse(&found?));
        Ok(Message {
            command: header.cmd,
            attributes: attributes.collect::<Result<_, _>>()?,
        })
    }
}

/// Makes an attribute of 32 bits.
pub(crate) fn word(kind: u16, value: u32) -> DefaultNla {
    DefaultNla::new(kind, value.to_ne_bytes().to_vec())
}

/// Makes an attribute that contains others.
pub(crate) fn nest(kind: u16, attributes: &[DefaultNla]) -> DefaultNla {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    DefaultNla::new(kind | NLA_F_NESTED, bytes)
}

/// Returns the value of the attribute `kind` in `bytes`.
pub(crate) fn find(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    iterate(bytes).find_map(|(found, value)| (found == kind).then_some(value))
}

/// Returns the attributes in `bytes`, each with its value.
pub(crate) fn iterate(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes)
        .filter_map(Result::ok)
        .filter_map(|found: NlaBuffer<&[u8]>| {
            let len = found.value_length();
            let value = found.into_inner().get(4..4 + len)?;
            Some((found.kind(), value))
        })
}

/// Parses a value of 32 bits.
pub(crate) fn to_word(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.try_into().ok()?))
}

/// Returns the number of a group if it is the one for changes.
fn monitor_in(group: &[McastGrpAttrs]) -> Option<u32> {
    let is_monitor = |attribute: &McastGrpAttrs| matches!(attribute, McastGrpAttrs::Name(name) if name == MONITOR);
    group.iter().any(is_monitor).then_some(())?;
    group.iter().find_map(|attribute| match attribute {
        McastGrpAttrs::Id(id) => Some(*id),
        McastGrpAttrs::Name(_) => None,
    })
}

/// Returns number and name of the interface in a message.
pub(crate) fn interface_of(message: &Message) -> Option<(u32, String)> {
    let mut attributes = message.attributes.iter();
    let header = attributes.find(|attribute| attribute.kind() == HEADER | NLA_F_NESTED)?;
    let mut bytes = vec![0; header.value_len()];
    header.emit_value(&mut bytes);
    let index = to_word(find(&bytes, HEADER_INDEX)?)?;
    let name = String::from_utf8_lossy(find(&bytes, HEADER_NAME).unwrap_or_default());
    Some((index, name.trim_end_matches('\0').to_owned()))
}

/// Reads the attributes of the generic netlink family `name`. Fails with ENOENT if there is none.
pub(crate) fn family_attributes(
    requests: &mut Requests,
    what: &'static str,
    name: &str,
) -> Result<Vec<GenlCtrlAttrs>, LinkError> {
    let request = GenlMessage::from_payload(GenlCtrl {
        cmd: GenlCtrlCmd::GetFamily,
        nlas: vec![GenlCtrlAttrs::FamilyName(name.to_owned())],
    });
    let answers = requests.ask(what, request)?.into_iter();
    Ok(answers.flat_map(|answer| answer.payload.nlas).collect())
}

/// Reads and changes the settings of ethtool. All calls identify the interface by its number.
pub struct Ethtool {
    requests: Requests,
    family: u16,
    monitor: Option<u32>,
}

impl Ethtool {
    /// Opens a socket in the thread's network namespace. The kernel must know ethtool netlink (Linux 5.6).
    pub fn open() -> Result<Ethtool, LinkError> {
        Ethtool::with(Requests::open(NETLINK_GENERIC)?)
    }

    /// Opens a socket in the network namespace of a veth's peer. `None` if that is out of reach.
    pub(crate) fn open_at(peer: Peer) -> Option<Result<Ethtool, LinkError>> {
        match peer.namespace {
            None => Some(Ethtool::open()),
            Some(id) => generic_socket(id).map(|requests| Ethtool::with(requests?)),
        }
    }

    fn with(mut requests: Requests) -> Result<Ethtool, LinkError> {
        let what = "asking for the ethtool family";
        let attributes = family_attributes(&mut requests, what, FAMILY)?;
        let (mut family, mut monitor) = (None, None);
        for attribute in &attributes {
            match attribute {
                GenlCtrlAttrs::FamilyId(id) => family = Some(*id),
                GenlCtrlAttrs::McastGroups(groups) => {
                    monitor = groups.iter().find_map(|group| monitor_in(group));
                }
                _ => {}
            }
        }
        match family {
            Some(family) => Ok(Ethtool {
                requests,
                family,
                monitor,
            }),
            None => Err(LinkError::new(what, rustix::io::Errno::NOENT)),
        }
    }

    /// Returns the number of the multicast group for changed settings.
    pub(crate) fn monitor_group(&self) -> Option<u32> {
        self.monitor
    }

    /// Sends the query `command` for an interface. Returns the attributes of the answer, as bytes.
    pub(crate) fn get(
        &mut self,
        what: &'static str,
        command: u8,
        index: u32,
    ) -> Result<Vec<u8>, LinkError> {
        let header = nest(HEADER, &[word(HEADER_INDEX, index)]);
        let answers = self.ask(what, command, vec![header])?;
        let answer = answers.into_iter().next();
        let missing = || LinkError::new(what, rustix::io::Errno::NODATA);
        let attributes = answer.ok_or_else(missing)?.payload.attributes;
        let mut bytes = vec![0; attributes.as_slice().buffer_len()];
        attributes.as_slice().emit(&mut bytes);
        Ok(bytes)
    }

    /// Sets an interface's `attributes` by `command`.
    pub(crate) fn set(
        &mut self,
        what: &'static str,
        command: u8,
        index: u32,
        mut attributes: Vec<DefaultNla>,
    ) -> Result<(), LinkError> {
        let flags = word(HEADER_FLAGS, OMIT_REPLY);
        attributes.insert(0, nest(HEADER, &[word(HEADER_INDEX, index), flags]));
        self.ask(what, command, attributes).map(drop)
    }

    fn ask(
        &mut self,
        what: &'static str,
        command: u8,
        attributes: Vec<DefaultNla>,
    ) -> Result<Vec<GenlMessage<Message>>, LinkError> {
        let mut message = GenlMessage::from_payload(Message {
            command,
            attributes,
        });
        message.set_resolved_family_id(self.family);
        self.requests.ask(what, message)
    }
}
