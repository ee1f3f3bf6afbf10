//! Checks a port's `forward_control = [...]`.

use crosspoint_engine::stages::control::ControlAddresses;
use crosspoint_engine::stages::control::NAMES;
use crosspoint_engine::stages::control::PAUSE;

use serde_json::{Value, json};

use super::check::Checker;
use super::field::Item;
use super::key::{Definitions, Reader, Rule};
use super::limits::CONTROL_ADDRESSES_MAX;
use super::suggest::nearest;
use super::texts::parse_mac;

const HELP: &str = "for example: forward_control = [\"stp\", \"lldp\"], or an address such as \"01:80:c2:00:00:0e\"";

/// The control frames that a port forwards.
pub(super) struct ControlList;

impl Rule for ControlList {
    type Value = ControlAddresses;

    fn read<'a>(
        &self,
        reader: &mut Reader<'a>,
        key: &str,
        item: &'a Item<'a>,
    ) -> Option<ControlAddresses> {
        let must = "a list of names and addresses";
        let checker = &mut *reader.checker;
        let (list, span): (&[Item<'_>], _) = checker.value(item, key, must, HELP)?;
        if list.len() > CONTROL_ADDRESSES_MAX {
            let message = format!("`{key}` may have {CONTROL_ADDRESSES_MAX} items at most");
            checker.problem(span, message, "too many", "keep each of them once");
            return None;
        }
        let add = |addresses: ControlAddresses, item| match address(checker, item, addresses) {
            Some(last) => addresses.with(last),
            None => addresses,
        };
        Some(list.iter().fold(ControlAddresses::NONE, add))
    }

    fn write(&self, value: &ControlAddresses) -> Value {
        json!(control_names(*value))
    }

    fn schema(&self, _: &mut Definitions) -> Value {
        json!({
            "type": "array", "items": {"type": "string"}, "maxItems": CONTROL_ADDRESSES_MAX, "uniqueItems": true,
        })
    }
}

/// The last byte of an item's address.
fn address(checker: &mut Checker, item: &Item<'_>, before: ControlAddresses) -> Option<u8> {
    let names: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
    let subject = "an item of `forward_control`";
    let must = "one of the names, or an address from 01:80:c2:00:00:00 to 0f";
    let (text, span) = checker.typed::<&str>(item, subject, must, HELP)?;
    let named = NAMES.iter().find(|(name, _)| *name == text);
    let address = parse_mac(text).filter(|mac| mac.is_link_local_control());
    let last = named
        .map(|(_, last)| *last)
        .or(address.map(|mac| mac.bytes()[5]));
    if text == "pause" || last == Some(PAUSE) {
        let message = "pause frames cannot be passed on".to_owned();
        let help = "remove it: a pause frame is for the device at the other end of its wire, and would stop one that has \
                    nothing to do with it";
        checker.problem(span, message, "of one wire", help);
        return None;
    }
    match last {
        Some(last) if before.iter().any(|other| other == last) => {
            let message = format!("{text:?} is in `forward_control` twice");
            checker.problem(span, message, "once more", "remove one of them");
            None
        }
        Some(last) => Some(last),
        None => {
            let message =
                format!("{text:?} is neither a link-local control address nor the name of one");
            let help = match nearest(text, &names) {
                Some(name) => format!("did you mean {name:?}?"),
                None => format!("the names are {}; {HELP}", names.join(", ")),
            };
            checker.problem(span, message, "not known", help);
            None
        }
    }
}

/// The names as written in a file, in the order of the addresses.
pub fn control_names(addresses: ControlAddresses) -> Vec<String> {
    let text = |last: u8| match NAMES.iter().find(|(_, named)| *named == last) {
        Some((name, _)) => (*name).to_owned(),
        None => format!("01:80:c2:00:00:{last:02x}"),
    };
    addresses.iter().map(text).collect()
}
