//! The JSON schema of what `crosspoint show --json` prints.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};

use crate::rows::{
    BindingRow, ConnectionTable, DropRow, Fdb, GroupRow, GuestRow, LatencyRow, MulticastTable,
    PortDetail, PortRow, QueueRow, RuleRow, SetRow, SwitchRow, WorkerRow, XdpRow,
};
use crate::status::{BridgeStatus, IpfixStatus, MirrorStatus, SflowStatus};

/// The version of the schema. It grows with each change; keys are added, and none is renamed or removed.
pub const SCHEMA_VERSION: u32 = 3;

/// The topics of `crosspoint show`, and what each prints with `--json`. Further keys may come.
#[derive(JsonSchema)]
#[allow(dead_code, reason = "only its schema is used")]
struct Topics {
    /// `show switch`
    switch: SwitchRow,
    /// `show ports`, in the order of the configuration; then those that are in the files and do not run, with `unkept` =
    /// "not_running"
    ports: Vec<PortRow>,
    /// `show queues`, by port and number
    queues: Vec<QueueRow>,
    /// `show workers`, by number
    workers: Vec<WorkerRow>,
    /// `show fdb`
    fdb: Fdb,
    /// `show drops`: those that are not zero, by port, queue and reason
    drops: Vec<DropRow>,
    /// `show latency`, by port and queue
    latency: Vec<LatencyRow>,
    /// `show guests`, in the order of the configuration
    guests: Vec<GuestRow>,
    /// `show xdp`, by port and queue
    xdp: Vec<XdpRow>,
    /// `show mirrors`, in the order of the configuration
    mirrors: Vec<MirrorStatus>,
    /// `show bridges`, the default bridge first
    bridges: Vec<BridgeStatus>,
    /// `show bindings`, by port
    bindings: Vec<BindingRow>,
    /// `show multicast`
    multicast: MulticastTable,
    /// `show groups`, in the order of the configuration
    groups: Vec<GroupRow>,
    /// `show rules`, by group
    rules: Vec<RuleRow>,
    /// `show sets`, in the order of the configuration
    sets: Vec<SetRow>,
    /// `show connections`
    connections: ConnectionTable,
    /// `show sflow`
    sflow: SflowStatus,
    /// `show ipfix`
    ipfix: IpfixStatus,
    /// `show port NAME`
    port: PortDetail,
}

/// The schema: an object with a property for each topic.
pub fn of_show() -> Schema {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    let mut schema = settings.into_generator().into_root_schema_for::<Topics>();
    schema.insert("title".to_owned(), "crosspoint show --json".into());
    schema.insert("version".to_owned(), SCHEMA_VERSION.into());
    schema
}
