//! Checks a port's `vlan = { ... }`.

use super::Vlan;
use super::key::Reader;
use super::rules::Nested;
use super::table::VlanKeys;

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
