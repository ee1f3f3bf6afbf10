#!/usr/bin/env python3
"""generate.py [--check]: writes the dashboards beside it, for Grafana 10 and newer; --check only tells whether they are current.

Five dashboards with links to each other. They ask the counters alone, and so need no recording rules.
"""

import json
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
HOST = 'job=~"$job", instance=~"$instance"'
PORT = HOST + ', port=~"$port"'
WORKER = HOST + ', worker=~"$worker"'
COMPLETION = "From reading a guest's descriptor to giving it back."
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def rate(name, labels, by):
    return f"sum by ({by}) (rate({name}{{{labels}}}[$__rate_interval]))"


def quantile(q, labels, by, name="crosspoint_queue_completion_seconds"):
    return f"histogram_quantile({q}, {rate(name + '_bucket', labels, 'le, ' + by)})"


def share(state, labels, by):
    """The share of the workers' time that went into turns of this kind."""
    some = rate("crosspoint_worker_cycles_total", f'{labels}, state="{state}"', by)
    return f"{some} / {rate('crosspoint_worker_cycles_total', labels, by)}"


def drops_of(labels, reasons, by):
    return rate("crosspoint_drops_total", f'{labels}, reason=~"{reasons}"', by)


def drops(reasons):
    return drops_of(PORT, reasons, "port, reason") + " > 0"


def panel(kind, title, unit, *targets, about="", **more):
    """targets: (expression, legend)."""
    options = {"tooltip": {"mode": "multi", "sort": "desc"}, "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["max", "lastNotNull"]}}
    defaults = {"unit": unit, **more}
    if kind != "timeseries":
        options = {"reduceOptions": {"calcs": ["lastNotNull"]}}
    return {
        "type": kind,
        "title": title,
        "description": about,
        "datasource": SOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {"refId": chr(ord("A") + n), "datasource": SOURCE, "expr": expr, "legendFormat": legend}
            for n, (expr, legend) in enumerate(targets)
        ],
    }


def graph(title, unit, *targets, about=""):
    return panel("timeseries", title, unit, *targets, about=about)


def stat(title, unit, expr, about="", bad_above=None):
    steps = [{"color": "green", "value": None}]
    if bad_above is not None:
        steps.append({"color": "red", "value": bad_above})
    return panel("stat", title, unit, (expr, ""), about=about, thresholds={"mode": "absolute", "steps": steps})


def table(title, *columns, about=""):
    """A row for each host. columns: (name, unit, expression by instance), sorted by the first."""
    one = panel("table", title, "none", *[(expr, name) for name, _, expr in columns], about=about)
    for target in one["targets"]:
        target |= {"format": "table", "instant": True}
    # Grafana names the columns of several queries after their letters.
    names = {f"Value #{target['refId']}": name for target, (name, _, _) in zip(one["targets"], columns, strict=True)}
    one["transformations"] = [
        {"id": "merge", "options": {}},
        {"id": "organize", "options": {"excludeByName": {"Time": True}, "renameByName": {"instance": "Host"} | names}},
    ]
    one["options"] = {"showHeader": True, "sortBy": [{"displayName": columns[0][0], "desc": True}]}
    to_host = {"title": "Overview of ${__value.text}", "url": "/d/crosspoint-overview?var-instance=${__value.raw}&${datasource:queryparam}&${job:queryparam}"}
    one["fieldConfig"]["overrides"] = [
        {"matcher": {"id": "byName", "options": "Host"}, "properties": [{"id": "links", "value": [to_host]}]},
        *[{"matcher": {"id": "byName", "options": name}, "properties": [{"id": "unit", "value": unit}]} for name, unit, _ in columns],
    ]
    return one


def worst(title, unit, expr, about="", legend="{{instance}}"):
    return graph(title, unit, (f"topk(10, {expr}) > 0", legend), about=about)


def variable(name, query, label):
    return {
        "name": name, "label": label, "type": "query", "datasource": SOURCE, "query": {"query": query, "refId": name}, "definition": query,
        "refresh": 2, "sort": 1, "multi": True, "includeAll": True, "allValue": ".*", "current": {"text": "All", "value": "$__all"},
    }


