//! Draws the model on a screen of any size.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::model::Model;
use super::sheet::{Mood, Order, Sheet, View};

/// The gap between two columns.
const GAP: usize = 2;
/// The least width to which a first column, or a last one with words, is cut.
const WORDS_MIN: usize = 8;

/// Draws everything. What does not fit is left out on the right and at the bottom.
pub(super) fn draw(frame: &mut Frame<'_>, model: &Model, colour: bool) {
    let area = frame.area();
    let theme = Theme { colour };
    let (width, height) = (usize::from(area.width), usize::from(area.height));
    let mut lines = heading(model, &theme);
    // The last line belongs to the footer, however low the screen is.
    let room = height.saturating_sub(lines.len() + 1);
    lines.extend(body(model, &theme, width, room));
    lines.truncate(height.saturating_sub(1));
    let above = Rect {
        height: area.height.saturating_sub(1),
        ..area
    };
    frame.render_widget(Paragraph::new(lines), above);
    if area.height > 0 {
        let below = Rect {
            y: area.bottom() - 1,
            height: 1,
            ..area
        };
        frame.render_widget(Paragraph::new(footer(model, &theme, width)), below);
    }
}

/// Colours; without them, bold, dim and reverse are used.
struct Theme {
    colour: bool,
}

impl Theme {
    fn coloured(&self, style: Style, colour: Color) -> Style {
        if self.colour { style.fg(colour) } else { style }
    }

    fn of(&self, mood: Mood) -> Style {
        match mood {
            Mood::Normal => Style::new(),
            Mood::Dim => Style::new().add_modifier(Modifier::DIM),
            Mood::Bad => self.coloured(Style::new().add_modifier(Modifier::BOLD), Color::Yellow),
        }
    }

    fn bad(&self) -> Style {
        self.coloured(Style::new().add_modifier(Modifier::BOLD), Color::Red)
    }
}

const BOLD: Style = Style::new().add_modifier(Modifier::BOLD);
const REVERSED: Style = Style::new().add_modifier(Modifier::REVERSED);

fn heading(model: &Model, theme: &Theme) -> Vec<Line<'static>> {
    let [first, second] = model.summary();
    let tabs = View::ALL.into_iter().enumerate().map(|(i, view)| {
        let name = format!(" {} {} ", i + 1, view.name());
        let style = if view == model.view {
            REVERSED
        } else {
            Style::new()
        };
        Span::styled(name, style)
    });
    let tabs: Vec<Span<'static>> = tabs.collect();
    let style = match model.fault() {
        // The values are old.
        Some(_) => theme.of(Mood::Dim),
        None => Style::new(),
    };
    vec![
        Line::styled(first, BOLD),
        Line::styled(second, style),
        Line::from(tabs),
    ]
}

fn body(model: &Model, theme: &Theme, width: usize, room: usize) -> Vec<Line<'static>> {
    if let Some(help) = model.help_lines() {
        return help.iter().map(|line| Line::raw(*line)).collect();
    }
    if let Some((title, lines)) = model.detail() {
        let room = room.saturating_sub(1).max(1);
        let scrolled = model.open.as_ref().map_or(0, |(_, scrolled)| *scrolled);
        // Scrolling stops at the last line.
        let scrolled = scrolled.min(lines.len().saturating_sub(room));
        let below = lines.len().saturating_sub(scrolled + room);
        let more = if below > 0 {
            format!("  ({below} lines below)")
        } else {
            String::new()
        };
        let style = match model.fault() {
            Some(_) => theme.of(Mood::Dim),
            None => Style::new(),
        };
        let lines = lines.into_iter().skip(scrolled);
        let lines = lines.map(|line| Line::styled(line, style));
        let title = Line::styled(format!("{title}{more}"), BOLD);
        return std::iter::once(title).chain(lines).collect();
    }
    table(model, theme, width, room)
}

