//! Findings of `crosspoint doctor` on simulated hosts, and on the host that runs the tests.

#[path = "doctor/fixture.rs"]
mod fixture;

use std::collections::BTreeSet;
use std::path::Path;

use crosspoint::doctor::{CHECKS, Finding, Host, Report, Severity, examine, markdown};
use crosspoint_config::{Config, Cpus};
use fixture::{Patient, wounds};
use proptest::prelude::*;

fn ids() -> BTreeSet<&'static str> {
    CHECKS
        .iter()
        .copied()
        .flatten()
        .map(|check| check.id)
        .collect()
}

fn worse_than_ok(findings: &[Finding]) -> Vec<&Finding> {
    let bad = findings.iter().filter(|one| one.severity > Severity::Ok);
    bad.collect()
}

/// The lines of a report without findings that are ok, and without the last line.
fn without_what_is_well<'a>(lines: impl Iterator<Item = &'a str>) -> impl Iterator<Item = &'a str> {
    let mut is_well = false;
    lines.filter(move |line| {
        if !line.starts_with(' ') {
            is_well = line.starts_with("ok ") || line.starts_with(|c: char| c.is_ascii_digit());
        }
        !is_well
    })
}

#[test]
fn a_host_that_is_fit_is_found_fit() {
    let report = Patient::fit().examine();
    assert_eq!(report.worst(), Severity::Ok, "{}", report.text(false));
    insta::assert_snapshot!("fit", report.text(false));
}

/// Each fault is found only by its check, and each check has a fault that it finds.
#[test]
fn each_check_finds_what_it_looks_for_and_no_other_does() {
    let mut met = BTreeSet::new();
    let mut told_all = Vec::new();
    for wound in wounds() {
        let mut patient = Patient::fit();
        (wound.inflict)(&mut patient);
        let report = patient.examine();
        let found = worse_than_ok(&report.findings);
        let found_ids: Vec<&str> = found.iter().map(|one| one.id).collect();
        assert_eq!(found_ids, wound.ids, "{}", report.text(false));
        let severities = found.iter().map(|one| one.severity);
        assert_eq!(
            severities.max(),
            Some(wound.worst),
            "{}",
            report.text(false)
        );
        for finding in found {
            assert!(!finding.cost.is_empty(), "{}: what it costs", finding.id);
            assert!(!finding.fix.is_empty(), "{}: what fixes it", finding.id);
        }
        must_be_legible(&report);
        met.extend(wound.ids);
        let text = report.text(false);
        let told = text.lines().filter(|line| !line.is_empty());
        told_all.extend(without_what_is_well(told).map(str::to_owned));
        told_all.push(String::new());
    }
    let known = ids();
    assert!(met.is_subset(&known), "{met:?} are documented: {known:?}");
    assert_eq!(met, known, "each check has a wound here");
    insta::assert_snapshot!("wounds", told_all.join("\n"));
}

/// Eighty columns, except for commands, which are never broken; and colour only on request.
fn must_be_legible(report: &Report) {
    let text = report.text(false);
    let fixes: Vec<&String> = report.findings.iter().flat_map(|one| &one.fix).collect();
    for line in text.lines() {
        let is_command = fixes.iter().any(|fix| line.ends_with(fix.as_str()));
        assert!(is_command || line.chars().count() <= 80, "{line}");
        assert!(!line.contains('\x1b'), "{line:?}");
    }
    assert!(report.text(true).contains("\x1b["));
}

#[test]
fn the_keys_of_the_json_are_these() {
    let patient = Patient::fit();
    patient.write(
        "/sys/devices/system/cpu/cpu3/cpufreq/scaling_governor",
        "powersave",
    );
    let json = patient.examine().json();
    assert_eq!(json["worst"], "warning");
    let findings = json["findings"].as_array().expect("a list");
    let governor = findings.iter().find(|one| one["id"] == "governor");
    let well = findings.iter().find(|one| one["id"] == "clock");
    let text = [governor, well]
        .map(|one| serde_json::to_string_pretty(one.expect("it is there")).expect("JSON"));
    insta::assert_snapshot!("json", text.join("\n"));
}

#[test]
fn each_severity_has_an_exit_status_that_no_failure_has() {
    let all = [
        Severity::Ok,
        Severity::Note,
        Severity::Warning,
        Severity::Error,
    ];
    let statuses = all.map(Severity::exit_status);
    assert_eq!(statuses, [0, 3, 4, 5], "as the documentation says");
}

