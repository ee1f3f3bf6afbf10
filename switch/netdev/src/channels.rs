//! Number of queues of an interface (`ethtool -l` and `-L`).

use crate::ethtool::{iterate, to_word, word};
use crate::{Ethtool, LinkError};
use serde::{Deserialize, Serialize};

/// ETHTOOL_MSG_CHANNELS_GET and _SET.
const GET: u8 = 17;
const SET: u8 = 18;
/// ETHTOOL_A_CHANNELS_...
const RX_MAX: u16 = 2;
const TX_MAX: u16 = 3;
const COMBINED_MAX: u16 = 5;
const RX_COUNT: u16 = 6;
const TX_COUNT: u16 = 7;
const COMBINED_COUNT: u16 = 9;

/// An interface's queues. Most NICs have combined ones, which receive and transmit; some, and veth, have separate ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Channels {
    /// Queues that only receive.
    pub rx: u32,
    /// Queues that only transmit.
    pub tx: u32,
    /// Queues that do both.
    pub combined: u32,
    /// Maximum of `rx`.
    pub rx_max: u32,
    /// Maximum of `tx`.
    pub tx_max: u32,
    /// Maximum of `combined`.
    pub combined_max: u32,
}

impl Channels {
    /// Returns a copy with `count` queues that receive and transmit.
    pub fn with(self, count: u32) -> Channels {
        if self.combined_max > 0 {
            let combined = count;
            return Channels { combined, ..self };
        }
        Channels {
            rx: count,
            tx: count,
            ..self
        }
    }

    /// Returns the largest valid count for [`with`](Self::with).
    pub fn max(self) -> u32 {
        match self.combined_max {
            0 => self.rx_max.min(self.tx_max),
            max => max,
        }
    }
}

impl Ethtool {
    /// Reads the queues of interface number `index`. Unsupported if the driver does not report them.
    pub fn channels(&mut self, index: u32) -> Result<Channels, LinkError> {
        let answer = self.get("asking for the number of queues", GET, index)?;
        let mut channels = Channels::default();
        for (kind, value) in iterate(&answer) {
            let field = match kind {
                RX_MAX => &mut channels.rx_max,
                TX_MAX => &mut channels.tx_max,
                COMBINED_MAX => &mut channels.combined_max,
                RX_COUNT => &mut channels.rx,
                TX_COUNT => &mut channels.tx,
                COMBINED_COUNT => &mut channels.combined,
                _ => continue,
            };
            *field = to_word(value).unwrap_or_default();
        }
        Ok(channels)
    }

    /// Sets the number of queues of interface number `index`. The counts must not exceed the maxima.
    pub fn set_channels(&mut self, index: u32, channels: Channels) -> Result<(), LinkError> {
        let counts = [
            (RX_COUNT, channels.rx, channels.rx_max),
            (TX_COUNT, channels.tx, channels.tx_max),
            (COMBINED_COUNT, channels.combined, channels.combined_max),
        ];
        let has_such = counts.into_iter().filter(|(_, _, max)| *max > 0);
        let attributes = has_such.map(|(kind, count, _)| word(kind, count)).collect();
        self.set("setting the number of queues", SET, index, attributes)
    }
}
