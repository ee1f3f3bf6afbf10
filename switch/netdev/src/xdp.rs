//! XDP capabilities of drivers, as the kernel reports them (Linux 6.3).
//!
//! Kernel interface: Documentation/netlink/specs/netdev.yaml.

use netlink_packet_core::Emitable;
use netlink_packet_generic::GenlMessage;
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_sys::protocols::NETLINK_GENERIC;

use crate::LinkError;
use crate::ethtool::{Message, family_attributes, iterate, to_word, word};
use crate::request::Requests;

const FAMILY: &str = "netdev";
/// NETDEV_CMD_DEV_GET.
const GET: u8 = 1;
/// NETDEV_A_DEV_...
const IFINDEX: u16 = 1;
const XDP_FEATURES: u16 = 3;
const XDP_ZC_MAX_SEGS: u16 = 4;
const XSK_FEATURES: u16 = 6;
/// NETDEV_XDP_ACT_...
const BASIC: u64 = 1;
const REDIRECT: u64 = 2;
const ZERO_COPY: u64 = 8;
const RX_SG: u64 = 32;
/// NETDEV_XSK_FLAGS_TX_CHECKSUM.
const TX_CHECKSUM: u64 = 2;

/// XDP capabilities of an interface's driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct XdpSupport {
    /// It runs programs itself, before the kernel makes a packet buffer, and they can redirect frames to sockets.
    pub native: bool,
    /// It can receive into, and send from, the memory of AF_XDP sockets.
    pub zero_copy: bool,
    /// It passes frames of several buffers to programs.
    pub several_buffers: bool,
    /// Most buffers of a frame in zero-copy. 1: no frames of several buffers.
    pub zero_copy_buffers_max: u32,
    /// It finishes checksums of frames that AF_XDP sockets send (Linux 6.8).
    pub tx_checksum: bool,
}

impl XdpSupport {
    fn parse(attributes: &[u8]) -> XdpSupport {
        let (mut features, mut of_sockets, mut buffers_max) = (0, 0, 1);
        for (kind, value) in iterate(attributes) {
            match kind {
                XDP_FEATURES => features = to_long(value),
                XSK_FEATURES => of_sockets = to_long(value),
                XDP_ZC_MAX_SEGS => buffers_max = to_word(value).unwrap_or(1),
                _ => {}
            }
        }
        let can = |all: u64| features & all == all;
        XdpSupport {
            native: can(BASIC | REDIRECT),
            zero_copy: can(ZERO_COPY),
            several_buffers: can(RX_SG),
            zero_copy_buffers_max: buffers_max,
            tx_checksum: of_sockets & TX_CHECKSUM != 0,
        }
    }
}

fn to_long(value: &[u8]) -> u64 {
    value.try_into().map_or(0, u64::from_ne_bytes)
}

/// Reads the capabilities of drivers.
pub struct Netdev {
    requests: Requests,
    family: u16,
}

impl Netdev {
    /// Opens a socket in the thread's network namespace. Fails before Linux 6.3, which does not report capabilities.
    pub fn open() -> Result<Netdev, LinkError> {
        let what = "asking for the netdev family";
        let mut requests = Requests::open(NETLINK_GENERIC)?;
        let attributes = family_attributes(&mut requests, what, FAMILY)?;
        let family = attributes.iter().find_map(|attribute| match attribute {
            GenlCtrlAttrs::FamilyId(id) => Some(*id),
            _ => None,
        });
        let missing = || LinkError::new(what, rustix::io::Errno::NOENT);
        let family = family.ok_or_else(missing)?;
        Ok(Netdev { requests, family })
    }

    /// Returns the capabilities of the driver of interface number `index`.
    pub fn xdp(&mut self, index: u32) -> Result<XdpSupport, LinkError> {
        let what = "asking what the driver can do with XDP";
        let mut request = GenlMessage::from_payload(Message {
            command: GET,
            attributes: vec![word(IFINDEX, index)],
        });
        request.set_resolved_family_id(self.family);
        let answer = self.requests.ask(what, request)?.into_iter().next();
        let missing = || LinkError::new(what, rustix::io::Errno::NODATA);
        let attributes = answer.ok_or_else(missing)?.payload.attributes;
        let mut bytes = vec![0; attributes.as_slice().buffer_len()];
        attributes.as_slice().emit(&mut bytes);
        Ok(XdpSupport::parse(&bytes))
    }
}
