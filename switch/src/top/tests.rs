//! Screens that result from keys and snapshots.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use crosspoint_model::status::{
    DaemonStatus, DeviceStatus, FdbMover, FdbStatus, LatencyStatus, PortConnections, PortStatus,
    QueueStatus, ShownState, Status, StatusReport, StreamStatus, VringStatus, WorkerStatus,
    XdpStatus,
};
use proptest::prelude::*;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::buffer::{Buffer, Cell};
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::style::Modifier;

use super::model::{Model, Outcome};
use super::{Options, TopError, View, batch, draw, keys};

fn options(view: View) -> Options {
    Options {
        socket: PathBuf::new(),
        view,
        sort: None,
        reverse: false,
        filter: String::new(),
        interval: Duration::from_secs(1),
        colour: true,
    }
}

fn model(view: View) -> Model {
    Model::new(&options(view)).expect("no column is named")
}

fn queue(number: u16, times: u64) -> QueueStatus {
    QueueStatus {
        queue: number,
        worker: Some(usize::from(number)),
        rx_packets: 1_000_000 * times,
        rx_bytes: 64_000_000 * times,
        tx_packets: 1000 * times,
        tx_bytes: 1_500_000 * times,
        kicks: 7 * times,
        calls: 12 * times,
        bursts: 20_000 * times,
        cycles: 90_000_000 * times,
        held_back: 40 * times,
        drops: BTreeMap::from([
            ("guest_ring_full".to_owned(), 250 * times),
            ("over_share".to_owned(), 20 * times),
            ("storm_broadcast".to_owned(), 30 * times),
            ("storm_multicast".to_owned(), times),
        ]),
        completion: LatencyStatus {
            buckets_ns: vec![
                (1_100, 900 * times),
                (4_700, 95 * times),
                (52_000, 5 * times),
            ],
            sum_ns: 1_700_000.0 * times as f64,
        },
        ..QueueStatus::default()
    }
}

fn port(name: &str, kind: &str, state: ShownState, queues: Vec<QueueStatus>) -> PortStatus {
    PortStatus {
        name: name.to_owned(),
        kind: kind.to_owned(),
        state,
        vlan: "unaware".to_owned(),
        addresses: 1,
        queues,
        ..PortStatus::default()
    }
}

/// A second with two guests, one of them disconnected, and an uplink; `second` counts from 1.
fn snapshot(second: u64) -> StatusReport {
    let quiet = QueueStatus::default();
    let uplink = QueueStatus {
        worker: Some(1),
        rx_packets: 5 * second,
        rx_bytes: 320 * second,
        xdp: Some(XdpStatus::default()),
        ..quiet.clone()
    };
    let mut web = port(
        "web-1",
        "vhost",
        ShownState::Up,
        vec![queue(0, second), queue(1, 2 * second)],
    );
    web.device = Some(DeviceStatus {
        role: "server".to_owned(),
        socket: "/run/crosspoint/web-1.sock".to_owned(),
        ring_type: "split".to_owned(),
        connections: 1,
        features: vec!["CSUM".to_owned(), "MRG_RXBUF".to_owned()],
        ..DeviceStatus::default()
    });
    web.connections = Some(PortConnections {
        connections: 50 + second as u32,
        half_open: 3,
        max: 100,
        created: 20 * second,
        refused: second,
        rate: 1000,
        rate_refused: second,
    });
    (web.weight, web.addresses_moved, web.addresses_damped) = (2, 3 * second, 7 * second);
    let mut away = port("db-1", "vhost", ShownState::Down, vec![quiet]);
    away.detail = "no front end is connected".to_owned();
    let stream = |port: &str, queue| StreamStatus {
        port: port.to_owned(),
        queue,
        ..StreamStatus::default()
    };
    let worker = |worker: usize, streams| WorkerStatus {
        worker,
        core: worker + 2,
        busy_cycles: 750_000_000 * second,
        idle_cycles: 250_000_000 * second,
        bursts: 20_000 * second,
        streams,
        ..WorkerStatus::default()
    };
    StatusReport {
        daemon: DaemonStatus {
            version: "1.2.3".to_owned(),
            pid: 4711,
            uptime_ns: 3_700_000_000_000 + second * 1_000_000_000,
            ..DaemonStatus::default()
        },
        status: Status {
            ports: vec![
                web,
                away,
                port("uplink", "xdp", ShownState::Up, vec![uplink]),
            ],
            workers: vec![
                worker(0, vec![stream("web-1", 0)]),
                worker(1, vec![stream("uplink", 0), stream("web-1", 1)]),
            ],
            fdb: FdbStatus {
                entries: 3,
                capacity: 28_672,
                ageing_s: 300,
            },
            ..Status::default()
        },
        movers: vec![FdbMover {
            mac: "52:54:00:12:34:56".to_owned(),
            vlan: 100,
            bridge: None,
            home: "web-1".to_owned(),
            other: "uplink".to_owned(),
            port: "web-1".to_owned(),
            moves: 5,
            since_s: 12,
            damped: true,
        }],
    }
}

