//! A mirror's status.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A mirror: what it copies, and how far it has come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MirrorStatus {
    /// Its name.
    pub name: String,
    /// Names or patterns of the ports whose frames are copied.
    pub ports: Vec<String>,
    /// `received`: frames from these ports; `sent`: frames for them; or `both`.
    pub direction: String,
    /// The VLANs whose frames are copied; `null` for all.
    pub vlans: Option<Vec<u16>>,
    /// The filter that frames must match; `null` for none.
    pub filter: Option<String>,
    /// The port that gets the copies.
    pub to: String,
    /// The VLAN of the copies; `null`: a copy has the tag of its frame's VLAN, and the port gets nothing else.
    pub to_vlan: Option<u16>,
    /// Whether there is such a port.
    pub is_active: bool,
    /// Copies delivered.
    pub copied: u64,
    /// Copies that were not delivered; the drops at the port say why.
    pub missed: u64,
}
