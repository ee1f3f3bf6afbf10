//! The lists of counters: of a queue, of a port, of a worker.
//!
//! A counter is one entry here. Its name is the field of the counters that workers write, of the status that is made of
//! them and of the row that is shown, and a part of the metric's name; its doc comment is the help of the metric. Each
//! list is a macro that calls the macro which it is given with all of the entries: the counters (`counters.rs`), the
//! status and the rows (`model`), the sums and the metrics (`daemon`) are made in this way.
//!
//! A group is a place in the status' JSON, so the order of the groups and of their entries is public. A new entry is the
//! last one of its group.

/// The counters of a queue: `queue_counters!(make)` calls `make!` with the list.
///
/// - `traffic`: the data path's name `as` the public one. Summed over removed ports. The metrics have one family for both
///   directions.
/// - `ledger`: copies. Summed over removed ports, since the totals would not balance without them.
/// - `events`: the metric is `crosspoint_queue_NAME_total`, as that of `ledger`.
/// - `time`: as `events`.
#[macro_export]
macro_rules! queue_counters {
    ($make:ident) => {
        $make! {
            traffic {
                /// Frames from the port into the switch.
                rx_frames as rx_packets;
                /// Their bytes.
                rx_bytes as rx_bytes;
                /// Copies delivered to the port.
                tx_frames as tx_packets;
                /// Their bytes.
                tx_bytes as tx_bytes;
            }
            ledger {
                /// Additional copies that flooding made of frames from here.
                flood_copies;
                /// Additional copies from cutting large frames from here into segments, for ports that do not accept large frames.
                segment_copies;
                /// Copies of frames from here that were joined to the frame before them into a large frame, for ports that accept large frames.
                joined_copies;
                /// Copies of frames from here that were delivered, at any port.
                delivered_copies;
                /// Copies of frames from here that were dropped, at any port.
                dropped_copies;
                /// Additional copies that mirrors made of frames from here.
                mirror_copies;
            }
            events {
                /// Kicks from the guest that woke a worker.
                kicks;
                /// Poll iterations in which the queue was not read, because its port had used more than its share of the worker and others waited.
                held_back;
                /// Calls (interrupts) to the guest.
                calls;
                /// How often the queue had to wait, because its port had no credit by its limit.
                rate_limited;
                /// Frames for the port that were marked with ECN, because they exceeded its limit. Counted at its first queue.
                ecn_marked;
                /// Broadcasts from here that were flooded.
                broadcasts;
                /// Multicasts from here that were flooded.
                multicasts;
                /// Frames from here that were flooded because no port was known for their destination.
                unknown_unicasts;
                /// Poll iterations in which the queue was not read, because an uplink that it sends through was full and other ports had sent less.
                uplink_waits;
                /// ARP requests and neighbour solicitations from here that went to the one port with the address, in place of a flood. Counted at the first queue.
                neighbors_suppressed;
            }
            time {
                /// Time stamp counter cycles that workers spent on bursts from the queue.
                cycles;
            }
        }
    };
}

/// The counters of a port that no queue has: `port_counters!(make)` calls `make!` with the list. The metric is
/// `crosspoint_port_NAME_total`.
#[macro_export]
macro_rules! port_counters {
    ($make:ident) => {
        $make! {
            events {
                /// Times that an address came to the port from another one.
                addresses_moved;
                /// Times that an address was not learned, because the port had as many as its mac_limit.
                addresses_refused;
                /// Times that an address was not learned on the port, because it had moved between ports fdb_moves_max times within fdb_moves_window.
                addresses_damped;
            }
        }
    };
}

/// The counters of a worker: `worker_counters!(make)` calls `make!` with the list.
///
/// - `cycles`: the entry's text is the value of the label `state` of `crosspoint_worker_cycles_total`. No row has them.
/// - `events`: the metric is `crosspoint_worker_NAME_total`.
/// - `maxima`: the metric is a gauge, `crosspoint_worker_NAME`. No row has them.
/// - `moves`: as `events`, but counted by the control thread.
#[macro_export]
macro_rules! worker_counters {
    ($make:ident) => {
        $make! {
            cycles {
                /// Cycles of poll iterations that found work.
                busy_cycles = "busy";
                /// Cycles of poll iterations that found no work.
                idle_cycles = "idle";
                /// Cycles asleep.
                sleep_cycles = "sleep";
            }
            events {
                /// Times that the worker slept.
                sleeps;
                /// Bursts that the worker handled.
                bursts;
            }
            maxima {
                /// Largest work of one burst beyond one plain copy of each frame, in units of about a cycle; its bound is in the threat model.
                burst_work_max;
            }
            moves {
                /// Streams that moved to this worker from another one, by load or by command.
                stream_moves;
                /// Moves of streams away from this worker that were put off, because a NIC had not sent the frames that the worker had given it.
                stream_moves_put_off;
            }
        }
    };
}