/// A model that has seen two seconds.
fn running(view: View) -> Model {
    let mut model = model(view);
    model.take(Ok(snapshot(1)), SystemTime::UNIX_EPOCH);
    model.take(Ok(snapshot(2)), SystemTime::UNIX_EPOCH);
    model
}

fn screen(model: &Model, width: u16, height: u16) -> Terminal<TestBackend> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).expect("a backend");
    terminal
        .draw(|frame| draw::draw(frame, model, true))
        .expect("it is drawn");
    terminal
}

/// The screen's lines.
fn lines(model: &Model, width: u16, height: u16) -> Vec<String> {
    let terminal = screen(model, width, height);
    let cells = terminal.backend().buffer().content();
    let rows = cells.chunks(usize::from(width).max(1));
    let text = |row: &[ratatui::buffer::Cell]| row.iter().map(|cell| cell.symbol()).collect();
    rows.map(text)
        .map(|line: String| line.trim_end().to_owned())
        .collect()
}

fn picture(model: &Model) -> String {
    lines(model, 80, 24).join("\n").trim_end().to_owned()
}

fn drawn(model: &Model) -> Buffer {
    screen(model, 80, 24).backend().buffer().clone()
}

fn is_reversed(cell: &Cell) -> bool {
    cell.modifier.contains(Modifier::REVERSED)
}

fn press(model: &mut Model, code: KeyCode) -> Option<Outcome> {
    let key = KeyEvent::new(code, KeyModifiers::NONE);
    keys::action(key, model.typing).map(|action| model.act(action))
}

fn type_text(model: &mut Model, text: &str) {
    for c in text.chars() {
        press(model, KeyCode::Char(c));
    }
}

#[test]
fn every_view_looks_like_this() {
    let pictures = View::ALL.map(|view| picture(&running(view)));
    insta::assert_snapshot!("views", pictures.join("\n\n"));
}

#[test]
fn one_line_in_full_looks_like_this() {
    let views = [View::Ports, View::Queues, View::Workers, View::Moves];
    let pictures = views.map(|view| {
        let mut model = running(view);
        press(&mut model, KeyCode::Enter);
        picture(&model)
    });
    insta::assert_snapshot!("details", pictures.join("\n\n"));
}

#[test]
fn help_looks_like_this() {
    let mut model = running(View::Ports);
    press(&mut model, KeyCode::Char('?'));
    insta::assert_snapshot!("help", picture(&model));
}

#[test]
fn batches_look_like_this() {
    let texts = View::ALL.map(|view| batch::text(&running(view)));
    insta::assert_snapshot!("batch", texts.join("\n"));
}

/// The first cells of the lines, without the heading.
fn first_cells(model: &Model) -> Vec<String> {
    let sheet = model.sheet();
    let cells = sheet.lines.iter().map(|line| line.cells[0].text.clone());
    cells.collect()
}

