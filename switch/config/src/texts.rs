//! The rules for texts: names, paths and addresses.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crosspoint_packet::Mac;
use serde_json::{Value, json};

use super::duration;
use super::field::Item;
use super::key::{Definitions, Reader, Rule, object};
use super::limits::*;

/// Six bytes, the first one even: not a group address.
pub(super) const MAC_PATTERN: &str = "^[0-9A-Fa-f][02468ACEace](:[0-9A-Fa-f]{2}){5}$";
const MODE_PATTERN: &str = "^0?[0-7]{3}$";

/// Why a text is refused.
pub(super) struct Refusal {
    /// The message, if the rule's own does not say enough.
    pub message: Option<String>,
    pub label: &'static str,
}

impl From<&'static str> for Refusal {
    fn from(label: &'static str) -> Self {
        let message = None;
        Self { message, label }
    }
}

/// A text with a meaning.
pub(super) struct Text<T> {
    /// What it must be, in messages.
    pub must: &'static str,
    pub help: Cow<'static, str>,
    pub parse: fn(&str) -> Result<T, Refusal>,
    pub write: fn(&T) -> String,
    /// Its schema, besides the type.
    pub schema: Value,
}

impl<T: Clone + 'static> Rule for Text<T> {
    type Value = T;

    fn read<'a>(&self, reader: &mut Reader<'a>, key: &str, item: &'a Item<'a>) -> Option<T> {
        let checker = &mut *reader.checker;
        let (text, span) = checker.value::<&str>(item, key, self.must, &self.help)?;
        match (self.parse)(text) {
            Ok(value) => Some(value),
            Err(Refusal { message, label }) => {
                let message = message.unwrap_or_else(|| format!("`{key}` must be {}", self.must));
                checker.problem(span, message, label, &*self.help);
                None
            }
        }
    }

    fn write(&self, value: &T) -> Value {
        json!((self.write)(value))
    }

    fn schema(&self, _: &mut Definitions) -> Value {
        let mut schema = object(self.schema.clone());
        schema.insert("type".to_owned(), json!("string"));
        schema.into()
    }
}

/// A text that means itself.
fn verbatim(must: &'static str, help: &'static str) -> Text<String> {
    Text {
        must,
        help: help.into(),
        parse: |text| Ok(text.to_owned()),
        write: String::clone,
        schema: json!({}),
    }
}

/// The pattern of names of ports, groups and sets.
pub(super) const NAME_PATTERN: &str = "^[A-Za-z0-9][A-Za-z0-9._-]*$";

/// A port's name.
pub(super) fn port_name() -> Text<String> {
    Text {
        parse: |name| checked_name("port", name),
        ..name("for example: name = \"web-1\"")
    }
}

/// A security group's name.
pub(super) fn group_name() -> Text<String> {
    Text {
        parse: |name| checked_name("group", name),
        ..name("for example: name = \"web\"")
    }
}

/// A bridge's name.
pub(super) fn bridge_name() -> Text<String> {
    Text {
        parse: |name| checked_name("bridge", name),
        ..name("for example: bridge = \"tenant-a\"")
    }
}

/// The name of a set of addresses.
pub(super) fn set_name() -> Text<String> {
    Text {
        parse: |name| checked_name("set", name),
        ..name("for example: name = \"admins\"")
    }
}

fn name(help: &'static str) -> Text<String> {
    Text {
        schema: json!({"maxLength": PORT_NAME_BYTES_MAX, "pattern": NAME_PATTERN}),
        ..verbatim("a string", help)
    }
}

/// The name of a port, a group or a set, or the reason why it cannot be one.
fn checked_name(what: &str, name: &str) -> Result<String, Refusal> {
    let Some(label) = wrong_name(name) else {
        return Ok(name.to_owned());
    };
    let message = format!(
        "a {what}'s name must be 1 to {PORT_NAME_BYTES_MAX} letters, digits, '.', '_' or '-', the first a letter or digit"
    );
    let message = Some(message);
    Err(Refusal { message, label })
}

