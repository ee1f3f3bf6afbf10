//! Features of an interface (`ethtool -k` and `-K`).

use netlink_packet_core::DefaultNla;

use crate::ethtool::{find, iterate, nest};
use crate::{Ethtool, LinkError};

/// ETHTOOL_MSG_FEATURES_GET and _SET.
const GET: u8 = 11;
const SET: u8 = 12;
/// ETHTOOL_A_FEATURES_...
const HARDWARE: u16 = 2;
const WANTED: u16 = 3;
const ACTIVE: u16 = 4;
/// ETHTOOL_A_BITSET_BITS, _BITS_BIT, and _BIT_NAME and _BIT_VALUE in it.
const BITS: u16 = 3;
const BIT: u16 = 1;
const BIT_NAME: u16 = 2;
const BIT_VALUE: u16 = 3;

/// State of a feature. Features have the kernel's names, such as "rx-vlan-hw-parse".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Feature {
    /// Whether it is on.
    pub active: bool,
    /// Whether it is requested: a feature that cannot be on for another reason stays requested.
    pub wanted: bool,
    /// Whether it can be turned off or on.
    pub changeable: bool,
}

impl Ethtool {
    /// Reads feature `name` of interface number `index`.
    pub fn feature(&mut self, index: u32, name: &str) -> Result<Feature, LinkError> {
        let answer = self.get("asking for the features", GET, index)?;
        let has = |set| find(&answer, set).is_some_and(|set| lists(set, name));
        Ok(Feature {
            active: has(ACTIVE),
            wanted: has(WANTED),
            changeable: has(HARDWARE),
        })
    }

    /// Requests feature `name` of interface number `index` to be on or off. The kernel may leave it unchanged without an
    /// error: read it afterwards.
    pub fn set_feature(&mut self, index: u32, name: &str, on: bool) -> Result<(), LinkError> {
        let mut bit = vec![DefaultNla::new(BIT_NAME, [name.as_bytes(), b"\0"].concat())];
        if on {
            bit.push(DefaultNla::new(BIT_VALUE, Vec::new()));
        }
        let wanted = nest(WANTED, &[nest(BITS, &[nest(BIT, &bit)])]);
        self.set("setting a feature", SET, index, vec![wanted])
    }
}

/// Returns whether a bit set, as sent by the kernel without a mask, lists the bit `name`.
fn lists(set: &[u8], name: &str) -> bool {
    let is = |bit: &[u8]| {
        find(bit, BIT_NAME).is_some_and(|found| found.strip_suffix(b"\0") == Some(name.as_bytes()))
    };
    find(set, BITS).is_some_and(|bits| iterate(bits).any(|(kind, bit)| kind == BIT && is(bit)))
}
