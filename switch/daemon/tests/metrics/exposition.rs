//! The exported metrics.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use crosspoint_daemon::metrics::{Exposition, families};
use crosspoint_model::status::{PortStatus, ShownState};

use crate::picture::{Picture, large, nothing, picture};

fn render(picture: Picture) -> String {
    let exposition = Exposition::new(Arc::new(picture)).expect("the metrics agree");
    exposition.render().expect("the metrics are text")
}

/// The switch's metrics, without those of the test process.
fn exposition(picture: Picture) -> String {
    of_the_switch(&render(picture))
}

pub fn of_the_switch(text: &str) -> String {
    let is_ours = |line: &&str| {
        !line
            .trim_start_matches("# HELP ")
            .trim_start_matches("# TYPE ")
            .starts_with("process_")
    };
    let lines = text.lines().filter(is_ours);
    lines.map(|line| format!("{line}\n")).collect()
}

/// The value of a series.
fn value(text: &str, series: &str) -> Option<String> {
    let after = |line: &str| {
        line.strip_prefix(series)?
            .strip_prefix(' ')
            .map(str::to_owned)
    };
    text.lines().find_map(after)
}

/// Fails if `promtool` reports anything.
fn check_with_promtool(text: &str) {
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut promtool = command.spawn().unwrap_or_else(|e| {
        panic!("promtool cannot be run ({e}): install Debian's package prometheus")
    });
    let mut stdin = promtool.stdin.take().expect("stdin is piped");
    stdin.write_all(text.as_bytes()).expect("promtool reads");
    drop(stdin);
    let output = promtool.wait_with_output().expect("promtool ends");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(
        output.status.success() && said.is_empty(),
        "promtool says: {said}"
    );
}

#[test]
fn the_exposition_is_this() {
    let version = format!("version=\"{}\"", env!("CARGO_PKG_VERSION"));
    let text = exposition(picture()).replace(&version, "version=\"VERSION\"");
    let mut settings = insta::Settings::clone_current();
    settings.set_snapshot_path("../snapshots");
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    settings.bind(|| insta::assert_snapshot!("metrics_exposition", text));
}

#[test]
fn promtool_has_no_complaint() {
    check_with_promtool(&render(picture()));
    check_with_promtool(&render(nothing()));
}