/// The reason why a text cannot be a name, if any.
pub(super) fn wrong_name(name: &str) -> Option<&'static str> {
    let known = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    if name.is_empty() {
        Some("empty")
    } else if name.len() > PORT_NAME_BYTES_MAX {
        Some("too long")
    } else if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        Some("does not begin with a letter or digit")
    } else if !name.chars().all(known) {
        Some("has a character that is none of these")
    } else {
        None
    }
}

/// The path of a set's file, absolute or relative.
pub(super) fn set_file() -> Text<PathBuf> {
    Text {
        must: "the path of a file",
        help: "for example: file = \"admins.txt\", beside this file".into(),
        ..folder()
    }
}

/// The path of a file in PEM, absolute or relative. `example` is a key with its value.
pub(super) fn pem_file(example: &str) -> Text<PathBuf> {
    Text {
        must: "the path of a file",
        help: format!("for example: {example}, beside this file").into(),
        ..folder()
    }
}

/// The path of a file with a token, absolute or relative.
pub(super) fn token_file() -> Text<PathBuf> {
    Text {
        must: "the path of a file",
        help: "for example: token_file = \"metrics.token\", beside this file".into(),
        ..folder()
    }
}

/// An interface name that the kernel accepts (`dev_valid_name()`).
pub(super) fn interface() -> Text<String> {
    let parse = |name: &str| {
        let refused = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
        let label = if name.is_empty() {
            "empty"
        } else if name.len() > INTERFACE_BYTES_MAX {
            "too long"
        } else if name == "." || name == ".." || name.contains(refused) {
            "no interface can be named this"
        } else {
            return Ok(name.to_owned());
        };
        let message = format!(
            "`interface` must be 1 to {INTERFACE_BYTES_MAX} bytes, without '/', ':' or blanks"
        );
        let message = Some(message);
        Err(Refusal { message, label })
    };
    let help = "`ip link` lists the names; for example: interface = \"enp1s0f0\"";
    Text {
        parse,
        schema: json!({"minLength": 1, "maxLength": INTERFACE_BYTES_MAX}),
        ..verbatim("the name of a network interface", help)
    }
}

/// The name of an uplink.
pub(super) fn uplink() -> Text<String> {
    verbatim("the name of an xdp port", super::direct::HELP)
}

/// A socket's group.
pub(super) fn group() -> Text<String> {
    let parse = |group: &str| {
        let refused = |c: char| c == ':' || c == ',' || c.is_whitespace() || c.is_control();
        if group.is_empty() {
            Err("empty".into())
        } else if group.len() > GROUP_BYTES_MAX {
            Err("too long".into())
        } else if group.contains(refused) {
            Err("no group can be named this".into())
        } else {
            Ok(group.to_owned())
        }
    };
    let help = "for example: socket_group = \"libvirt-qemu\"";
    Text {
        parse,
        schema: json!({"minLength": 1, "maxLength": GROUP_BYTES_MAX}),
        ..verbatim("the name or the number of a group", help)
    }
}

/// A socket's mode.
pub(super) fn mode() -> Text<u32> {
    let parse = |text: &str| {
        let digits = match text.len() {
            4 => text.strip_prefix('0'),
            _ => Some(text),
        };
        let is_mode =
            |digits: &&str| digits.len() == 3 && digits.bytes().all(|b| b.is_ascii_digit());
        let mode = digits
            .filter(is_mode)
            .and_then(|digits| u32::from_str_radix(digits, 8).ok());
        mode.ok_or_else(|| "not three octal digits, perhaps with a zero before them".into())
    };
    Text {
        must: "a mode in octal, between quotes",
        help: "for example: socket_mode = \"0660\", for its owner and group".into(),
        parse,
        write: |mode| format!("{mode:04o}"),
        schema: json!({"pattern": MODE_PATTERN}),
    }
}