#[test]
fn lines_are_sorted_by_the_chosen_column_and_reversed() {
    let mut model = running(View::Ports);
    assert_eq!(first_cells(&model), ["web-1", "db-1", "uplink"]);
    press(&mut model, KeyCode::Right);
    assert_eq!(first_cells(&model), ["db-1", "uplink", "web-1"]);
    press(&mut model, KeyCode::Char('r'));
    assert_eq!(first_cells(&model), ["web-1", "uplink", "db-1"]);
    for _ in 0..3 {
        press(&mut model, KeyCode::Right);
    }
    assert!(lines(&model, 80, 24)[3].contains("RX-PPS\u{25be}"));
    assert_eq!(first_cells(&model), ["web-1", "uplink", "db-1"]);
    press(&mut model, KeyCode::Char('r'));
    assert_eq!(first_cells(&model), ["db-1", "uplink", "web-1"]);
    assert!(model.footer().contains("sort RX-PPS, reversed"));
    for _ in 0..4 {
        press(&mut model, KeyCode::Left);
    }
    assert_eq!(first_cells(&model), ["web-1", "db-1", "uplink"]);
}

#[test]
fn a_column_is_named_by_its_heading_in_any_case_or_not_at_all() {
    let named = |sort: &str| Options {
        sort: Some(sort.to_owned()),
        ..options(View::Latency)
    };
    let model = Model::new(&named("p99.9")).expect("there is such a column");
    assert_eq!(model.order().column, Some(7));
    let error = Model::new(&named("speed")).expect_err("there is none");
    assert!(matches!(&error, TopError::NoColumn { known, .. } if known.contains("P99.9")));
}

#[test]
fn a_filter_keeps_only_lines_with_its_text_and_goes_with_escape() {
    let mut model = running(View::Queues);
    press(&mut model, KeyCode::Char('/'));
    // Not a command while a filter is typed.
    type_text(&mut model, "WEBq");
    assert!(model.footer().contains("WEBq"));
    press(&mut model, KeyCode::Backspace);
    assert_eq!(press(&mut model, KeyCode::Enter), Some(Outcome::Draw));
    assert_eq!(first_cells(&model), ["web-1:0", "web-1:1"]);
    assert_eq!(press(&mut model, KeyCode::Esc), Some(Outcome::Draw));
    assert_eq!(first_cells(&model).len(), 4);
    assert_eq!(press(&mut model, KeyCode::Esc), Some(Outcome::Quit));
}

#[test]
fn the_chosen_line_stays_chosen_wherever_it_is_sorted_to() {
    let mut model = running(View::Ports);
    press(&mut model, KeyCode::Down);
    press(&mut model, KeyCode::Right);
    let sheet = model.sheet();
    assert_eq!(model.chosen(&sheet), Some(0));
    press(&mut model, KeyCode::Enter);
    assert!(picture(&model).contains("no front end is connected"));
    // The port is removed while its details are open.
    let mut without = snapshot(3);
    without.status.ports.remove(1);
    model.take(Ok(without), SystemTime::UNIX_EPOCH);
    assert!(picture(&model).contains("does not exist any more"));
    press(&mut model, KeyCode::Esc);
    assert_eq!(model.chosen(&model.sheet()), Some(1));
}

#[test]
fn rates_are_of_the_last_interval_and_unknown_where_there_is_none() {
    let mut model = model(View::Ports);
    assert!(picture(&model).contains("no answer yet"));
    model.take(Ok(snapshot(1)), SystemTime::UNIX_EPOCH);
    assert!(!picture(&model).contains("3.00M"));
    model.take(Ok(snapshot(2)), SystemTime::UNIX_EPOCH);
    assert!(picture(&model).contains("3.00M"));
    // Restarted: all counts have decreased.
    let mut restarted = snapshot(1);
    restarted.daemon.pid += 1;
    model.take(Ok(restarted.clone()), SystemTime::UNIX_EPOCH);
    assert!(!picture(&model).contains("3.00M"));
    restarted.status = snapshot(2).status;
    restarted.daemon.uptime_ns += 1_000_000_000;
    model.take(Ok(restarted), SystemTime::UNIX_EPOCH);
    assert!(picture(&model).contains("3.00M"));
}

