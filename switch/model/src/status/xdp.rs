//! The kernel's counters of an AF_XDP socket.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The kernel's counters of an AF_XDP socket (`XDP_STATISTICS`): `xdp_counters!(make)` calls `make!` with the list. The
/// metric is `crosspoint_xdp_TEXT_total`, the doc comment its help.
#[macro_export]
macro_rules! xdp_counters {
    ($make:ident) => {
        $make! {
            /// Frames that the kernel dropped at the AF_XDP socket for reasons without a counter of their own.
            rx_dropped = "rx_dropped";
            /// Fill ring descriptors that the kernel refused.
            rx_invalid_descs = "rx_invalid_descriptors";
            /// Transmit ring descriptors that the kernel refused.
            tx_invalid_descs = "tx_invalid_descriptors";
            /// Frames that the kernel dropped because the receive ring was full.
            rx_ring_full = "rx_ring_full";
            /// Times that the kernel found the fill ring empty.
            rx_fill_ring_empty_descs = "rx_fill_ring_empty";
            /// Times that the kernel found the transmit ring empty.
            tx_ring_empty_descs = "tx_ring_empty";
        }
    };
}

macro_rules! xdp_status {
    ($($(#[doc = $doc:literal])+ $counter:ident = $_metric:literal;)+) => {
        /// The kernel's counters of one AF_XDP socket.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        pub struct XdpStatus {
            $($(#[doc = $doc])+ pub $counter: u64,)+
        }

        impl XdpStatus {
            /// The sum of both.
            pub fn plus(&self, other: &XdpStatus) -> XdpStatus {
                XdpStatus { $($counter: self.$counter + other.$counter,)+ }
            }
        }
    };
}
xdp_counters!(xdp_status);
