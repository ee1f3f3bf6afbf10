//! Names, types, labels and help of the metrics that are not in a list of counters (`counted.rs`), and the conversion of
//! values to families. A section ends where those of a list follow.

use prometheus::proto::{
    Bucket, Counter, Gauge, Histogram, LabelPair, Metric, MetricFamily, MetricType,
};

/// A metric's description.
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// Its name.
    pub name: &'static str,
    /// Counter, gauge or histogram.
    pub kind: MetricType,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// One sentence for operators.
    pub help: &'static str,
}

pub(super) const PORT: &[&str] = &["port"];
pub(super) const QUEUE: &[&str] = &["port", "queue"];
pub(super) const WORKER: &[&str] = &["worker"];

macro_rules! families {
    ($section:ident: $($id:ident = $kind:ident $name:literal $labels:expr, $help:literal;)+) => {
        $(pub(super) const $id: Family = Family {
            name: $name,
            kind: MetricType::$kind,
            labels: $labels,
            help: $help,
        };)+
        pub(super) const $section: &[Family] = &[$($id,)+];
    };
}

families! {
    SWITCH_AND_PORTS:
    BUILD_INFO = GAUGE "crosspoint_build_info" &["version"], "Always 1; the label has the version.";
    TSC_HERTZ = GAUGE "crosspoint_tsc_hertz" &[], "Rate of the time stamp counter, in which cycles are counted.";
    CONFIG_SUCCESSFUL = GAUGE "crosspoint_config_last_reload_successful" &[], "Whether the configuration was applied when it was last read, at the start or by a reload: 1 if so, else 0.";
    CONFIG_TIMESTAMP = GAUGE "crosspoint_config_last_reload_success_timestamp_seconds" &[], "When the configuration was last applied, seconds since 1970.";
    CONFIG_PROBLEMS = GAUGE "crosspoint_config_problems" &[], "Problems of the configuration files as they are now: mistakes, and changes that wait for a restart.";
    PORT_UP = GAUGE "crosspoint_port_up" PORT, "Whether the port forwards frames: 1 if its state is up, else 0.";
    PORT_STATE = GAUGE "crosspoint_port_state" &["port", "state"], "1 for the state that the port is in, 0 for the others.";
    PORT_REQUIRED = GAUGE "crosspoint_port_required" PORT, "Whether the switch is ready only while the port is up: 1 if so, else 0.";
    PORT_INFO = GAUGE "crosspoint_port_info" &["port", "kind", "attachment", "role", "rings", "xdp", "copy"], "Always 1; labels describe the port: vhost or xdp; its socket or interface; its role at the socket and the layout of the rings; XDP's mode, and whether frames are copied.";
    PORT_FEATURE = GAUGE "crosspoint_port_feature" &["port", "feature"], "1 for each virtio feature that the guest's driver has acknowledged.";
    PORT_CONNECTIONS = COUNTER "crosspoint_port_connections_total" PORT, "Front ends that have connected to the port's socket.";
    PORT_ADDRESSES = GAUGE "crosspoint_port_addresses" PORT, "Addresses learned on the port.";
}

families! {
    LOOPS_SLO_AND_TRAFFIC:
    PORT_LOOPING = GAUGE "crosspoint_port_looping" PORT, "Whether a loop goes through the port: 1 if a probe of loop_protect came back in the last 3.5 s, or if addresses move between it and another port 1000 times a second or more in each direction, else 0.";
    SLO_MET = GAUGE "crosspoint_slo_met" &["port", "objective"], "Whether the port's service level objective was met in the last minute: 0 if it was missed, else 1, also without traffic.";
    SLO_P50_OBJECTIVE = GAUGE "crosspoint_slo_completion_p50_objective_seconds" PORT, "Objective of the port's slo: half of its guest's descriptors are completed within this.";
    SLO_P50 = GAUGE "crosspoint_slo_completion_p50_seconds" PORT, "Time within which half of the descriptors were completed in the last minute; NaN where there were none.";
    SLO_P99_OBJECTIVE = GAUGE "crosspoint_slo_completion_p99_objective_seconds" PORT, "Objective of the port's slo: 99 of 100 of its guest's descriptors are completed within this.";
    SLO_P99 = GAUGE "crosspoint_slo_completion_p99_seconds" PORT, "Time within which 99 of 100 descriptors were completed in the last minute; NaN where there were none.";
    QUEUE_INFO = GAUGE "crosspoint_queue_info" &["port", "queue", "worker"], "1 for the worker that polls the queue.";
    PACKETS = COUNTER "crosspoint_queue_packets_total" &["port", "queue", "direction"], "Frames: rx from the port into the switch, tx delivered to the port.";
    BYTES = COUNTER "crosspoint_queue_bytes_total" &["port", "queue", "direction"], "Bytes of the frames in crosspoint_queue_packets_total.";
    DROPS = COUNTER "crosspoint_drops_total" &["port", "queue", "reason"], "Frames and copies dropped, by reason; crosspoint show drops explains each.";
}