fn table(model: &Model, theme: &Theme, width: usize, room: usize) -> Vec<Line<'static>> {
    let sheet = model.sheet();
    let widths = fit(&sheet, width);
    let heading = sheet_heading(&sheet, model.order(), &widths);
    let mut lines = vec![Line::styled(
        heading,
        BOLD.add_modifier(Modifier::UNDERLINED),
    )];
    let room = room.saturating_sub(1).max(1);
    let chosen = model.chosen(&sheet);
    let is_old = model.fault().is_some();
    // The chosen line stays visible.
    let first = chosen.map_or(0, |chosen| (chosen + 1).saturating_sub(room));
    for (index, line) in sheet.lines.iter().enumerate().skip(first).take(room) {
        let cells = line.cells.iter().map(|cell| cell.text.as_str());
        let text = row(&sheet, cells, &widths);
        // What was known is still shown, and marked as old.
        let style = theme.of(if is_old { Mood::Dim } else { line.mood });
        lines.push(match chosen == Some(index) {
            true => Line::styled(format!("{text:<width$}"), style.patch(REVERSED)),
            false => Line::styled(text, style),
        });
    }
    if sheet.lines.is_empty() {
        let nothing = match (model.seen().is_some(), sheet.hidden, model.view) {
            (false, ..) => "",
            (_, 0, View::Drops) => "Nothing was dropped.",
            (_, 0, View::Latency) => "There are no guests.",
            (_, 0, View::Connections) => "No port has security groups.",
            (_, 0, View::Moves) => "No address has moved recently.",
            (_, 0, _) => "There are none.",
            _ => "No line has the text.",
        };
        lines.push(Line::raw(nothing));
    }
    lines
}

fn footer(model: &Model, theme: &Theme, width: usize) -> Line<'static> {
    if let Some(fault) = model.fault_text() {
        return Line::styled(format!("{fault:<width$}"), theme.bad().patch(REVERSED));
    }
    Line::styled(format!("{:<width$}", model.footer()), REVERSED)
}

/// The headings, with an arrow at the sorted column.
pub(super) fn sheet_heading(sheet: &Sheet, order: Order, widths: &[usize]) -> String {
    let names = sheet.columns.iter().enumerate().map(|(index, column)| {
        match (order.column == Some(index), order.is_down(column)) {
            (false, _) => column.name.to_owned(),
            (true, true) => format!("{}\u{25be}", column.name),
            (true, false) => format!("{}\u{25b4}", column.name),
        }
    });
    let names: Vec<String> = names.collect();
    row(sheet, names.iter().map(String::as_str), widths)
}

/// One line of a sheet; columns without a width are left out.
pub(super) fn row<'c>(
    sheet: &Sheet,
    cells: impl Iterator<Item = &'c str>,
    widths: &[usize],
) -> String {
    let mut line = String::new();
    for ((cell, column), width) in cells.zip(sheet.columns).zip(widths) {
        if !line.is_empty() {
            line.push_str(&" ".repeat(GAP));
        }
        let cell = cut(cell, *width);
        match column.words {
            true => line.push_str(&format!("{cell:<width$}")),
            false => line.push_str(&format!("{cell:>width$}")),
        }
    }
    line.truncate(line.trim_end().len());
    line
}

/// A cell in `width` characters; a cut is marked.
fn cut(cell: &str, width: usize) -> String {
    if cell.chars().count() <= width {
        return cell.to_owned();
    }
    let kept = cell.chars().take(width.saturating_sub(1));
    kept.chain(['\u{2026}']).take(width).collect()
}

/// The widths of as many columns as fit: first the first column and a last one of words shrink, then columns are dropped
/// from the right.
fn fit(sheet: &Sheet, width: usize) -> Vec<usize> {
    let mut widths = sheet.widths();
    let words_last = sheet.columns.len() > 1 && sheet.columns.last().is_some_and(|c| c.words);
    let excess = |widths: &[usize]| {
        let all = widths.iter().sum::<usize>() + GAP * widths.len().saturating_sub(1);
        all.saturating_sub(width)
    };
    loop {
        if let Some(last) = widths.last().copied().filter(|_| words_last) {
            let narrower = last
                .saturating_sub(excess(&widths))
                .max(WORDS_MIN.min(last));
            if widths.len() == sheet.columns.len() {
                widths.pop();
                widths.push(narrower);
            }
        }
        let more = excess(&widths);
        let words_first = sheet.columns.first().is_some_and(|column| column.words);
        if let Some(first) = widths.first_mut().filter(|_| words_first) {
            *first = first.saturating_sub(more).max(WORDS_MIN.min(*first));
        }
        if excess(&widths) == 0 || widths.len() <= 1 {
            return widths;
        }
        widths.pop();
    }
}
