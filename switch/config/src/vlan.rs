//! Checks a port's `vlan = { ... }`.

use super::Vlan;
use super::check::Checker;
use super::field::{Field, Span, Table};
use super::limits::{VLAN_ID_MAX, VLAN_ID_MIN};
use super::raw::RawVlan;
use super::values::{Number, NumberList};

const HELP: &str =
    "for example: vlan = { access = 100 }, or vlan = { trunk = [100, 200], native = 1 }";

/// The VLANs that a port carries: all of them without `vlan`.
pub(super) fn vlan(checker: &mut Checker, field: Field<Table<RawVlan>>) -> Vlan {
    let Some((Table(raw), span)) =
        checker.value(field, "vlan", "a table with `access` or `trunk`", HELP)
    else {
        return Vlan::Unaware;
    };
    match (raw.access.span(), raw.trunk.span(), raw.native.span()) {
        (Some(_), Some(trunk), _) => {
            let message = "`access` and `trunk` exclude each other".to_owned();
            checker.problem(
                trunk,
                message,
                "beside `access`",
                "keep `access` (one VLAN, untagged) or `trunk` (several, tagged)",
            );
        }
        (_, None, Some(native)) => {
            let message = "`native` goes with `trunk`".to_owned();
            checker.problem(
                native,
                message,
                "there is no `trunk`",
                "for example: vlan = { trunk = [100, 200], native = 1 }",
            );
        }
        // A misspelt key has been reported already.
        (None, None, None) if !checker.has_problem_in(&span) => {
            checker.problem(
                span,
                "`vlan` has neither `access` nor `trunk`".to_owned(),
                "carries no VLAN",
                HELP,
            );
        }
        _ => {}
    }
    let access = vlan_id(checker, raw.access, "access", "access = 100");
    let native = vlan_id(checker, raw.native, "native", "native = 1");
    let trunk = checker.value(
        raw.trunk,
        "trunk",
        "a list of VLAN IDs",
        "for example: trunk = [100, 200]",
    );
    let trunk = trunk.map(|(list, span)| trunk_ids(checker, list, span));
    match (access, trunk) {
        (Some(id), None) => Vlan::Access(id),
        (_, Some(ids)) => Vlan::Trunk { ids, native },
        (None, None) => Vlan::Unaware,
    }
}

fn vlan_id(checker: &mut Checker, field: Field<i64>, key: &str, example: &str) -> Option<u16> {
    let range = VLAN_ID_MIN.into()..=VLAN_ID_MAX.into();
    checker
        .number(
            field,
            &Number {
                subject: &format!("`{key}`"),
                range,
                example,
            },
        )
        .and_then(|id| u16::try_from(id).ok())
}

fn trunk_ids(checker: &mut Checker, list: Vec<Field<i64>>, span: Span) -> Vec<u16> {
    let ids = checker.numbers(
        list,
        span,
        &NumberList {
            key: "trunk",
            word: "",
            items: "VLAN ID",
            range: VLAN_ID_MIN.into()..=VLAN_ID_MAX.into(),
            items_max: usize::from(VLAN_ID_MAX),
            example: "trunk = [100, 200]",
        },
    );
    ids.into_iter()
        .filter_map(|(id, _)| u16::try_from(id).ok())
        .collect()
}