/// A socket's path.
pub(super) fn socket() -> Text<PathBuf> {
    let parse = |path: &str| {
        let names_file = !path.ends_with('/') && Path::new(path).file_name().is_some();
        let (message, label) = if !path.starts_with('/') {
            (
                Cow::from("`socket` must be an absolute path"),
                "does not begin with /",
            )
        } else if path.contains('\0') {
            ("`socket` has a zero byte in it".into(), "no path has one")
        } else if path.len() > SOCKET_BYTES_MAX {
            let message = format!(
                "`socket` has {} bytes, and the kernel accepts {SOCKET_BYTES_MAX} in a socket's path",
                path.len()
            );
            (message.into(), "too long")
        } else if !names_file {
            let message = "`socket` must be the path of a file".into();
            (message, "this names a directory")
        } else {
            return Ok(PathBuf::from(path));
        };
        let message = Some(message.into_owned());
        Err(Refusal { message, label })
    };
    Text {
        must: "an absolute path",
        help: "for example: socket = \"/run/crosspoint/guests/web-1.sock\"".into(),
        parse,
        write: |path| path.to_string_lossy().into_owned(),
        schema: json!({"pattern": "^/", "maxLength": SOCKET_BYTES_MAX}),
    }
}

/// A folder's path, absolute or relative.
pub(super) fn folder() -> Text<PathBuf> {
    let parse = |path: &str| {
        if path.is_empty() {
            Err("empty".into())
        } else if path.contains('\0') {
            Err("no path has a zero byte in it".into())
        } else if path.len() > PATH_BYTES_MAX {
            Err("longer than the kernel accepts".into())
        } else {
            Ok(PathBuf::from(path))
        }
    };
    let help =
        "for example: ports_dir = \"/etc/crosspoint/ports.d\", or \"ports.d\" beside this file";
    Text {
        must: "the path of a folder",
        help: help.into(),
        parse,
        write: |path| path.to_string_lossy().into_owned(),
        schema: json!({"minLength": 1, "maxLength": PATH_BYTES_MAX}),
    }
}

/// An address to listen on; `None` for "off".
pub(super) fn listen() -> Text<Option<SocketAddr>> {
    let parse = |text: &str| match (text, text.parse()) {
        ("off", _) => Ok(None),
        (_, Ok(address)) => Ok(Some(address)),
        // A host name would need a lookup, and the switch must start without a network.
        _ if text.contains(':') => Err("not an IP address and a port".into()),
        _ => Err("has no port".into()),
    };
    let help = format!(
        "for example: listen = \"{METRICS_LISTEN_DEFAULT}\", listen = \"[::]:9477\" or listen = \"off\""
    );
    Text {
        must: "an IP address and a port, or \"off\"",
        help: help.into(),
        parse,
        write: |listen| {
            let address = listen.as_ref();
            address.map_or("off".to_owned(), SocketAddr::to_string)
        },
        schema: json!({}),
    }
}

/// The address of a collector: an IP address, and a UDP port if that is not `port`.
fn collector_at(text: &str, port: u16) -> Result<SocketAddr, Refusal> {
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'));
    let address: Option<IpAddr> = bare.unwrap_or(text).parse().ok();
    let without_port = address.map(|address| SocketAddr::new(address, port));
    match text.parse().ok().or(without_port) {
        Some(address) if address.ip().is_unspecified() => Err("the address of no host".into()),
        Some(address) if address.port() == 0 => Err("no host listens on port 0".into()),
        Some(address) => Ok(address),
        // A host name would need a lookup, and the switch must start without a network.
        None => Err("not an IP address, or not a port behind it".into()),
    }
}

