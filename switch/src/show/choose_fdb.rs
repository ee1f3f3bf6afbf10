//! Which addresses `show fdb` shows.

use serde_json::Value;

/// What to show of the forwarding database; `None` for all.
#[derive(Clone, Debug, Default)]
pub struct FdbChoice {
    /// An address, or a part of one, as given by [`part_of_mac`].
    pub mac: Option<String>,
    /// The name of a port: addresses on it, and those that have moved to or from it.
    pub port: Option<String>,
    /// A VLAN; 0 for none.
    pub vlan: Option<u16>,
    /// Whether only moves are shown, and no addresses.
    pub moves: bool,
}

/// Reads an address or a part of one, with `:`, `-`, `.` or nothing between its bytes.
pub fn part_of_mac(word: &str) -> Result<String, String> {
    let part = word.to_ascii_lowercase().replace('-', ":");
    let is_known = |c: char| c.is_ascii_hexdigit() || matches!(c, ':' | '.');
    match !part.is_empty() && part.chars().all(is_known) {
        true => Ok(part),
        false => Err(format!(
            "{word:?} is not a MAC address or a part of one, such as 52:54:00"
        )),
    }
}

impl FdbChoice {
    /// Whether everything is shown.
    pub fn is_all(&self) -> bool {
        self.mac.is_none() && self.port.is_none() && self.vlan.is_none()
    }

    /// Keeps the chosen addresses and moves in the JSON of the topic `fdb`.
    pub fn of_json(&self, mut value: Value) -> Value {
        for (key, ports) in [
            ("addresses", &["port"][..]),
            ("movers", &["home", "other", "port"]),
        ] {
            if let Some(Value::Array(all)) = value.get_mut(key) {
                let is_shown = key == "movers" || !self.moves;
                all.retain(|one| is_shown && self.has(one, ports));
            }
        }
        value
    }

    fn has(&self, one: &Value, ports: &[&str]) -> bool {
        let text = |key: &str| one.get(key).and_then(Value::as_str).unwrap_or_default();
        let is_on = |port: &String| ports.iter().any(|key| text(key) == port);
        let is_in = |vlan: &u16| one.get("vlan").and_then(Value::as_u64) == Some(u64::from(*vlan));
        self.mac
            .as_ref()
            .is_none_or(|part| is_part(part, text("mac")))
            && self.port.as_ref().is_none_or(is_on)
            && self.vlan.as_ref().is_none_or(is_in)
    }
}

/// Whether an address has this part. A part with colons begins and ends where its colons say.
fn is_part(part: &str, mac: &str) -> bool {
    match part.contains(':') {
        true => mac.contains(part),
        false => mac.replace(':', "").contains(&part.replace('.', "")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_address_is_found_by_any_part_of_it_however_it_is_written() {
        let mac = "52:54:00:ab:cd:ef";
        for part in [
            "52:54",
            "52-54-00-AB-CD-EF",
            "5254.00ab",
            "abcd",
            "ef",
            "00:ab",
        ] {
            let part = part_of_mac(part).expect(part);
            assert!(is_part(&part, mac), "{part}");
        }
        assert!(!is_part(&part_of_mac("54:52").expect("a part"), mac));
        assert!(part_of_mac("web-1").is_err() && part_of_mac("").is_err());
    }

    #[test]
    fn addresses_and_moves_are_kept_by_address_port_and_vlan() {
        let fdb = json!({
            "entries": 3,
            "addresses": [
                {"mac": "52:54:00:00:00:01", "vlan": 10, "port": "a"},
                {"mac": "52:54:00:00:00:02", "vlan": 20, "port": "a"},
                {"mac": "02:00:00:00:00:01", "vlan": 10, "port": "b"},
            ],
            "movers": [{"mac": "52:54:00:00:00:01", "vlan": 10, "home": "a", "other": "b", "port": "a"}],
        });
        let counts = |mac: Option<&str>, port: Option<&str>, vlan| {
            let choice = FdbChoice {
                mac: mac.map(str::to_owned),
                port: port.map(str::to_owned),
                vlan,
                moves: false,
            };
            let chosen = choice.of_json(fdb.clone());
            ["addresses", "movers"].map(|key| chosen[key].as_array().map_or(0, Vec::len))
        };
        assert_eq!(counts(None, None, None), [3, 1]);
        assert_eq!(counts(Some("52:54"), None, None), [2, 1]);
        assert_eq!(counts(None, Some("b"), None), [1, 1]);
        assert_eq!(counts(None, Some("a"), Some(20)), [1, 0]);
        assert_eq!(counts(Some("02:00"), Some("a"), None), [0, 0]);
        let moves = FdbChoice {
            moves: true,
            ..FdbChoice::default()
        };
        let chosen = moves.of_json(fdb.clone());
        assert_eq!(
            (&chosen["addresses"], &chosen["movers"]),
            (&json!([]), &fdb["movers"])
        );
    }
}