families! {
    BURSTS_AND_RINGS:
    BURSTS = COUNTER "crosspoint_queue_bursts_total" QUEUE, "Bursts of up to 64 frames taken from the queue.";
    BURST_FRAMES = HISTOGRAM "crosspoint_queue_burst_frames" &["port", "queue", "direction"], "Frames of each burst: rx taken from the queue, tx delivered to it at once.";
    RING_ENTRIES = GAUGE "crosspoint_queue_receive_ring_entries" QUEUE, "Entries of the guest's receive ring.";
    RING_BUFFERS = GAUGE "crosspoint_queue_receive_buffers" QUEUE, "Receive buffers that the guest offers at this moment; not known for packed rings.";
}

families! {
    COMPLETIONS:
    COMPLETION = HISTOGRAM "crosspoint_queue_completion_seconds" QUEUE, "Time from reading a guest's descriptor to completing it.";
}

families! {
    WORKERS:
    WORKER_INFO = GAUGE "crosspoint_worker_info" &["worker", "core", "node"], "Always 1; labels have the core that the worker is pinned to, and its memory node if there is one.";
    WORKER_CYCLES = COUNTER "crosspoint_worker_cycles_total" &["worker", "state"], "Time stamp counter cycles: busy in poll iterations that found work, idle in those that found none, sleep while the worker slept.";
    WORKER_ITERATIONS = COUNTER "crosspoint_worker_iterations_total" WORKER, "Poll iterations of the worker.";
    WORKER_GAP = HISTOGRAM "crosspoint_worker_poll_gap_seconds" WORKER, "Time from one poll iteration of the worker to the next while it is awake; a frame waits at most this long until it is noticed.";
}

families! {
    STALLS_AND_DAEMON:
    WORKER_STALLS = COUNTER "crosspoint_worker_stalls_total" WORKER, "Times that the worker made no poll iteration for 100 ms while it was awake.";
    WORKER_STALLED = GAUGE "crosspoint_worker_stalled" WORKER, "1 while the worker is awake and makes no poll iteration, else 0.";
    WORKER_PREEMPTED = COUNTER "crosspoint_worker_involuntary_context_switches_total" WORKER, "Involuntary context switches of the worker.";
    WORKER_MISPLACED = GAUGE "crosspoint_worker_misplaced" WORKER, "1 while the worker may run on another core than its own, or may not run on its own, else 0.";
    READY = GAUGE "crosspoint_ready" &[], "Whether every worker makes progress and every required port is up: 1 if so, else 0.";
    FDB_ENTRIES = GAUGE "crosspoint_fdb_entries" &[], "Addresses in the forwarding database.";
    FDB_CAPACITY = GAUGE "crosspoint_fdb_capacity" &[], "Addresses that the forwarding database has room for.";
    FDB_AGEING = GAUGE "crosspoint_fdb_ageing_seconds" &[], "Time after which an address that was not seen is forgotten.";
    LOG_LOST = COUNTER "crosspoint_log_lines_lost_total" &[], "Log lines that were lost, because the reader of the log did not keep up.";
    CONNECTIONS = GAUGE "crosspoint_connections" PORT, "Connections that are tracked for the port, which has security groups.";
    CONNECTIONS_HALF_OPEN = GAUGE "crosspoint_connections_half_open" PORT, "TCP connections among them that are not established yet; a tenth of connections_max, at least 64, is the most in each direction.";
    CONNECTIONS_MAX = GAUGE "crosspoint_connections_max" PORT, "The most connections that the port may have: its connections_max.";
    CONNECTIONS_CREATED = COUNTER "crosspoint_connections_created_total" PORT, "Connections that have begun at the port.";
    CONNECTIONS_REFUSED = COUNTER "crosspoint_connections_refused_total" PORT, "Connections that were refused, because the port had as many as it may have, or the table was full.";
    CONNECTIONS_RATE_MAX = GAUGE "crosspoint_connections_rate_max" PORT, "The most connections that may begin in a second, in each direction: the port's connections_rate; 0 for no limit.";
    CONNECTIONS_RATE_REFUSED = COUNTER "crosspoint_connections_rate_refused_total" PORT, "Connections that were refused, because more began in a second than the port's connections_rate allows.";
    CONNECTIONS_CAPACITY = GAUGE "crosspoint_connections_capacity" &[], "Connections that the table of the switch has room for; there is none until a port has security groups.";
    CONNECTIONS_USED = GAUGE "crosspoint_connections_used" &[], "Connections in the table of the switch.";
    MIRROR_COPIES = COUNTER "crosspoint_mirror_copies_total" &["mirror", "result"], "Copies of frames that the mirror made: delivered to its port, or missed because the port or the burst had no room for them.";
    SFLOW_DATAGRAMS = COUNTER "crosspoint_sflow_datagrams_total" &[], "Datagrams sent to the sFlow collector.";
    SFLOW_SAMPLES = COUNTER "crosspoint_sflow_samples_total" &["kind"], "Samples in these datagrams: flow of frames, counters of ports.";
    SFLOW_MISSED = COUNTER "crosspoint_sflow_samples_missed_total" &[], "Frames that were chosen and not sampled, because the exporting thread was too slow.";
    SFLOW_ERRORS = COUNTER "crosspoint_sflow_send_errors_total" &[], "Datagrams for the sFlow collector that could not be sent.";
    IPFIX_MESSAGES = COUNTER "crosspoint_ipfix_messages_total" &[], "Messages sent to the IPFIX collector.";
    IPFIX_RECORDS = COUNTER "crosspoint_ipfix_records_total" &["event"], "Records that were made, of connections that have begun, last, or have ended, and of packets that were denied; those in messages that could not be sent are among them.";
    IPFIX_LOST = COUNTER "crosspoint_ipfix_records_lost_total" &["reason"], "Records that the collector did not get: missed, because the exporting thread was too slow; unsent, because a message could not be sent, or the export ended.";
    IPFIX_DENIED_UNSENT = COUNTER "crosspoint_ipfix_denied_unsent_total" &[], "Denied packets without a record, because there were more in a second than `denied` of [ipfix] allows.";
    IPFIX_ERRORS = COUNTER "crosspoint_ipfix_send_errors_total" &[], "Messages for the IPFIX collector that could not be sent.";
    CALLS_REFUSED = COUNTER "crosspoint_system_calls_refused_total" &["threads"], "System calls that are not on the list of the thread that made them: of workers, or of others. Each failed with EPERM, and the log names it.";
    UPGRADES = COUNTER "crosspoint_upgrades_total" &[], "Upgrades of the switch since its supervisor started; 0 without a supervisor.";
    CRASHES = COUNTER "crosspoint_crashes_total" &[], "Times since the supervisor started that the switch crashed, was killed or hung, and was started again with its guests; 0 without a supervisor.";
    CLIENTS_CLOSED = COUNTER "crosspoint_clients_closed_total" &["server", "why"], "Connections to the metrics server or the control socket that were closed because all places were taken: gave_way to a newer one, or refused because none gave way.";
}

