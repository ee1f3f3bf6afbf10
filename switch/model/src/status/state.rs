//! The state of a port.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The state of a port, as it is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ShownState {
    /// Frames flow.
    Up,
    /// A front end is connected, but its rings do not run.
    Connected,
    /// Nothing is attached.
    #[default]
    Down,
    /// The guest broke a rule.
    Quarantined,
    /// It is up, but blocked because of a loop.
    Blocked,
    /// The operator has disabled it, whatever is attached to it.
    Disabled,
}

impl ShownState {
    /// All states, in the order of the metric.
    pub const ALL: [ShownState; 6] = [
        ShownState::Up,
        ShownState::Connected,
        ShownState::Down,
        ShownState::Quarantined,
        ShownState::Blocked,
        ShownState::Disabled,
    ];

    /// The word for it, as in JSON and in the metric's label.
    pub const fn as_str(self) -> &'static str {
        match self {
            ShownState::Up => "up",
            ShownState::Connected => "connected",
            ShownState::Down => "down",
            ShownState::Quarantined => "quarantined",
            ShownState::Blocked => "blocked",
            ShownState::Disabled => "disabled",
        }
    }
}

impl fmt::Display for ShownState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_the_same_words_everywhere() {
        for state in ShownState::ALL {
            let json = serde_json::to_string(&state).expect("JSON");
            assert_eq!(json, format!("\"{state}\""));
            assert_eq!(serde_json::from_str::<ShownState>(&json).ok(), Some(state));
        }
    }
}
