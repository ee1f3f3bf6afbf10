//! The data, and what of it is displayed. It depends on neither a terminal nor a socket.

use std::time::{Duration, SystemTime};

use crosspoint_model::status::{ShownState, Status, StatusReport};

use super::keys::{Action, HELP};
use super::sheet::{Order, Sheet, Subject, View};
use super::{Options, TopError, detail, sheet};
use crate::show::format::{count, lasting_s, percent, rate, time_of_day};
use crate::show::printable;
use crate::show::rates::{Interval, Traffic};

/// The intervals that + and - choose from, milliseconds.
const INTERVALS_MS: [u64; 10] = [
    100, 200, 500, 1000, 2000, 5000, 10_000, 30_000, 60_000, 300_000,
];
/// The longest filter.
const FILTER_MAX: usize = 64;

/// What the caller must do after a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Draw the screen.
    Draw,
    /// Request a snapshot now, and draw the whole screen again.
    Refresh,
    /// Give the terminal back until the shell continues the process.
    Suspend,
    /// End.
    Quit,
}

#[derive(Debug)]
pub(super) struct Model {
    before: Option<StatusReport>,
    now: Option<StatusReport>,
    /// Why the last request failed, and when the first one did since the last answer.
    fault: Option<(String, SystemTime)>,
    pub(super) view: View,
    orders: [Order; View::ALL.len()],
    pub(super) filter: String,
    pub(super) typing: bool,
    pub(super) paused: bool,
    pub(super) help: bool,
    pub(super) interval: Duration,
    /// The subject of the chosen line; without one, the first.
    chosen: Option<Subject>,
    /// Index of that line when it was last seen, in case it disappears.
    chosen_index: usize,
    /// The subject whose details are open, and how far they are scrolled.
    pub(super) open: Option<(Subject, usize)>,
}

impl Model {
    pub(super) fn new(options: &Options) -> Result<Model, TopError> {
        let mut orders = View::ALL.map(View::order);
        let order = &mut orders[options.view as usize];
        if let Some(name) = &options.sort {
            order.column = Some(column(options.view, name)?);
        }
        order.reversed = options.reverse;
        Ok(Model {
            before: None,
            now: None,
            fault: None,
            view: options.view,
            orders,
            filter: printable(&options.filter),
            typing: false,
            paused: false,
            help: false,
            interval: options.interval,
            chosen: None,
            chosen_index: 0,
            open: None,
        })
    }

    /// Takes the daemon's next answer, or its error, which came at `at`.
    pub(super) fn take(&mut self, answer: Result<StatusReport, String>, at: SystemTime) {
        match answer {
            Ok(snapshot) => {
                self.before = self.now.replace(snapshot);
                self.fault = None;
            }
            Err(why) => {
                let since = self.fault.take().map_or(at, |(_, since)| since);
                self.fault = Some((printable(&why), since));
            }
        }
    }

    /// The last two answers; absent before there is one.
    pub(super) fn seen(&self) -> Option<(Interval<'_>, &StatusReport)> {
        let now = self.now.as_ref()?;
        Some((Interval::new(self.before.as_ref(), now), now))
    }

    pub(super) fn fault(&self) -> Option<&str> {
        self.fault.as_ref().map(|(why, _)| why.as_str())
    }

    /// The last request's error, and since when there is no answer, as text.
    pub(super) fn fault_text(&self) -> Option<String> {
        let (why, since) = self.fault.as_ref()?;
        Some(format!(
            "gone since {}, trying again: {why}",
            time_of_day(*since)
        ))
    }

    pub(super) fn order(&self) -> Order {
        self.orders[self.view as usize]
    }

    fn order_mut(&mut self) -> &mut Order {
        &mut self.orders[self.view as usize]
    }

    /// The lines of the current view.
    pub(super) fn sheet(&self) -> Sheet {
        match self.seen() {
            Some((interval, _)) => Sheet::new(self.view, &interval, &self.filter, self.order()),
            None => Sheet {
                columns: self.view.columns(),
                lines: Vec::new(),
                sorted: self.order().column,
                hidden: 0,
            },
        }
    }