#[test]
fn a_program_of_another_crosspoint_is_no_obstacle_and_one_that_no_process_holds_is() {
    let mut patient = Patient::fit();
    patient.attach_program("crosspoint");
    assert_eq!(patient.examine().worst(), Severity::Ok);

    patient.nic().program = Some(78);
    let report = patient.examine();
    let found = worse_than_ok(&report.findings);
    assert_eq!(found.len(), 1, "{}", report.text(false));
    assert!(
        found[0]
            .fix
            .iter()
            .any(|line| line == "ip link set dev up0 xdp off")
    );
}

#[test]
fn an_interface_that_is_no_port_is_never_worse_than_a_note() {
    let mut patient = Patient::fit();
    let mut other = patient.nic().clone();
    other.name = "other".to_owned();
    other.program = Some(5);
    let interface = other.interface.as_mut().expect("it is there");
    interface.up = false;
    patient.nics.push(other);
    let report = patient.examine();
    assert_eq!(report.worst(), Severity::Note, "{}", report.text(false));
}

#[test]
fn a_host_that_says_nothing_is_examined_with_and_without_a_configuration() {
    let nothing = tempfile::tempdir().expect("a folder");
    let host = Host::at(nothing.path(), &[]);
    let text = Patient::fit().config;
    let config = Config::parse("test", &text).expect("a configuration");
    for config in [None, Some(&config)] {
        let report = examine(&host, config);
        assert_eq!(report.worst(), Severity::Error);
        let known = ids();
        assert!(report.findings.iter().all(|one| known.contains(one.id)));
    }
}

#[test]
fn the_documentation_has_every_check() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/DOCTOR.md");
    let text = std::fs::read_to_string(&path).expect("a file of this repository");
    let (before, rest) = text.split_once("<!-- checks -->\n").expect("a mark");
    let (_, after) = rest.split_once("<!-- end -->").expect("a mark");
    let current = format!("{before}<!-- checks -->\n{}<!-- end -->{after}", markdown());
    if std::env::var_os("UPDATE_DOCTOR").is_some() {
        std::fs::write(&path, &current).expect("docs/ can be written");
    }
    assert!(
        text == current || std::env::var_os("UPDATE_DOCTOR").is_some(),
        "switch/docs/DOCTOR.md is stale; write it with: UPDATE_DOCTOR=1 cargo nextest run -p crosspoint documentation"
    );
}

proptest! {
    #[test]
    fn sets_of_cores_are_read_as_they_are_written(cores in prop::collection::btree_set(0usize..300, 0..40)) {
        let set: Cpus = cores.iter().copied().collect();
        prop_assert_eq!(&Cpus::from_list(&set.to_string()), &set);
        prop_assert_eq!(&Cpus::from_mask(&set.mask()), &set);
        prop_assert_eq!(set.iter().collect::<Vec<_>>(), cores.into_iter().collect::<Vec<_>>());
    }
}

/// Unexpected content of a kernel file must not make the doctor fail.
#[test]
fn whatever_a_file_says_is_read() {
    let patient = Patient::fit();
    for (path, fit) in fixture::FILES {
        for text in [
            "",
            "-1",
            "18446744073709551616",
            "9-1,,x-",
            "\u{fffd}:\t\n:",
            "[never] 0",
        ] {
            patient.write(path, text);
            let _ = patient.examine().text(false);
        }
        patient.write(path, fit);
    }
}

/// The real host and a real interface: nothing fails, whatever their state, and what is certain is reported.
#[test]
fn this_host_is_examined_as_it_is() {
    // SAFETY: only the network namespace of this thread changes, and no memory or descriptor.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
        .expect("a network namespace: run the tests as root");
    let line = "link add up0 type veth peer name far";
    let ip = std::process::Command::new("ip")
        .args(line.split(' '))
        .status();
    assert!(ip.expect("ip starts").success());
    let names = Host::interfaces();
    assert_eq!(names, ["far", "up0"]);
    let host = Host::here(&[0], &names).expect("the kernel tells");
    let report = examine(&host, None);
    let of = |id: &str, subject: &str| {
        let mut all = report.findings.iter();
        let found = all.find(|one| one.id == id && one.subject == subject);
        found.unwrap_or_else(|| panic!("{id} of {subject}\n{}", report.text(false)))
    };
    for id in ["af-xdp", "bpf", "memfd"] {
        assert_eq!(
            of(id, "host").severity,
            Severity::Ok,
            "the other tests need {id}"
        );
    }
    assert_eq!(of("interface", "up0").found, "a veth, down");
    assert_eq!(of("native-xdp", "up0").severity, Severity::Ok);
    assert_eq!(of("zero-copy", "up0").severity, Severity::Note);
    assert_eq!(of("xdp-program", "up0").severity, Severity::Ok);
}
