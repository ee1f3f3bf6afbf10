//! One port in full, made from JSON.

use crosspoint_config::LoopAction;
use crosspoint_config::limits::DEFAULT_BRIDGE;
use crosspoint_config::quantity::Quantity;
use crosspoint_model::status::{
    DeviceStatus, LimitStatus, MemoryRegionStatus, RateStatus, StormStatus, VringStatus,
};
use serde::Deserialize;
use serde_json::Value;

use super::drops::drops;
use super::format::{count, lasting_s, memory_size, percent};
use super::render::{Misshapen, queues, xdp};
use super::table::Align::{Left, Right};
use super::table::{Table, printable};
use super::{slo, vlan};
use crosspoint_model::rows::{PortDetail, PortRow, XdpRow};

/// Renders what a reply's `ok` holds of one port.
pub fn render_port(value: &Value) -> Result<String, Misshapen> {
    let topic = "a port";
    let port = PortDetail::deserialize(value).map_err(|cause| Misshapen { topic, cause })?;
    let mut parts = vec![summary(&port)];
    if let Some(device) = &port.device {
        parts.push(vrings(&device.vrings));
        parts.push(memory(&device.memory));
    }
    parts.push(queues(&port.per_queue));
    let sockets = port.per_queue.iter().filter_map(|queue| {
        Some(XdpRow {
            port: queue.port.clone(),
            queue: queue.queue,
            xdp: queue.xdp?,
        })
    });
    let sockets: Vec<XdpRow> = sockets.collect();
    if !sockets.is_empty() {
        parts.push(xdp(&sockets));
    }
    parts.push(drops(&port.drops_by_reason));
    Ok(parts.join("\n"))
}