#[test]
fn a_daemon_that_is_gone_is_told_until_it_is_back() {
    let mut model = running(View::Ports);
    model.take(
        Err("no process answers on the control socket /run/x".to_owned()),
        SystemTime::UNIX_EPOCH,
    );
    let text = picture(&model);
    assert!(
        text.contains("no process answers") && text.contains("trying again"),
        "{text}"
    );
    assert!(
        text.contains("web-1"),
        "what was known is still seen: {text}"
    );
    let later = SystemTime::UNIX_EPOCH + Duration::from_secs(86_400 + 3661);
    model.take(Err("refused".to_owned()), later);
    let text = picture(&model);
    assert!(
        text.contains("gone since 00:00:00 UTC, trying again: refused"),
        "since the first error: {text}"
    );
    let buffer = drawn(&model);
    let cells = buffer.content().iter();
    let of_rows = cells.skip(4 * usize::from(buffer.area.width));
    let seen = of_rows.filter(|cell| cell.symbol() != " " && !is_reversed(cell));
    assert!(seen.clone().count() > 20);
    let is_dim = |cell: &Cell| cell.modifier.contains(Modifier::DIM);
    assert!(seen.clone().all(is_dim), "old rows are dimmed");
    model.take(Ok(snapshot(3)), SystemTime::UNIX_EPOCH);
    assert!(!picture(&model).contains("no process answers"));
}

#[test]
fn the_interval_is_made_longer_and_shorter_within_its_limits() {
    let mut model = running(View::Ports);
    press(&mut model, KeyCode::Char('+'));
    assert_eq!(model.interval, Duration::from_secs(2));
    for _ in 0..20 {
        press(&mut model, KeyCode::Char('-'));
    }
    assert_eq!(model.interval, Duration::from_millis(100));
    for _ in 0..20 {
        press(&mut model, KeyCode::Char('+'));
    }
    assert_eq!(model.interval, Duration::from_secs(300));
}

#[test]
fn the_chosen_line_is_seen_however_low_the_screen_is() {
    let mut model = running(View::Queues);
    press(&mut model, KeyCode::End);
    for height in 6..12 {
        let text = lines(&model, 80, height).join("\n");
        assert!(text.contains("uplink:0"), "{height}: {text}");
    }
}

#[test]
fn names_are_cut_before_columns_are_left_out() {
    let mut long = snapshot(1);
    long.status.ports[0].name = "a-name-of-a-port-that-is-longer-than-most".to_owned();
    let mut model = model(View::Ports);
    model.take(Ok(long), SystemTime::UNIX_EPOCH);
    assert!(lines(&model, 80, 24)[3].contains("ADDRS"));
    assert!(picture(&model).contains('\u{2026}'));
    for line in lines(&model, 40, 24) {
        assert!(line.chars().count() <= 40);
    }
}

fn any_queue() -> impl Strategy<Value = QueueStatus> {
    let buckets = prop::collection::vec(any::<(u64, u64)>(), 0..4);
    let drops = prop::collection::btree_map(".{0,8}", any::<u64>(), 0..3);
    let counts = any::<[u64; 8]>();
    (
        any::<(u16, Option<usize>)>(),
        counts,
        drops,
        buckets,
        any::<(f64, bool)>(),
    )
        .prop_map(
            |((queue, worker), counts, drops, buckets_ns, (sum_ns, xdp))| QueueStatus {
                queue,
                worker,
                rx_packets: counts[0],
                rx_bytes: counts[1],
                tx_packets: counts[2],
                tx_bytes: counts[3],
                kicks: counts[4],
                calls: counts[5],
                bursts: counts[6],
                cycles: counts[7],
                drops,
                completion: LatencyStatus { buckets_ns, sum_ns },
                xdp: xdp.then(XdpStatus::default),
                ..QueueStatus::default()
            },
        )
}

