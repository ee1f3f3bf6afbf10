//! The export to a collector of IPFIX.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The export of connections to a collector of IPFIX (RFC 7011). Counts are since the daemon started.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct IpfixStatus {
    /// The collector's address and port; null if nothing is exported.
    pub collector: Option<String>,
    /// The address that messages come from; null if there is no route to the collector.
    pub source: Option<String>,
    /// The observation domain.
    pub domain: u32,
    /// How often a connection that lasts is reported, milliseconds.
    pub active_timeout_ms: u64,
    /// How often the templates are sent, milliseconds.
    pub templates_ms: u64,
    /// Memory for what is counted, bytes.
    pub bytes: usize,
    /// Messages sent.
    pub messages: u64,
    /// Records of connections that have begun.
    pub begun: u64,
    /// Records of connections that last.
    pub updated: u64,
    /// Records of connections that have ended.
    pub ended: u64,
    /// Records of packets that were denied.
    pub denied: u64,
    /// Denied packets without a record, because there were more in a second than `denied` allows.
    pub denied_unsent: u64,
    /// Events of connections (begin, end, denied packet) without a record, because the exporting thread was too slow.
    pub records_missed: u64,
    /// Records in messages that could not be sent, and connections that the end of the export left without one.
    pub records_unsent: u64,
    /// Messages that could not be sent.
    pub send_errors: u64,
    /// Why the last one could not; null if all were sent.
    pub last_error: Option<String>,
}
