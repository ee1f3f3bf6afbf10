//! Checks a port's `vlan = { ... }`.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde_json::{Value, json};

use super::Vlan;
use super::check::Checker;
use super::field::{Item, Span};
use super::key::{Definitions, Reader, Rule};
use super::limits::{VLAN_ID_MAX, VLAN_ID_MIN};
use super::rules::{Nested, whole};
use super::table::VlanKeys;

/// A list of VLAN IDs, and of ranges of them such as "100-199".
pub(super) struct VlanList;

impl Rule for VlanList {
    type Value = Vec<u16>;

    fn read<'a>(&self, reader: &mut Reader<'a>, key: &str, item: &'a Item<'a>) -> Option<Vec<u16>> {
        let checker = &mut *reader.checker;
        let help = format!("for example: {key} = [100, 200]");
        let (list, span) = checker.value::<&[Item<'_>]>(item, key, "a list of VLAN IDs", &help)?;
        if list.is_empty() {
            checker.problem(span, format!("`{key}` is empty"), "nothing in it", help);
            return None;
        }
        let most = usize::from(VLAN_ID_MAX);
        if list.len() > most {
            let message = format!("`{key}` has {} items, and may have {most}", list.len());
            checker.problem(span, message, "too many", format!("keep at most {most}"));
            return None;
        }
        let mut ids = Vec::new();
        let mut seen: BTreeMap<u16, Span> = BTreeMap::new();
        for item in list {
            let Some(range) = one_item(checker, key, item) else {
                continue;
            };
            // An item that overlaps is reported once.
            let twice = range
                .clone()
                .find_map(|id| Some((id, seen.get(&id)?.clone())));
            if let Some((id, first)) = twice {
                let message = format!("VLAN ID {id} is in `{key}` twice");
                let first = Some(checker.place(first));
                checker.clash(item.span(), first, message, "remove one of them");
                continue;
            }
            seen.extend(range.clone().map(|id| (id, item.span())));
            ids.extend(range);
        }
        Some(ids)
    }

    fn write(&self, value: &Vec<u16>) -> Value {
        written(value).into()
    }

    fn schema(&self, _: &mut Definitions) -> Value {
        json!({
            "type": "array", "minItems": 1, "uniqueItems": true,
            "items": {"anyOf": [
                {"type": "integer", "minimum": VLAN_ID_MIN, "maximum": VLAN_ID_MAX},
                {"type": "string", "pattern": "^[0-9]{1,4}-[0-9]{1,4}$"},
            ]},
        })
    }
}

/// The VLANs of one item of a list: a number, or a range as text.
fn one_item(checker: &mut Checker, key: &str, item: &Item<'_>) -> Option<RangeInclusive<u16>> {
    let Some(text) = item.get_ref().as_str() else {
        let number = whole(VLAN_ID_MIN..=VLAN_ID_MAX, format!("{key} = [100, 200]"));
        let id = number.check(checker, &format!("a VLAN ID in `{key}`"), item)?;
        return Some(id..=id);
    };
    let found = range(text);
    if found.is_none() {
        let message = format!(
            "a text in `{key}` must be a range of VLAN IDs from {VLAN_ID_MIN} to {VLAN_ID_MAX}"
        );
        let help = format!("for example: {key} = [100, \"200-299\"]; a single VLAN ID is a number");
        checker.problem(item.span(), message, "not a range", help);
    }
    found
}

/// The VLAN IDs as a list for a file: three or more in a row as a range, such as "100-199".
fn written(ids: &[u16]) -> Vec<Value> {
    let of_run = |(first, last): (u16, u16)| match last - first {
        0 => vec![Value::from(first)],
        1 => vec![Value::from(first), Value::from(last)],
        _ => vec![Value::from(format!("{first}-{last}"))],
    };
    runs(ids).into_iter().flat_map(of_run).collect()
}

/// The VLAN IDs as text: "100-199,300".
pub fn text(ids: &[u16]) -> String {
    let texts = written(ids).into_iter().map(|item| match item {
        Value::String(range) => range,
        number => number.to_string(),
    });
    texts.collect::<Vec<_>>().join(",")
}

/// The runs of consecutive IDs, in their order: the first and the last of each.
pub(super) fn runs(ids: &[u16]) -> Vec<(u16, u16)> {
    let mut runs: Vec<(u16, u16)> = Vec::new();
    for id in ids {
        match runs.last_mut() {
            Some((_, last)) if last.checked_add(1) == Some(*id) => *last = *id,
            _ => runs.push((*id, *id)),
        }
    }
    runs
}