/// A family that is being filled.
#[derive(Debug)]
pub(super) struct Samples {
    family: Family,
    metrics: Vec<Metric>,
}

impl Samples {
    pub(super) fn of(family: Family) -> Samples {
        Samples {
            family,
            metrics: Vec::new(),
        }
    }

    /// Adds a counter's or a gauge's value, with a value for every label.
    pub(super) fn add(&mut self, labels: &[&str], value: impl Into<Value>) {
        let Value(value) = value.into();
        let mut metric = self.metric(labels);
        if self.family.kind == MetricType::COUNTER {
            let mut counter = Counter::default();
            counter.set_value(value);
            metric.set_counter(counter);
        } else {
            let mut gauge = Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        }
        self.metrics.push(metric);
    }

    /// Adds a histogram: its bounds with the counts of values that do not exceed them, and the count and the sum of all.
    pub(super) fn add_histogram(
        &mut self,
        labels: &[&str],
        bounds: impl Iterator<Item = (f64, u64)>,
        (count, sum): (u64, f64),
    ) {
        let buckets = bounds.map(|(bound, count)| {
            let mut bucket = Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(count);
            bucket
        });
        let mut histogram = Histogram::default();
        histogram.set_bucket(buckets.collect());
        histogram.set_sample_count(count);
        histogram.set_sample_sum(sum);
        let mut metric = self.metric(labels);
        metric.set_histogram(histogram);
        self.metrics.push(metric);
    }

    fn metric(&self, labels: &[&str]) -> Metric {
        debug_assert_eq!(labels.len(), self.family.labels.len(), "{:?}", self.family);
        let pairs = self.family.labels.iter().zip(labels).map(|(name, value)| {
            let mut pair = LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value((*value).to_owned());
            pair
        });
        Metric::from_label(pairs.collect())
    }

    pub(super) fn finish(self) -> MetricFamily {
        let mut family = MetricFamily::default();
        family.set_name(self.family.name.to_owned());
        family.set_help(self.family.help.to_owned());
        family.set_field_type(self.family.kind);
        family.set_metric(self.metrics);
        family
    }
}

/// A sample's value. Prometheus has no integers: counts beyond 2^53 lose their last digits.
pub(super) struct Value(f64);

impl From<u64> for Value {
    fn from(count: u64) -> Value {
        Value(count as f64)
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Value {
        Value(value)
    }
}

impl From<usize> for Value {
    fn from(count: usize) -> Value {
        Value(count as f64)
    }
}

impl From<bool> for Value {
    fn from(yes: bool) -> Value {
        Value(f64::from(u8::from(yes)))
    }
}
