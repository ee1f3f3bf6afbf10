//! Checks what the rules of single keys outside of ports cannot: `version`, the folder of `ports_dir`, and the places of
//! values that are checked later.

use std::path::Path;

use serde_json::{Value, json};
use toml::de::DeTable;

use super::check::{Checker, Place};
use super::cores::CoreSpans;
use super::field::Item;
use super::key::{Definitions, Keys as _, Reader, Rule};
use super::limits::*;
use super::table::{Ipfix, Metrics, Multicast, Sflow, Top};

/// The settings of a main file, with the places that later checks need.
pub(super) struct Settings {
    pub top: Top,
    pub cores: CoreSpans,
    pub ports_dir: Option<Place>,
    pub control_socket: Option<Place>,
}

/// Records a `required` version that is missing, or an unknown version. Returns whether the file has this version.
pub(super) fn version(checker: &mut Checker, document: &DeTable<'_>, required: bool) -> bool {
    let Some(item) = document.get("version") else {
        if !required {
            return true;
        }
        checker.problem(
            0..0,
            "`version` is missing".to_owned(),
            "belongs here",
            format!("add this line at the top: version = {VERSION}"),
        );
        return true;
    };
    let must = VERSION.to_string();
    let help = format!("write: version = {VERSION}");
    match checker.value(item, "version", &must, &help) {
        Some((VERSION, _)) => true,
        Some((other, span)) => {
            // Unknown keys may belong to the other version.
            checker.forget();
            let message = format!("version {other} of the configuration is not known");
            let help = format!(
                "this switch reads version {VERSION}: write `version = {VERSION}`, or update the switch"
            );
            checker.problem(span, message, "not a version this switch reads", help);
            false
        }
        None => true,
    }
}

/// `version` in the list of keys; [`version()`] checks it.
pub(super) struct Version;

impl Rule for Version {
    type Value = i64;

    fn read<'a>(&self, _: &mut Reader<'a>, _: &str, _: &'a Item<'a>) -> Option<i64> {
        Some(VERSION)
    }

    fn write(&self, version: &i64) -> Value {
        json!(version)
    }

    fn schema(&self, _: &mut Definitions) -> Value {
        json!({"type": "integer", "format": "int64", "const": VERSION})
    }
}

/// Everything but the ports. The paths of files and of `ports_dir` are joined to `folder`, the main file's folder.
pub(super) fn settings(checker: &mut Checker, document: &DeTable<'_>, folder: &Path) -> Settings {
    let mut reader = Reader::new(checker, document, 0..0);
    let mut top = Top::read(&mut reader);
    top.ports_dir = top.ports_dir.map(|path| folder.join(path));
    top.metrics.join_paths(folder);
    top.switch.fdb_capacity = whole_buckets(top.switch.fdb_capacity);
    let span = reader.span("watch_ports").unwrap_or_default();
    if top.watch_ports && reader.item("ports_dir").is_none() {
        let message = "`watch_ports` goes with `ports_dir`".to_owned();
        let help = "name the folder too: ports_dir = \"/etc/crosspoint/ports.d\"";
        let label = "there is no `ports_dir`";
        reader.checker.problem(span, message, label, help);
    }
    check_sflow(&mut reader, &top.sflow);
    check_ipfix(&mut reader, &top.ipfix);
    check_multicast(&mut reader, &top.multicast);
    let in_section = |section: &str, key: &str| {
        let section = document.get(section)?.get_ref().as_table()?;
        section.get(key)
    };
    let place = |item: &Item<'_>| reader.checker.place(item.span());
    let cores = in_section("workers", "cores").and_then(|list| list.get_ref().as_array());
    let cores = cores.into_iter().flatten().map(place).collect();
    Settings {
        cores: CoreSpans::new(cores),
        ports_dir: reader.item("ports_dir").map(place),
        control_socket: in_section("control", "socket").map(place),
        top,
    }
}

impl Metrics {
    /// Makes the paths of its files absolute.
    fn join_paths(&mut self, folder: &Path) {
        let tls = self.tls.as_mut().into_iter();
        let of_tls = tls.flat_map(|tls| {
            let client_ca = tls.client_ca.as_mut().into_iter();
            [&mut tls.certificate, &mut tls.key]
                .into_iter()
                .chain(client_ca)
        });
        for path in of_tls.chain(self.token_file.as_mut()) {
            *path = folder.join(&*path);
        }
    }
}

/// Records keys of `[sflow]` that have no effect, because there is no `collector`. Those that have their defaults are in
/// every written configuration.
fn check_sflow(reader: &mut Reader<'_>, sflow: &Sflow) {
    let section = reader.item("sflow");
    let Some((span, table)) = section.and_then(|it| Some((it.span(), it.get_ref().as_table()?)))
    else {
        return;
    };
    if table.get("collector").is_none() && *sflow != Sflow::default() {
        let message = "[sflow] has no `collector`".to_owned();
        let help = "name the host that the samples are for: collector = \"192.0.2.1:6343\"";
        let label = "nothing is sent without one";
        reader.checker.problem(span, message, label, help);
    }
}

/// The same for `[ipfix]`; and a `source` of another IP version than the collector's.
fn check_ipfix(reader: &mut Reader<'_>, ipfix: &Ipfix) {
    let section = reader.item("ipfix");
    let Some((span, table)) = section.and_then(|it| Some((it.span(), it.get_ref().as_table()?)))
    else {
        return;
    };
    if table.get("collector").is_none() && *ipfix != Ipfix::default() {
        let message = "[ipfix] has no `collector`".to_owned();
        let help = "name the host that the records are for: collector = \"192.0.2.5:4739\"";
        let label = "nothing is sent without one";
        reader.checker.problem(span, message, label, help);
    }
    if let (Some(to), Some(from), Some(item)) = (ipfix.collector, ipfix.source, table.get("source"))
        && to.is_ipv4() != from.is_ipv4()
    {
        let version = |is_v4| if is_v4 { 4 } else { 6 };
        let (own, theirs) = (version(from.is_ipv4()), version(to.is_ipv4()));
        let message = format!("`source` is IPv{own}, and `collector` is IPv{theirs}");
        let label = "no message goes from here to the collector";
        let help = format!("set `source` to an IPv{theirs} address of this host, or remove it");
        reader.checker.problem(item.span(), message, label, help);
    }
}

/// Records a querier without snooping, which would ask for nothing.
fn check_multicast(reader: &mut Reader<'_>, multicast: &Multicast) {
    let table = reader.item("multicast");
    let item = table.and_then(|table| table.get_ref().as_table()?.get("querier"));
    if let Some(item) = item.filter(|_| multicast.querier && !multicast.snooping) {
        let message = "`querier` goes with `snooping`".to_owned();
        let help = "add snooping = true";
        let label = "no answer would be used";
        reader.checker.problem(item.span(), message, label, help);
    }
}

/// The FDB finds a bucket by masking a hash, so the number of buckets is a power of two.
fn whole_buckets(entries: u32) -> u32 {
    FDB_BUCKET_ENTRIES * entries.div_ceil(FDB_BUCKET_ENTRIES).next_power_of_two()
}
