//! The meaning of keys.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::sheet::View;

/// What a key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    Quit,
    /// Closes what was opened last; quits, if nothing is open.
    Back,
    Open,
    See(View),
    NextView,
    PreviousView,
    /// Moves the selection by this many lines.
    Move(isize),
    First,
    Last,
    /// Moves the sorted column by this many.
    SortBy(isize),
    Reverse,
    Filter,
    /// Adds a character to the filter.
    Type(char),
    Erase,
    EraseAll,
    Accept,
    Pause,
    Faster,
    Slower,
    Help,
    /// Refreshes now, and draws everything again.
    Refresh,
    Suspend,
}

/// Lines of a page, for lists whose height does not matter.
const PAGE: isize = 10;

/// The action of a key; `typing`: whether a filter is being typed.
pub(super) fn action(key: KeyEvent, typing: bool) -> Option<Action> {
    let control = key.modifiers.contains(KeyModifiers::CONTROL);
    match key.code {
        KeyCode::Char('c' | 'd') if control => Some(Action::Quit),
        KeyCode::Char('z') if control => Some(Action::Suspend),
        KeyCode::Char('l') if control => Some(Action::Refresh),
        KeyCode::Char('u') if control && typing => Some(Action::EraseAll),
        KeyCode::Char(_) if control || key.modifiers.contains(KeyModifiers::ALT) => None,
        code if typing => typed(code),
        code => pressed(code),
    }
}

fn typed(code: KeyCode) -> Option<Action> {
    match code {
        KeyCode::Char(c) => Some(Action::Type(c)),
        KeyCode::Backspace => Some(Action::Erase),
        KeyCode::Enter => Some(Action::Accept),
        KeyCode::Esc => Some(Action::Back),
        KeyCode::Up => Some(Action::Move(-1)),
        KeyCode::Down => Some(Action::Move(1)),
        _ => None,
    }
}

fn pressed(code: KeyCode) -> Option<Action> {
    Some(match code {
        KeyCode::Char('q') => Action::Quit,
        KeyCode::Esc | KeyCode::Backspace => Action::Back,
        KeyCode::Enter => Action::Open,
        KeyCode::Tab => Action::NextView,
        KeyCode::BackTab => Action::PreviousView,
        KeyCode::Char(digit @ '1'..='9') => {
            let index = digit.to_digit(10).unwrap_or(1) as usize - 1;
            Action::See(View::ALL.get(index).copied()?)
        }
        KeyCode::Up | KeyCode::Char('k') => Action::Move(-1),
        KeyCode::Down | KeyCode::Char('j') => Action::Move(1),
        KeyCode::PageUp => Action::Move(-PAGE),
        KeyCode::PageDown => Action::Move(PAGE),
        KeyCode::Home | KeyCode::Char('g') => Action::First,
        KeyCode::End | KeyCode::Char('G') => Action::Last,
        KeyCode::Left | KeyCode::Char('<') => Action::SortBy(-1),
        KeyCode::Right | KeyCode::Char('>') => Action::SortBy(1),
        KeyCode::Char('r') => Action::Reverse,
        KeyCode::Char('/') => Action::Filter,
        KeyCode::Char('p' | ' ') => Action::Pause,
        KeyCode::Char('+') => Action::Slower,
        KeyCode::Char('-') => Action::Faster,
        KeyCode::Char('?' | 'h') | KeyCode::F(1) => Action::Help,
        _ => return None,
    })
}

/// The keys, for people.
pub(super) const HELP: [&str; 19] = [
    "1 to 9      the views, in the order of their names above",
    "Tab         the next view; Shift-Tab the one before",
    "Up Down     choose a line; also k j, PageUp PageDown, Home End",
    "Enter       show that line in full",
    "Left Right  sort by another column; also < >",
    "r           sort the other way round",
    "/           show only lines with a text in them; Enter keeps it, Esc drops it",
    "p Space     pause, and continue",
    "+ -         a longer interval, a shorter one",
    "Ctrl-L      refresh now, and redraw the screen",
    "?           this help",
    "Esc         back; from the lists, quit",
    "q Ctrl-C    quit",
    "",
    "All values are of the last interval, except totals and workers' STALLS: these",
    "count from the daemon's start. RX is from a port into the switch, TX to a",
    "port. Times are from reading a guest's descriptor to its completion. A dash",
    "is a value that is not known (yet). SHARE is of one worker's time; HELD, OVER,",
    "STORM and DAMP are what shares, flood limits and limits of moves held back.",
];