VARIABLES = [
    {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"},
    variable("job", "label_values(crosspoint_build_info, job)", "Job"),
    variable("instance", 'label_values(crosspoint_build_info{job=~"$job"}, instance)', "Host"),
]
OF_PORT = variable("port", f"label_values(crosspoint_port_up{{{HOST}}}, port)", "Port")
OF_WORKER = variable("worker", f"label_values(crosspoint_worker_iterations_total{{{HOST}}}, worker)", "Worker")


# Width and height of panels other than graphs. A row has a width of 24.
SIZES = {"stat": (6, 4), "table": (24, 12)}


def lay_out(panels):
    """Four figures in a row, graphs two by two, a table for itself."""
    x = y = row = 0
    for number, one in enumerate(panels, 1):
        width, height = SIZES.get(one["type"], (12, 9))
        if x + width > 24 or (row and height != row):
            x, y = 0, y + row
        one["id"], one["gridPos"], row = number, {"x": x, "y": y, "w": width, "h": height}, height
        x += width
    return panels


def dashboard(uid, title, variables, panels):
    links = {"type": "dashboards", "tags": ["crosspoint"], "title": "crosspoint", "asDropdown": True, "includeVars": True, "keepTime": True}
    return {
        "uid": f"crosspoint-{uid}", "title": f"crosspoint: {title}", "tags": ["crosspoint"], "schemaVersion": 38, "editable": True,
        "refresh": "30s", "time": {"from": "now-1h", "to": "now"}, "links": [links], "templating": {"list": VARIABLES + variables},
        "panels": lay_out(panels),
    }


OVERVIEW = [
    stat("Ports up", "none", f"sum(crosspoint_port_up{{{HOST}}})"),
    stat("Ports not up", "none", f'sum(1 - crosspoint_port_up{{{HOST}}}) - sum(crosspoint_port_state{{{HOST}, state="disabled"}})',
         "Guests that are switched off are among them, disabled ports are not."),
    stat("Quarantined", "none", f'sum(crosspoint_port_state{{{HOST}, state="quarantined"}})', "Guests that broke the rules of their rings.", 1),
    stat("Forwarding database", "percentunit", f"max(crosspoint_fdb_entries{{{HOST}}} / crosspoint_fdb_capacity{{{HOST}}})", "The fullest.", 0.9),
    stat("Objectives missed", "none", f"count(crosspoint_slo_met{{{HOST}}} == 0) or vector(0)", "Of ports that have a slo, in the last minute.", 1),
    stat("Configurations not applied", "none", f"count(crosspoint_config_last_reload_successful{{{HOST}}} == 0) or vector(0)", "Hosts that continue with their former configuration.", 1),
    stat("Problems of configurations", "none", f"sum(crosspoint_config_problems{{{HOST}}})", "Mistakes, and changes that wait for a restart.", 1),
    stat("Youngest start", "dateTimeFromNow", f"1000 * max(process_start_time_seconds{{{HOST}}} and on (job, instance) crosspoint_build_info{{{HOST}}})", "The last start of any daemon."),
    stat("Ports disabled", "none", f'sum(crosspoint_port_state{{{HOST}, state="disabled"}})', "By the operator: crosspoint port enable NAME."),
    stat("Ports held back by their rate", "none", f"count({rate('crosspoint_queue_rate_limited_total', HOST, 'instance, port')} > 0) or vector(0)",
         "Their guests send as much as limit.out allows."),
    stat("Ports with more than their rate", "none", f"count({drops_of(HOST, 'rate_exceeded', 'instance, port')} > 0) or vector(0)",
         "Others send them more than limit.in allows; the rest is dropped."),
    stat("Guests that act as servers", "none", f"count({drops_of(HOST, 'server_not_allowed', 'instance, port')} > 0) or vector(0)",
         "They send DHCP replies or router advertisements, which their ports may not.", 1),
    graph("Frames", "pps", (rate("crosspoint_queue_packets_total", HOST, "instance, direction"), "{{instance}} {{direction}}")),
    graph("Bits", "bps", ("8 * " + rate("crosspoint_queue_bytes_total", HOST, "instance, direction"), "{{instance}} {{direction}}")),
    graph("Drops by reason", "pps", (rate("crosspoint_drops_total", HOST, "instance, reason") + " > 0", "{{instance}} {{reason}}")),
    graph("Completion", "s", (quantile(0.5, HOST, "instance"), "{{instance}} p50"), (quantile(0.99, HOST, "instance"), "{{instance}} p99"), about=COMPLETION),
    graph("Workers busy", "percentunit", (share("busy", HOST, "instance, worker"), "{{instance}} worker {{worker}}")),
    graph("Addresses", "none", (f"sum by (instance) (crosspoint_fdb_entries{{{HOST}}})", "{{instance}}"), (f"sum by (instance) (crosspoint_fdb_capacity{{{HOST}}})", "{{instance}} capacity")),
    graph("Upgrades and crashes", "none",
          (f"sum by (instance) (increase(crosspoint_upgrades_total{{{HOST}}}[$__rate_interval])) > 0", "{{instance}} upgrades"),
          (f"sum by (instance) (increase(crosspoint_crashes_total{{{HOST}}}[$__rate_interval])) > 0", "{{instance}} crashes"), about="Under a supervisor: guests stayed connected."),
    graph("Connections for the IPFIX collector", "ops",
          (rate("crosspoint_ipfix_records_total", HOST, "instance, event"), "{{instance}} {{event}}"), (rate("crosspoint_ipfix_records_lost_total", HOST, "instance, reason") + " > 0", "{{instance}} lost, {{reason}}")),
    graph("Daemon: memory", "bytes", (f"process_resident_memory_bytes{{{HOST}}} and on (job, instance) crosspoint_build_info{{{HOST}}}", "{{instance}}")),
    graph("Daemon: open descriptors", "none",
          (f"process_open_fds{{{HOST}}} and on (job, instance) crosspoint_build_info{{{HOST}}}", "{{instance}}"),
          (f"process_max_fds{{{HOST}}} and on (job, instance) crosspoint_build_info{{{HOST}}}", "{{instance}} at most")),
    graph("Versions", "none", (f"count by (version) (crosspoint_build_info{{{HOST}}})", "{{version}}"), about="Hosts that run each version."),
    graph("Busiest ports", "pps", ("topk(10, " + rate("crosspoint_queue_packets_total", HOST, "instance, port") + ")", "{{instance}} {{port}}")),
]

BUSIEST = f"max by (instance) ({share('busy', HOST, 'instance, worker')})"
HOST_DROPS = rate("crosspoint_drops_total", HOST, "instance")
MOVED = rate("crosspoint_port_addresses_moved_total", HOST, "instance")
DAMPED = rate("crosspoint_port_addresses_damped_total", HOST, "instance")
FLOODED = rate("crosspoint_queue_flood_copies_total", HOST, "instance")
LIMITED = rate("crosspoint_drops_total", HOST + ', reason=~"storm_.*"', "instance")
SENT = rate("crosspoint_queue_packets_total", HOST + ', direction="tx"', "instance")
# Reasons that are counted at the port which should have got the frame.
NOT_TAKEN = rate("crosspoint_drops_total", HOST + ', reason=~"port_down|guest_.*|nic_.*|mtu_exceeded|handover_full"', "instance")

HOSTS = [
    stat("Hosts", "none", f"count(crosspoint_build_info{{{HOST}}})", "Whose daemon answers."),
    stat("Hosts without an answer", "none", f"count(up{{{HOST}}} == 0) or vector(0)", "Prometheus cannot read their metrics.", 1),
    stat("Hosts with a stuck worker", "none", f"count(max by (instance) (crosspoint_worker_stalled{{{HOST}}}) == 1) or vector(0)", "", 1),
    stat("Hosts with a loop", "none", f"count(max by (instance) (crosspoint_port_looping{{{HOST}}}) == 1) or vector(0)", "", 1),
    table(
        "All hosts",
        ("Drops", "pps", HOST_DROPS),
        ("Busiest worker", "percentunit", BUSIEST),
        ("Addresses moved", "ops", MOVED),
        ("Flood copies", "pps", FLOODED),
        ("Drops by flood limits", "pps", LIMITED),
        ("Ports not up", "none", f"sum by (instance) (1 - crosspoint_port_up{{{HOST}}})"),
        ("Started", "dateTimeFromNow", f"1000 * max by (instance) (process_start_time_seconds{{{HOST}}} and on (job, instance) crosspoint_build_info{{{HOST}}})"),
        about="Of the last interval; the worst first. A host's name leads to its overview.",
    ),
    worst("Drops", "pps", HOST_DROPS, "The ten worst hosts, as in all graphs here."),
    worst("Share of copies that receivers did not take", "percentunit", f"{NOT_TAKEN} / ({SENT} + {NOT_TAKEN})", "Guests and NICs that are too slow, down, or have another MTU."),
    worst("Drops of the worst ports", "pps", rate("crosspoint_drops_total", HOST, "instance, port, reason"), legend="{{instance}} {{port}} {{reason}}"),
    worst("Busiest worker", "percentunit", BUSIEST, "Above 80 % it is near its limit."),
    worst("All workers, mean", "percentunit", share("busy", HOST, "instance"), "Near the busiest worker: the host needs more cores. Far below it: the load is uneven."),
    worst("Cores lost", "ops", rate("crosspoint_worker_involuntary_context_switches_total", HOST, "instance"), "Other tasks run on workers' cores."),
    worst("Addresses that moved", "ops", MOVED, "From one port to another. A migration is one move; many each second mean two guests with one address, or a loop."),
    worst("Moves that were damped", "ops", DAMPED, "The address had moved too often."),
    worst("Flood copies", "pps", FLOODED, "Copies of broadcasts, multicast frames and frames to unknown addresses."),
    worst("Drops by flood limits", "pps", LIMITED, "A port floods beyond its storm limits."),
    worst("Frames beyond their receivers' rates", "pps", drops_of(HOST, "rate_exceeded", "instance, port"), "Dropped, since the port's limit.in is reached.", "{{instance}} {{port}}"),
    worst("Frames that ports may not send", "pps", drops_of(HOST, "server_not_allowed|isolated|source_not_allowed|mac_limit", "instance, port, reason"),
          "DHCP replies and router advertisements of guests, frames from an isolated port to another guest, foreign source addresses, addresses beyond mac_limit.", "{{instance}} {{port}} {{reason}}"),
    worst("Completion, p99", "s", quantile(0.99, HOST, "instance"), COMPLETION),
    worst("Log lines lost", "ops", rate("crosspoint_log_lines_lost_total", HOST, "instance"), "The reader of the log is too slow."),
]

PER_QUEUE = "{{port}} {{queue}}"
PORTS = [
    graph("State", "none", (f"sum by (port, state) (crosspoint_port_state{{{PORT}}}) > 0", "{{port}} {{state}}")),
    graph("Addresses learned", "none", (f"sum by (port) (crosspoint_port_addresses{{{PORT}}})", "{{port}}"), about="Beyond the port's mac_limit none are learned."),
    graph("Frames", "pps", (rate("crosspoint_queue_packets_total", PORT, "port, queue, direction"), PER_QUEUE + " {{direction}}")),
    graph("Bits", "bps", ("8 * " + rate("crosspoint_queue_bytes_total", PORT, "port, queue, direction"), PER_QUEUE + " {{direction}}")),
    graph("Drops by reason", "pps", (rate("crosspoint_drops_total", PORT, "port, reason") + " > 0", "{{port}} {{reason}}")),
    graph("Held back by the port's rate", "ops", (rate("crosspoint_queue_rate_limited_total", PORT, "port, queue") + " > 0", PER_QUEUE),
          about="How often a queue began to wait, because the guest has sent what limit.out allows. One wait lasts until there is credit again. Frames wait in the guest's ring; none is lost."),
    graph("Beyond the port's rate", "pps",
          (rate("crosspoint_queue_ecn_marked_total", PORT, "port") + " > 0", "{{port}} marked"), (drops_of(PORT, "rate_exceeded", "port") + " > 0", "{{port}} dropped"),
          about="Frames for the port beyond limit.in. Those of senders that understand ECN are marked before any is dropped."),
    graph("Frames that the port may not send", "pps", (drops("server_not_allowed|isolated|source_not_allowed|mac_limit"), "{{port}} {{reason}}"),
          about="server_not_allowed: DHCP replies, router advertisements. isolated: to another guest. source_not_allowed: from a foreign address. mac_limit: from more addresses than the port may have."),
    graph("Disabled by the operator", "none", (f'sum by (port) (crosspoint_port_state{{{PORT}, state="disabled"}}) > 0', "{{port}}"), about="1 while disabled. Frames for the port are dropped as port_disabled."),
    graph("Frames from here: delivered and dropped copies", "pps",
          (rate("crosspoint_queue_delivered_copies_total", PORT, "port"), "{{port}} delivered"), (rate("crosspoint_queue_dropped_copies_total", PORT, "port"), "{{port}} dropped"),
          about="At any port. Delivered plus dropped copies are the frames received plus the copies in the next graph."),
    graph("Frames from here: more copies than frames", "pps",
          (rate("crosspoint_queue_flood_copies_total", PORT, "port"), "{{port}} flooded"), (rate("crosspoint_queue_segment_copies_total", PORT, "port"), "{{port}} cut"),
          (rate("crosspoint_queue_joined_copies_total", PORT, "port"), "{{port}} joined")),
    graph("Completion", "s", (quantile(0.5, PORT, "port, queue"), PER_QUEUE + " p50"), (quantile(0.99, PORT, "port, queue"), PER_QUEUE + " p99"), about=COMPLETION),
    graph("Completions, mean", "s",
          (rate("crosspoint_queue_completion_seconds_sum", PORT, "port") + " / " + rate("crosspoint_queue_completion_seconds_count", PORT, "port"), "{{port}}"), about=COMPLETION),
    graph("Completion objectives", "s",
          (f"crosspoint_slo_completion_p99_seconds{{{PORT}}}", "{{port}} p99"), (f"crosspoint_slo_completion_p99_objective_seconds{{{PORT}}}", "{{port}} p99 objective"),
          (f"crosspoint_slo_completion_p50_seconds{{{PORT}}}", "{{port}} p50"), (f"crosspoint_slo_completion_p50_objective_seconds{{{PORT}}}", "{{port}} p50 objective"),
          about="Of ports that have a slo: the last minute."),
    graph("Objectives missed", "none", (f"1 - crosspoint_slo_met{{{PORT}}}", "{{port}} {{objective}}"), about="1 while missed."),
    graph("Frames per burst", "none",
          (rate("crosspoint_queue_packets_total", PORT + ', direction="rx"', "port, queue") + " / " + rate("crosspoint_queue_bursts_total", PORT, "port, queue"), PER_QUEUE + " rx"),
          (quantile(0.99, PORT, "port, queue, direction", "crosspoint_queue_burst_frames"), PER_QUEUE + " {{direction}} p99"),
          about="Up to 64. Close to that, the queue is rarely empty."),
    graph("Receive buffers that the guest offers", "none",
          (f"crosspoint_queue_receive_buffers{{{PORT}}}", PER_QUEUE), (f"crosspoint_queue_receive_ring_entries{{{PORT}}}", PER_QUEUE + " ring"), about="At 0, frames for the guest are dropped. Not known for packed rings."),
    graph("Addresses that came from other ports, or were refused or damped", "ops",
          (rate("crosspoint_port_addresses_moved_total", PORT, "port") + " > 0", "{{port}} came"), (rate("crosspoint_port_addresses_refused_total", PORT, "port") + " > 0", "{{port}} refused"),
          (rate("crosspoint_port_addresses_damped_total", PORT, "port") + " > 0", "{{port}} damped"),
          about="Came again and again: two guests with one address, or a loop. Refused: more than mac_limit. Damped: the address moved too often, and stays at its former port."),
    graph("Connections that are tracked", "none",
          (f"crosspoint_connections{{{PORT}}}", "{{port}}"), (f"crosspoint_connections_half_open{{{PORT}}}", "{{port}} half open"), (f"crosspoint_connections_max{{{PORT}}}", "{{port}} most"),
          about="Of ports with security groups."),
    graph("Connections that begin", "ops",
          (rate("crosspoint_connections_created_total", PORT, "port"), "{{port}}"), (rate("crosspoint_connections_refused_total", PORT, "port") + " > 0", "{{port}} refused, too many"),
          (rate("crosspoint_connections_rate_refused_total", PORT, "port") + " > 0", "{{port}} refused, too many in a second")),
    graph("Front ends that connected", "none", (f"sum by (port) (increase(crosspoint_port_connections_total{{{PORT}}}[$__rate_interval])) > 0", "{{port}}")),
    graph("Workers of queues", "none", (f"count by (worker) (crosspoint_queue_info{{{PORT}}})", "worker {{worker}}"), about="How many of these queues each polls."),
    graph("Kinds of ports", "none", (f"count by (kind, xdp, copy, rings) (crosspoint_port_info{{{PORT}}})", "{{kind}} {{rings}} {{xdp}} {{copy}}")),
    graph("Features that drivers acknowledged", "none", (f"count by (feature) (crosspoint_port_feature{{{PORT}}})", "{{feature}}"), about="Guests with each."),
    graph("Cycles per frame received", "none",
          (rate("crosspoint_queue_cycles_total", PORT, "port, queue") + " / " + rate("crosspoint_queue_packets_total", PORT + ', direction="rx"', "port, queue"), PER_QUEUE),
          about="Of the time stamp counter, in bursts from here."),
    graph("Kicks and calls", "ops", (rate("crosspoint_queue_kicks_total", PORT, "port, queue"), PER_QUEUE + " kicks"), (rate("crosspoint_queue_calls_total", PORT, "port, queue"), PER_QUEUE + " calls"),
          about="Kicks wake a worker; calls are interrupts to the guest."),
    graph("Dropped by the kernel before the switch had them", "pps",
          (rate("crosspoint_xdp_rx_fill_ring_empty_total", PORT, "port, queue") + " > 0", PER_QUEUE + " fill ring empty"),
          (rate("crosspoint_xdp_rx_ring_full_total", PORT, "port, queue") + " > 0", PER_QUEUE + " receive ring full"),
          (rate("crosspoint_xdp_rx_dropped_total", PORT, "port, queue") + " > 0", PER_QUEUE + " other")),
]

WORKERS = [
    graph("Busy", "percentunit", (share("busy", WORKER, "instance, worker"), "{{instance}} {{worker}}"), about="The share of the time in poll iterations that found work."),
    graph("Idle", "percentunit", (share("idle", WORKER, "instance, worker"), "{{instance}} {{worker}}"), about="Polling without finding work."),
    graph("Asleep", "percentunit", (share("sleep", WORKER, "instance, worker"), "{{instance}} {{worker}}"), about='Never with poll = "busy".'),
    graph("Sleeps", "ops", (rate("crosspoint_worker_sleeps_total", WORKER, "instance, worker"), "{{instance}} {{worker}}")),
    graph("Poll gap", "s",
          (quantile(0.5, WORKER, "instance, worker", "crosspoint_worker_poll_gap_seconds"), "{{instance}} {{worker}} p50"),
          (quantile(0.99, WORKER, "instance, worker", "crosspoint_worker_poll_gap_seconds"), "{{instance}} {{worker}} p99"),
          (quantile(0.9999, WORKER, "instance, worker", "crosspoint_worker_poll_gap_seconds"), "{{instance}} {{worker}} p99.99"),
          about="From one poll iteration to the next: a frame waits at most this long until it is noticed."),
    graph("Cores", "none", (f"max by (instance, worker, core, node) (crosspoint_worker_info{{{WORKER}}})", "{{instance}} {{worker}}: core {{core}}, node {{node}}"), about="The core of each worker."),
    graph("Poll iterations", "ops", (rate("crosspoint_worker_iterations_total", WORKER, "instance, worker"), "{{instance}} {{worker}}")),
    graph("Bursts", "ops", (rate("crosspoint_worker_bursts_total", WORKER, "instance, worker"), "{{instance}} {{worker}}")),
    graph("Stalls", "none",
          (f"sum by (instance, worker) (increase(crosspoint_worker_stalls_total{{{WORKER}}}[$__rate_interval])) > 0", "{{instance}} {{worker}}"),
          (f"sum by (instance, worker) (crosspoint_worker_stalled{{{WORKER}}}) > 0", "{{instance}} {{worker}} now"), about="No poll iteration for 100 ms while awake."),
    graph("Cores lost", "ops", (rate("crosspoint_worker_involuntary_context_switches_total", WORKER, "instance, worker"), "{{instance}} {{worker}}"),
          about="Other tasks run on the worker's core."),
    graph("Queues that moved", "ops",
          (rate("crosspoint_worker_stream_moves_total", WORKER, "instance, worker") + " > 0", "{{instance}} to {{worker}}"),
          (rate("crosspoint_worker_stream_moves_put_off_total", WORKER, "instance, worker") + " > 0", "{{instance}} put off by {{worker}}"), about="By load or by command."),
]

DROPS = [
    graph("All, by reason", "pps", (rate("crosspoint_drops_total", PORT, "reason") + " > 0", "{{reason}}"), about="crosspoint show drops explains each."),
    graph("By port", "pps", ("topk(10, " + rate("crosspoint_drops_total", PORT, "instance, port") + ") > 0", "{{instance}} {{port}}")),
    graph("Guests that are too slow", "pps", (drops("guest_ring_full|guest_ring_contended"), "{{port}} {{reason}}"), about="Larger rings, more queue pairs, more CPU for the guest."),
    graph("NICs and workers that are too slow", "pps", (drops("nic_ring_full|handover_full"), "{{port}} {{reason}}"), about="More queues, more workers."),
    graph("Settings that do not match", "pps",
          (drops("vlan_not_carried|untagged_on_trunk|mtu_exceeded|nic_frame_small|guest_buffer_small|oversize|bad_offload|segment_size_unknown"), "{{port}} {{reason}}"), about="VLANs and MTUs."),
    graph("Ports that are down, disabled or quarantined", "pps", (drops("port_down|port_disabled|guest_quarantined"), "{{port}} {{reason}}")),
    graph("Rates and shares", "pps", (drops("rate_exceeded|over_share|burst_budget|guest_buffers_costly"), "{{port}} {{reason}}"),
          about="rate_exceeded: the port's limit. over_share: the worker is busy, and others have less than their share."),
    graph("Rules that keep guests apart", "pps", (drops("server_not_allowed|isolated|source_not_allowed|mac_limit"), "{{port}} {{reason}}"), about="Counted at the sender's port."),
    graph("Floods and loops", "pps", (drops("storm_.*|loop_blocked|loop_probe"), "{{port}} {{reason}}"), about="The port's storm limits, and loop_protect."),
    graph("Ordinary, and odd frames", "pps", (drops("link_local|hairpin|no_destination|runt|bad_source"), "{{port}} {{reason}}"), about="bad_source and runt: a sender is broken."),
    graph("Descriptors that the kernel refused", "pps",
          (rate("crosspoint_xdp_rx_invalid_descriptors_total", PORT, "port, queue") + " > 0", PER_QUEUE + " fill"),
          (rate("crosspoint_xdp_tx_invalid_descriptors_total", PORT, "port, queue") + " > 0", PER_QUEUE + " transmit"), about="Should never happen."),
    graph("Transmit ring found empty", "ops", (rate("crosspoint_xdp_tx_ring_empty_total", PORT, "port, queue"), PER_QUEUE), about="No loss: the kernel had sent all frames of the ring."),
]

DASHBOARDS = {
    "hosts": dashboard("hosts", "hosts", [], HOSTS),
    "overview": dashboard("overview", "overview", [], OVERVIEW),
    "port": dashboard("port", "ports", [OF_PORT], PORTS),
    "worker": dashboard("worker", "workers", [OF_WORKER], WORKERS),
    "drops": dashboard("drops", "drops", [OF_PORT], DROPS),
}


def main():
    stale = []
    for name, content in DASHBOARDS.items():
        path, text = HERE / f"{name}.json", json.dumps(content, indent=1) + "\n"
        if sys.argv[1:] != ["--check"]:
            path.write_text(text)
        elif not path.exists() or path.read_text() != text:
            stale.append(path.name)
    if stale:
        sys.exit(f"error: {', '.join(stale)}: not what generate.py writes; run deploy/grafana/generate.py")


main()