fn summary(detail: &PortDetail) -> String {
    let port = &detail.port;
    let name = printable(&port.name);
    let mut table = Table::new([("PORT", Left), (name.as_str(), Left)]);
    let mut add = |key: &str, value: String| table.add([key.to_owned(), value]);
    add("kind", port.kind.clone());
    if !port.groups.is_empty() {
        add("groups", port.groups.join(", "));
    }
    if let Some(of) = port.connections {
        let counts = format!(
            "{} of {}, {} half-open",
            of.connections, of.max, of.half_open
        );
        let since = format!(
            "{} since the start, {} refused",
            count(of.created),
            count(of.refused)
        );
        add("connections", format!("{counts}; {since}"));
        if of.rate > 0 {
            let rate = format!("{} a second in each direction", count(of.rate.into()));
            let refused = count(of.rate_refused);
            add("connections_rate", format!("{rate}; {refused} refused"));
        }
    }
    let why = Some(&port.detail).filter(|detail| !detail.is_empty());
    let why = why.map_or(String::new(), |detail| format!(": {detail}"));
    add(
        "state",
        format!("{} for {}{why}", port.state, lasting_s(detail.state_for_s)),
    );
    if let Some(unkept) = port.unkept {
        add("files", unkept.remark().to_owned());
    }
    let required = if port.required { "yes" } else { "no" };
    add("required", required.to_owned());
    add("vlan", vlan::ranges(&port.vlan));
    add("addresses", port.addresses.to_string());
    add(
        "bound to",
        match port.addresses_allowed.as_slice() {
            [] => "any address that is not another port's".to_owned(),
            allowed => allowed.join(" "),
        },
    );
    if !port.ip_allowed.is_empty() {
        add("IP addresses", port.ip_allowed.join(" "));
    }
    if port.looping {
        add(
            "loop",
            match port.looping_with.as_slice() {
                [] => "addresses come in here and at another port, repeatedly".to_owned(),
                with => format!("a probe went round the loop, to {}", with.join(" ")),
            },
        );
    }
    if let Some(protect) = &port.loop_protect {
        add(
            "loop protect",
            match protect.action {
                LoopAction::Report => "report".to_owned(),
                LoopAction::Block => format!("block for {} s", protect.block_time_s),
            },
        );
    }
    if !port.forward_control.is_empty() {
        add("forwards control", port.forward_control.join(" "));
    }
    add("weight", port.weight.to_string());
    add("storm", storm(&port.storm));
    if port.bridge != DEFAULT_BRIDGE || !port.bridges.is_empty() {
        add("bridge", port.bridge.clone());
    }
    if !port.bridges.is_empty() {
        add("other bridges", port.bridges.join(", "));
    }
    if port.isolated {
        add("isolated", "reaches uplinks only".to_owned());
    }
    let servers = match port.dhcp_server {
        true => "may send",
        false => "may not send",
    };
    add(
        "DHCP and router",
        format!("{servers} replies and advertisements"),
    );
    let LimitStatus { out, r#in } = port.limit;
    add("limit out", limit(out));
    add("limit in", limit(r#in));
    let share = port.share_percent;
    let share = share.map_or("not polled".to_owned(), |_| {
        format!("{} of a worker's time", percent(share))
    });
    add("share", share);
    for kept_back in kept_back(port) {
        add("kept back", kept_back);
    }
    if let Some(one) = &port.slo {
        add("slo", slo::in_full(one));
    }
    match &detail.device {
        Some(device) => device_lines(device, add),
        None => port.properties.iter().for_each(|(k, v)| add(k, v.clone())),
    }
    table.render()
}

/// A rate limit.
fn limit(of: RateStatus) -> String {
    let RateStatus {
        bits_per_s,
        burst_bytes,
        packets_per_s,
    } = of;
    let rate = (bits_per_s > 0).then(|| {
        let (rate, burst) = (
            Quantity::Rate.display(bits_per_s),
            Quantity::Size.display(burst_bytes),
        );
        format!("{rate} with a burst of {burst}")
    });
    let packets = (packets_per_s > 0)
        .then(|| format!("{} packets", Quantity::Packets.display(packets_per_s)));
    let all: Vec<String> = rate.into_iter().chain(packets).collect();
    match all.is_empty() {
        true => "none".to_owned(),
        false => all.join(", "),
    }
}

/// Limits of flooded copies.
fn storm(storm: &StormStatus) -> String {
    if *storm == StormStatus::default() {
        return "no limits".to_owned();
    }
    let StormStatus {
        broadcast,
        multicast,
        unknown_unicast,
    } = storm;
    let limit = |(kind, limit): (&str, &u32)| match limit {
        0 => format!("{kind} without limit"),
        limit => format!("{kind} {limit}/s"),
    };
    let all = [
        ("broadcast", broadcast),
        ("multicast", multicast),
        ("unknown unicast", unknown_unicast),
    ];
    all.map(limit).join(", ")
}

fn device_lines(device: &DeviceStatus, mut add: impl FnMut(&str, String)) {
    add("socket", device.socket.clone());
    add("role", device.role.clone());
    let last = device.last_end.as_ref();
    let request = device.last_request.as_ref();
    let request = request.map_or(String::new(), |name| format!(", after {name}"));
    let last = last.map_or(String::new(), |why| {
        format!("; the last one left: {why}{request}")
    });
    add(
        "front ends",
        format!("{} connected since the start{last}", device.connections),
    );
    add("features", or_none(&device.features));
    add("protocol", or_none(&device.protocol_features));
    let status = device.device_status.as_ref();
    add(
        "status",
        status.map_or("not reported".to_owned(), |names| or_none(names)),
    );
    add("rings", device.ring_type.clone());
    add("mac", device.mac.clone().unwrap_or_else(|| "-".to_owned()));
    let set = device
        .mtu_set
        .map(|mtu| format!("; the front end set {mtu}"));
    add("mtu", format!("{}{}", device.mtu, set.unwrap_or_default()));
}

fn or_none(names: &[String]) -> String {
    match names {
        [] => "none".to_owned(),
        names => names.join(" "),
    }
}

fn vrings(vrings: &[VringStatus]) -> String {
    if vrings.is_empty() {
        return "There are no rings.\n".to_owned();
    }
    let mut table = Table::new([
        ("VRING", Right),
        ("DIRECTION", Left),
        ("SIZE", Right),
        ("BASE", Right),
        ("ENABLED", Left),
        ("RUNNING", Left),
        ("KICK", Left),
        ("CALL", Left),
    ]);
    let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
    for vring in vrings {
        table.add([
            vring.index.to_string(),
            vring.direction.clone(),
            count(vring.size.into()),
            vring.base.to_string(),
            yes(vring.enabled),
            yes(vring.running),
            yes(vring.has_kick),
            yes(vring.has_call),
        ]);
    }
    table.render()
}

fn memory(regions: &[MemoryRegionStatus]) -> String {
    if regions.is_empty() {
        return "There is no guest memory.\n".to_owned();
    }
    let mut table = Table::new([("GUEST-ADDRESS", Right), ("SIZE", Right)]);
    for region in regions {
        table.add([
            format!("{:#x}", region.guest_address),
            memory_size(region.size),
        ]);
    }
    table.render()
}

/// What has been held back of a port so far, in words; counts of 0 are left out.
fn kept_back(row: &PortRow) -> Vec<String> {
    let all = [
        (row.held_back, "held back", "times"),
        (row.over_share, "over their share:", "frames dropped"),
        (
            row.floods_dropped,
            "over its flood limits:",
            "frames dropped",
        ),
        (
            row.addresses_moved,
            "addresses came from other ports",
            "times",
        ),
        (row.addresses_damped, "addresses kept from it", "times"),
        (
            row.addresses_refused,
            "addresses over its mac_limit:",
            "refused",
        ),
    ];
    let met = all.into_iter().filter(|(n, ..)| *n > 0);
    met.map(|(n, what, of)| format!("{what} {} {of}", count(n)))
        .collect()
}