fn any_port() -> impl Strategy<Value = PortStatus> {
    let words = any::<[String; 3]>();
    let states = prop::sample::select(ShownState::ALL.to_vec());
    let queues = prop::collection::vec(any_queue(), 0..3);
    (words, states, queues, any::<(u32, u64, bool)>()).prop_map(
        |([name, detail, feature], state, queues, (addresses, state_for_s, guest))| PortStatus {
            name,
            kind: if guest { "vhost" } else { "xdp" }.to_owned(),
            state,
            detail,
            addresses,
            state_for_s,
            queues,
            device: guest.then(|| DeviceStatus {
                features: vec![feature],
                vrings: vec![VringStatus::default()],
                ..DeviceStatus::default()
            }),
            ..PortStatus::default()
        },
    )
}

fn any_worker() -> impl Strategy<Value = WorkerStatus> {
    let streams = prop::collection::vec(any::<(String, u16, f64)>(), 0..3);
    (any::<(usize, usize, bool)>(), any::<[u64; 6]>(), streams).prop_map(
        |((worker, core, stalled), counts, streams)| WorkerStatus {
            worker,
            core,
            stalled,
            busy_cycles: counts[0],
            idle_cycles: counts[1],
            sleep_cycles: counts[2],
            sleeps: counts[3],
            bursts: counts[4],
            involuntary_switches: counts[5],
            streams: streams
                .into_iter()
                .map(|(port, queue, share)| StreamStatus {
                    port,
                    queue,
                    share,
                    ..StreamStatus::default()
                })
                .collect(),
            ..WorkerStatus::default()
        },
    )
}

fn any_snapshot() -> impl Strategy<Value = StatusReport> {
    let ports = prop::collection::vec(any_port(), 0..4);
    let workers = prop::collection::vec(any_worker(), 0..3);
    (ports, workers, any::<(u64, String)>(), 0u32..2).prop_map(
        |(ports, workers, (uptime_ns, version), pid)| StatusReport {
            daemon: DaemonStatus {
                version,
                pid,
                uptime_ns,
                ..DaemonStatus::default()
            },
            status: Status {
                ports,
                workers,
                ..Status::default()
            },
            ..StatusReport::default()
        },
    )
}

fn any_key() -> impl Strategy<Value = KeyCode> {
    prop_oneof![
        prop::sample::select("1234567rp/?+-jkgG<> xq".chars().collect::<Vec<_>>())
            .prop_map(KeyCode::Char),
        any::<char>().prop_map(KeyCode::Char),
        prop::sample::select(vec![
            KeyCode::Enter,
            KeyCode::Esc,
            KeyCode::Tab,
            KeyCode::BackTab,
            KeyCode::Up,
            KeyCode::Down,
            KeyCode::PageDown,
            KeyCode::End,
            KeyCode::Left,
            KeyCode::Right,
            KeyCode::Backspace,
        ]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The drawing itself fits the screen too: ratatui's buffer is exactly as large as the screen.
    #[test]
    fn nothing_that_a_daemon_says_and_no_key_and_no_size_makes_it_panic(
        snapshots in prop::collection::vec(any_snapshot(), 0..4),
        keys in prop::collection::vec(any_key(), 0..12),
        view in prop::sample::select(View::ALL.to_vec()),
        sizes in prop::collection::vec((0u16..200, 0u16..60), 1..4),
    ) {
        let mut model = model(view);
        for snapshot in snapshots {
            model.take(Ok(snapshot), SystemTime::UNIX_EPOCH);
            for key in &keys {
                press(&mut model, *key);
            }
            for (width, height) in &sizes {
                for line in lines(&model, *width, *height) {
                    prop_assert!(line.chars().all(|c| !c.is_control()), "{:?}", line);
                }
            }
            let text = batch::text(&model);
            prop_assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{:?}", text);
        }
    }

    #[test]
    fn every_size_is_drawn(width in 0u16..200, height in 0u16..60, open: bool) {
        for view in View::ALL {
            let mut model = running(view);
            if open {
                press(&mut model, KeyCode::Enter);
            }
            screen(&model, width, height);
        }
    }
}