/// The address of an sFlow collector.
pub(super) fn collector() -> Text<SocketAddr> {
    Text {
        must: "an IP address, perhaps with a UDP port",
        help: "for example: collector = \"192.0.2.1\", collector = \"192.0.2.1:6343\" or collector = \"[2001:db8::1]:6343\""
            .into(),
        parse: |text| collector_at(text, SFLOW_PORT),
        write: SocketAddr::to_string,
        schema: json!({}),
    }
}

/// The address of a collector of IPFIX.
pub(super) fn ipfix_collector() -> Text<SocketAddr> {
    Text {
        must: "an IP address, perhaps with a UDP port",
        help: "for example: collector = \"192.0.2.5\", collector = \"192.0.2.5:4739\" or collector = \"[2001:db8::5]:4739\""
            .into(),
        parse: |text| collector_at(text, IPFIX_PORT),
        write: SocketAddr::to_string,
        schema: json!({}),
    }
}

/// The address that messages to a collector come from.
pub(super) fn source() -> Text<IpAddr> {
    Text {
        help: "for example: source = \"192.0.2.10\"".into(),
        ..agent()
    }
}

/// The address by which an sFlow collector knows the switch.
pub(super) fn agent() -> Text<IpAddr> {
    let parse = |text: &str| match text.parse::<IpAddr>() {
        Ok(address) if address.is_unspecified() => Err("the address of no host".into()),
        Ok(address) => Ok(address),
        Err(_) => Err("not an IP address".into()),
    };
    Text {
        must: "an IP address",
        help: "for example: agent = \"192.0.2.10\"".into(),
        parse,
        write: IpAddr::to_string,
        schema: json!({}),
    }
}

/// How often counters are sent; `None` for "off".
pub(super) fn polling() -> Text<Option<Duration>> {
    let parse = |text: &str| match duration::parse(text) {
        _ if text == "off" => Ok(None),
        Ok(time) if time < SFLOW_POLLING_MIN => Err("too short".into()),
        Ok(time) if time > SFLOW_POLLING_MAX => Err("too long".into()),
        Ok(time) => Ok(Some(time)),
        Err(why) => Err(why.into()),
    };
    let [shortest, longest] = [SFLOW_POLLING_MIN, SFLOW_POLLING_MAX].map(duration::display);
    let help = format!(
        "a number and a unit (ms, s, m, h) in quotes, from \"{shortest}\" to \"{longest}\"; for example: polling = \"20s\" or polling = \"off\""
    );
    Text {
        must: "a duration, or \"off\"",
        help: help.into(),
        parse,
        write: |time| time.map_or("off".to_owned(), duration::display),
        schema: json!({"pattern": "^([0-9]+(us|ms|s|m|h)|off)$"}),
    }
}

/// The address of a guest.
pub(super) fn mac() -> Text<Mac> {
    Text {
        must: STATION,
        help: "six bytes in hexadecimal, the first even, for example: mac = \"52:54:00:12:34:56\""
            .into(),
        parse: |text| station(text).map_err(Refusal::from),
        write: Mac::to_string,
        schema: json!({"pattern": MAC_PATTERN}),
    }
}

/// What [`station`] accepts.
pub(super) const STATION: &str = "a MAC address of one station";

/// Parses a unicast MAC address, or returns what is wrong.
pub(super) fn station(text: &str) -> Result<Mac, &'static str> {
    match parse_mac(text) {
        None => Err("not six bytes in hexadecimal, with colons between them"),
        Some(mac) if mac.is_group() => Err("a group address: the first byte is odd"),
        Some(mac) if mac.to_word() == 0 => Err("the address zero, which no station has"),
        Some(mac) => Ok(mac),
    }
}

/// Parses six bytes of two hexadecimal digits each.
pub fn parse_mac(text: &str) -> Option<Mac> {
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let part = parts.next()?;
        let digits = part.len() == 2 && part.bytes().all(|c| c.is_ascii_hexdigit());
        *byte = u8::from_str_radix(part, 16).ok().filter(|_| digits)?;
    }
    parts.next().is_none().then_some(Mac::new(bytes))
}