/// The IDs of a list as [`written`], or of one item of it; on a command line also "100-199,300". `None` for anything else.
pub(super) fn ids(value: &Value) -> Option<Vec<u16>> {
    match value {
        Value::Array(items) => {
            let ids: Option<Vec<Vec<u16>>> = items.iter().map(ids).collect();
            ids.map(|ids| ids.concat())
        }
        Value::Number(number) => Some(vec![u16::try_from(number.as_u64()?).ok()?]),
        Value::String(text) => {
            let part = |part: &str| match part.parse() {
                Ok(id) => Some(id..=id),
                Err(_) => range(part),
            };
            let parts: Option<Vec<RangeInclusive<u16>>> = text.split(',').map(part).collect();
            parts.map(|parts| parts.into_iter().flatten().collect())
        }
        _ => None,
    }
}

/// The range that a text such as "100-199" stands for.
fn range(text: &str) -> Option<RangeInclusive<u16>> {
    let (first, last) = text.split_once('-')?;
    let number = |digits: &str| {
        let is_plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        digits.parse::<u16>().ok().filter(|_| is_plain)
    };
    let (first, last) = (number(first)?, number(last)?);
    (VLAN_ID_MIN <= first && first < last && last <= VLAN_ID_MAX).then_some(first..=last)
}

impl Nested for Vlan {
    type Keys = VlanKeys;
    const MUST: &'static str = "a table with `access` or `trunk`";
    const HELP: &'static str =
        "for example: vlan = { access = 100 }, or vlan = { trunk = [100, 200], native = 1 }";

    fn check(reader: &mut Reader<'_>, keys: VlanKeys) -> Option<Self> {
        let spans = ["access", "trunk", "native"].map(|key| reader.span(key));
        match spans {
            [Some(_), Some(trunk), _] => {
                let message = "`access` and `trunk` exclude each other".to_owned();
                let help = "keep `access` (one VLAN, untagged) or `trunk` (several, tagged)";
                reader
                    .checker
                    .problem(trunk, message, "beside `access`", help);
            }
            [_, None, Some(native)] => {
                let message = "`native` goes with `trunk`".to_owned();
                let help = "for example: vlan = { trunk = [100, 200], native = 1 }";
                reader
                    .checker
                    .problem(native, message, "there is no `trunk`", help);
            }
            _ if reader.is_without(&["access", "trunk", "native"]) => {
                let message = "`vlan` has neither `access` nor `trunk`".to_owned();
                reader.problem(message, "carries no VLAN", Self::HELP);
            }
            _ => {}
        }
        let VlanKeys {
            access,
            trunk,
            native,
        } = keys;
        Some(match (access, trunk) {
            (Some(id), None) => Vlan::Access(id),
            (_, Some(ids)) => Vlan::Trunk { ids, native },
            (None, None) => Vlan::Unaware,
        })
    }

    fn to_keys(&self) -> Option<VlanKeys> {
        let mut keys = VlanKeys::default();
        match self {
            Vlan::Unaware => return None,
            Vlan::Access(id) => keys.access = Some(*id),
            Vlan::Trunk { ids, native } => {
                (keys.trunk, keys.native) = (Some(ids.clone()), *native);
            }
        }
        Some(keys)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn runs_of_vlans_are_written_as_ranges_and_read_again() {
        for (list, as_written, as_text) in [
            (vec![5], json!([5]), "5"),
            (vec![5, 6], json!([5, 6]), "5,6"),
            (vec![9, 5, 6, 7, 1], json!([9, "5-7", 1]), "9,5-7,1"),
            ((1..=4094).collect(), json!(["1-4094"]), "1-4094"),
            (vec![u16::MAX], json!([u16::MAX]), "65535"),
        ] {
            assert_eq!(Value::from(written(&list)), as_written);
            assert_eq!(text(&list), as_text);
            if as_text != "65535" {
                assert_eq!(ids(&as_written), Some(list.clone()));
                assert_eq!(ids(&json!(as_text)), Some(list));
            }
        }
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for text in [
            "", "5", "5-5", "7-5", "-5", "5-", "a-b", "1-4095", "0-5", "1-+5", "1-2-3", "1 - 2",
        ] {
            assert_eq!(range(text), None, "{text}");
        }
        assert_eq!(range("100-199"), Some(100..=199));
    }
}