    /// Index of the chosen line. If the line has disappeared, the one that took its place is chosen.
    pub(super) fn chosen(&self, sheet: &Sheet) -> Option<usize> {
        let last = sheet.lines.len().checked_sub(1)?;
        let Some(chosen) = &self.chosen else {
            return Some(0);
        };
        let found = sheet.lines.iter().position(|line| line.subject == *chosen);
        Some(found.unwrap_or(self.chosen_index).min(last))
    }

    /// The title and lines of the open details.
    pub(super) fn detail(&self) -> Option<(String, Vec<String>)> {
        let (subject, _) = self.open.as_ref()?;
        let (interval, now) = self.seen()?;
        let lines = detail::detail(subject, &now.status, &interval);
        Some((detail::title(subject), lines))
    }

    /// Carries out a key's action.
    pub(super) fn act(&mut self, action: Action) -> Outcome {
        match action {
            Action::Quit => return Outcome::Quit,
            Action::Suspend => return Outcome::Suspend,
            Action::Refresh => return Outcome::Refresh,
            Action::Back => return self.back(),
            Action::Open => self.open_chosen(),
            Action::See(view) => self.see(view),
            Action::NextView => self.see(neighbour(self.view, 1)),
            Action::PreviousView => self.see(neighbour(self.view, View::ALL.len() - 1)),
            Action::Move(by) => self.move_by(by),
            Action::First => self.move_by(isize::MIN),
            Action::Last => self.move_by(isize::MAX),
            Action::SortBy(by) => self.sort_by(by),
            Action::Reverse => {
                let order = self.order_mut();
                order.reversed = !order.reversed;
            }
            Action::Filter => {
                self.open = None;
                self.typing = true;
            }
            Action::Type(c) if self.filter.chars().count() < FILTER_MAX => {
                self.filter.push_str(&printable(&c.to_string()));
            }
            Action::Type(_) => {}
            Action::Erase => drop(self.filter.pop()),
            Action::EraseAll => self.filter.clear(),
            Action::Accept => self.typing = false,
            Action::Pause => self.paused = !self.paused,
            Action::Slower => self.interval = slower(self.interval),
            Action::Faster => self.interval = faster(self.interval),
            Action::Help => self.help = !self.help,
        }
        Outcome::Draw
    }

    fn back(&mut self) -> Outcome {
        if self.typing {
            self.typing = false;
            self.filter.clear();
        } else if self.help {
            self.help = false;
        } else if self.open.is_some() {
            self.open = None;
        } else if !self.filter.is_empty() {
            self.filter.clear();
        } else {
            return Outcome::Quit;
        }
        Outcome::Draw
    }

    fn see(&mut self, view: View) {
        if self.view != view {
            self.chosen = None;
        }
        self.view = view;
        self.open = None;
        self.help = false;
    }

    fn open_chosen(&mut self) {
        let sheet = self.sheet();
        let line = self.chosen(&sheet).and_then(|i| sheet.lines.get(i));
        if let (None, Some(line)) = (&self.open, line) {
            self.open = Some((line.subject.clone(), 0));
        }
    }

    fn move_by(&mut self, by: isize) {
        if self.open.is_some() {
            let lines = self.detail().map_or(0, |(_, lines)| lines.len());
            if let Some((_, scrolled)) = &mut self.open {
                *scrolled = scrolled
                    .saturating_add_signed(by)
                    .min(lines.saturating_sub(1));
            }
            return;
        }
        let sheet = self.sheet();
        let Some(index) = self.chosen(&sheet) else {
            return;
        };
        let index = index.saturating_add_signed(by).min(sheet.lines.len() - 1);
        self.chosen_index = index;
        self.chosen = sheet.lines.get(index).map(|line| line.subject.clone());
    }

    /// Moves the sorted column; the switch's own order stands before the first column.
    fn sort_by(&mut self, by: isize) {
        let columns = self.view.columns().len();
        let order = self.order_mut();
        // 0 is the switch's own order.
        let place = order.column.map_or(0, |column| column + 1) as isize;
        let place = (place + by).rem_euclid(columns as isize + 1);
        *order = Order {
            column: usize::try_from(place - 1).ok(),
            reversed: false,
        };
    }