#[test]
fn names_with_any_characters_are_escaped() {
    let mut picture = picture();
    picture.status.ports[0].name = "a\"b\\c\nd{e} é".into();
    let text = exposition(picture);
    check_with_promtool(&text);
    // One series is written by the crate, the other one without it.
    assert!(text.contains(r#"crosspoint_queue_kicks_total{port="a\"b\\c\nd{e} é","#));
    assert_eq!(
        value(&text, r#"crosspoint_port_up{port="a\"b\\c\nd{e} é"}"#).as_deref(),
        Some("1")
    );
}

#[test]
fn equal_states_give_equal_texts() {
    let exposition = Exposition::new(Arc::new(picture())).expect("the metrics agree");
    let text = || of_the_switch(&exposition.render().expect("the metrics are text"));
    assert_eq!(text(), text());
}

#[test]
fn every_metric_of_the_list_is_exported_and_no_other() {
    let text = exposition(picture());
    let mut exported: Vec<&str> = text
        .lines()
        .filter_map(|l| l.strip_prefix("# TYPE "))
        .collect();
    let mut listed: Vec<String> = families()
        .iter()
        .map(|family| {
            format!(
                "{} {}",
                family.name,
                format!("{:?}", family.kind).to_lowercase()
            )
        })
        .collect();
    exported.sort_unstable();
    listed.sort_unstable();
    assert_eq!(exported, listed);
    listed.dedup();
    assert_eq!(listed.len(), families().len(), "a name is there twice");
    // Help texts are written without escapes.
    let plain = |text: &str| !text.contains(['\\', '\n', '"']);
    assert!(families().iter().all(|family| plain(family.help)));
}

#[test]
fn the_process_is_exported() {
    let text = render(nothing());
    for name in [
        "start_time_seconds",
        "resident_memory_bytes",
        "open_fds",
        "cpu_seconds_total",
    ] {
        let value = value(&text, &format!("process_{name}"));
        assert!(
            value.is_some_and(|value| value.parse::<f64>().is_ok()),
            "{name}"
        );
    }
}

#[test]
fn histograms_add_up() {
    let text = exposition(picture());
    let sum = |series: &str| value(&text, series).and_then(|value| value.parse::<f64>().ok());
    for (name, labels) in [
        (
            "crosspoint_queue_completion_seconds",
            r#"port="web-1",queue="0""#,
        ),
        (
            "crosspoint_queue_burst_frames",
            r#"port="web-1",queue="0",direction="rx""#,
        ),
        ("crosspoint_worker_poll_gap_seconds", r#"worker="0""#),
    ] {
        let count = sum(&format!("{name}_count{{{labels}}}"));
        assert!(count > Some(0.0), "{name}");
        assert_eq!(
            count,
            sum(&format!(r#"{name}_bucket{{{labels},le="+Inf"}}"#))
        );
    }
}

#[test]
fn an_objective_is_missed_only_if_it_was_measured_to_be() {
    let text = exposition(picture());
    let met = |port, objective| {
        let series = format!(r#"crosspoint_slo_met{{port="{port}",objective="{objective}"}}"#);
        value(&text, &series)
    };
    assert_eq!(met("web-1", "completion_p50").as_deref(), Some("1"));
    assert_eq!(met("web-1", "completion_p99").as_deref(), Some("0"));
    // It has no traffic.
    assert_eq!(met("db-1", "completion_p99").as_deref(), Some("1"));
    assert_eq!(met("uplink", "completion_p99"), None);
    let p99 = |port: &str| {
        value(
            &text,
            &format!("crosspoint_slo_completion_p99_seconds{{port=\"{port}\"}}"),
        )
    };
    assert_eq!(p99("web-1").as_deref(), Some("0.000052"));
    assert_eq!(p99("db-1").as_deref(), Some("NaN"));
}

#[test]
fn a_reason_is_zero_before_it_is_met_if_the_port_can_meet_it() {
    let text = exposition(picture());
    let drops = |port, reason| {
        value(
            &text,
            &format!(r#"crosspoint_drops_total{{port="{port}",queue="0",reason="{reason}"}}"#),
        )
    };
    assert_eq!(drops("web-1", "guest_ring_full").as_deref(), Some("250000"));
    assert_eq!(drops("db-1", "guest_ring_full").as_deref(), Some("0"));
    assert_eq!(drops("db-1", "nic_ring_full"), None);
}

#[test]
fn a_reason_that_is_met_is_exported_whatever_it_is() {
    let mut picture = picture();
    let drops = &mut picture.status.ports[0].queues[0].drops;
    drops.insert("nic_ring_full".into(), 1);
    drops.insert("reason_to_come".into(), 2);
    let text = exposition(picture);
    for (reason, count) in [("nic_ring_full", "1"), ("reason_to_come", "2")] {
        let series =
            format!(r#"crosspoint_drops_total{{port="web-1",queue="0",reason="{reason}"}}"#);
        assert_eq!(value(&text, &series).as_deref(), Some(count));
    }
}

#[test]
fn a_port_is_in_one_state_and_up_only_in_that_state() {
    for (state, up) in [
        (ShownState::Up, "1"),
        (ShownState::Connected, "0"),
        (ShownState::Down, "0"),
        (ShownState::Quarantined, "0"),
        (ShownState::Blocked, "0"),
    ] {
        let mut picture = nothing();
        picture.status.ports.push(PortStatus {
            name: "p".into(),
            state,
            ..PortStatus::default()
        });
        let text = exposition(picture);
        assert_eq!(
            value(&text, r#"crosspoint_port_up{port="p"}"#).as_deref(),
            Some(up)
        );
        let set: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("crosspoint_port_state{") && line.ends_with(" 1"))
            .collect();
        assert_eq!(
            set,
            [format!(
                r#"crosspoint_port_state{{port="p",state="{state}"}} 1"#
            )]
        );
    }
}

#[test]
fn the_documentation_says_how_many_series_there_are() {
    let text = exposition(picture());
    let count = |with: &[&str], without: &[&str]| {
        let series = text.lines().filter(|line| !line.starts_with('#'));
        let series = series.filter(|line| with.iter().all(|label| line.contains(label)));
        series
            .filter(|line| !without.iter().any(|label| line.contains(label)))
            .count()
    };
    let (guest, uplink) = (r#"port="web-1""#, r#"port="uplink""#);
    let (of_guest, of_uplink) = ([guest, r#"queue="0""#], [uplink, r#"queue="3""#]);
    let drops = |queue: [&str; 2]| count(&[queue[0], queue[1], "crosspoint_drops_total{"], &[]);
    let groups = "crosspoint_connections";
    let apart = [
        "queue=",
        "crosspoint_port_feature{",
        "crosspoint_slo_",
        groups,
    ];
    let wanted = format!(
        "**How many series.** {} for each queue of a guest and {} for each of an uplink, of which {} and {} are its drop \
         reasons, exported from the start with value 0; {} for each guest, one more for each feature that its driver has \
         acknowledged (some 20), up to {} for its objectives, and {} if it has security groups; {} for each uplink; {} for each worker.",
        count(&of_guest, &[]),
        count(&of_uplink, &[]),
        drops(of_guest),
        drops(of_uplink),
        count(&[guest], &apart),
        count(&[guest, "crosspoint_slo_"], &[]),
        count(&[guest, groups], &[]),
        count(&[uplink], &apart),
        count(&[r#"worker="0""#], &["queue="]),
    );
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/METRICS.md");
    let page = std::fs::read_to_string(page).expect("it is there");
    assert!(page.contains(&wanted), "METRICS.md is to say: {wanted}");
}

#[test]
fn a_thousand_queues_are_exported() {
    let exposition = Exposition::new(Arc::new(large(500, 0))).expect("the metrics agree");
    let start = Instant::now();
    let text = exposition.render().expect("the metrics are text");
    let series = text.lines().filter(|line| !line.starts_with('#')).count();
    let (took, kib) = (start.elapsed(), text.len() >> 10);
    println!("1000 queues: {series} series, {kib} KiB, in {took:?}");
    assert!((60_000..130_000).contains(&series));
    let last = r#"crosspoint_queue_packets_total{port="guest-499",queue="1",direction="rx"}"#;
    assert!(value(&text, last).is_some());
}