    /// The lines above all views: the daemon, and the traffic of all ports.
    pub(super) fn summary(&self) -> [String; 2] {
        let Some((interval, now)) = self.seen() else {
            let waiting = "crosspoint: no answer yet".to_owned();
            return [waiting, String::new()];
        };
        let StatusReport { daemon, status, .. } = now;
        let up = status
            .ports
            .iter()
            .filter(|port| port.state == ShownState::Up);
        let first = format!(
            "crosspoint {}  up {}  {}/{} ports up  fdb {}/{}",
            daemon.version,
            lasting_s(daemon.uptime_ns / 1_000_000_000),
            up.count(),
            status.ports.len(),
            count(status.fdb.entries as u64),
            count(status.fdb.capacity as u64),
        );
        let Traffic {
            rx_pps,
            rx_bps,
            tx_pps,
            tx_bps,
            drops,
        } = interval.all();
        let second = format!(
            "rx {} pps {} bit/s  tx {} pps {} bit/s  drop {}/s{}",
            rate(rx_pps),
            rate(rx_bps),
            rate(tx_pps),
            rate(tx_bps),
            rate(drops),
            busy(&interval, status),
        );
        [first, second].map(|line| printable(&line))
    }

    /// The line below all views.
    pub(super) fn footer(&self) -> String {
        let order = self.order();
        let by = order
            .column
            .and_then(|column| self.view.columns().get(column));
        let by = by.map_or("the switch's order", |column| column.name);
        let reversed = if order.reversed { ", reversed" } else { "" };
        let filter = match (self.typing, self.filter.as_str()) {
            (true, filter) => return format!("only lines with: {filter}_"),
            (false, "") => String::new(),
            (false, filter) => format!("  only \"{filter}\""),
        };
        let paused = if self.paused { "PAUSED  " } else { "" };
        format!(
            "{paused}every {:?}  sort {by}{reversed}{filter}  ? help  q quit",
            self.interval
        )
    }

    /// The help on keys, if it is open.
    pub(super) fn help_lines(&self) -> Option<&'static [&'static str]> {
        self.help.then_some(&HELP)
    }
}

fn busy(interval: &Interval<'_>, status: &Status) -> String {
    let workers = interval.workers();
    let busy = workers.iter().filter_map(|one| one.row.busy_percent);
    let stalled = status
        .workers
        .iter()
        .filter(|worker| worker.stalled)
        .count();
    let known = busy.clone().count();
    let mean = (known > 0).then(|| busy.sum::<f64>() / known as f64);
    let stalled = match stalled {
        0 => String::new(),
        n => format!("  {n} STALLED"),
    };
    format!("  busy {}{stalled}", percent(mean))
}

/// The number of a view's column; the case of its name does not matter.
fn column(view: View, name: &str) -> Result<usize, TopError> {
    let columns = view.columns();
    let found = columns
        .iter()
        .position(|column| column.name.eq_ignore_ascii_case(name));
    found.ok_or_else(|| {
        let known: Vec<&str> = columns
            .iter()
            .map(|column: &sheet::Column| column.name)
            .collect();
        TopError::NoColumn {
            view: view.name(),
            column: name.to_owned(),
            known: known.join(", "),
        }
    })
}

fn neighbour(view: View, by: usize) -> View {
    let all = View::ALL;
    all.get((view as usize + by) % all.len())
        .copied()
        .unwrap_or(view)
}

fn slower(interval: Duration) -> Duration {
    let mut longer = INTERVALS_MS.into_iter().map(Duration::from_millis);
    longer.find(|one| *one > interval).unwrap_or(interval)
}

fn faster(interval: Duration) -> Duration {
    let shorter = INTERVALS_MS.into_iter().map(Duration::from_millis).rev();
    let mut shorter = shorter.filter(|one| *one < interval);
    shorter.next().unwrap_or(interval)
}
