//! The loop around the model: the terminal, the daemon and the clock.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Signal, getpid, kill_process};

use super::draw::draw;
use super::fetch::Fetch;
use super::keys;
use super::model::{Model, Outcome};
use super::{Options, TopError};

/// How soon an answer is noticed.
const ANSWER: Duration = Duration::from_millis(20);
/// How soon a signal is.
const SIGNAL: Duration = Duration::from_millis(200);

/// Fills the terminal until a key ends it, or `stop` is not zero any more. The terminal is then as it was, and also if
/// this panics.
///
/// # Errors
///
/// Where the options name no column, or the terminal cannot be used. A daemon that is not there is no error: it may come.
pub fn screen(options: Options, stop: &AtomicUsize) -> Result<(), TopError> {
    let mut model = Model::new(&options)?;
    let mut fetch = Fetch::start(&options.socket).map_err(TopError::Terminal)?;
    // It has panics restore the terminal too.
    let terminal = ratatui::try_init();
    let ended = terminal
        .and_then(|terminal| converse(&mut model, &mut fetch, terminal, options.colour, stop));
    let restored = ratatui::try_restore();
    // A terminal that has gone cannot be restored, and need not be.
    let gone = stop.load(Ordering::Relaxed) != 0;
    match ended.and(restored) {
        Err(why) if !gone => Err(TopError::Terminal(why)),
        _ => Ok(()),
    }
}

fn converse(
    model: &mut Model,
    fetch: &mut Fetch,
    mut terminal: DefaultTerminal,
    colour: bool,
    stop: &AtomicUsize,
) -> io::Result<()> {
    let mut next = Instant::now();
    let mut changed = true;
    while stop.load(Ordering::Relaxed) == 0 {
        if Instant::now() >= next && !model.paused {
            fetch.ask();
            next = Instant::now() + model.interval;
        }
        if let Some(answer) = fetch.answer() {
            model.take(answer);
            changed = true;
        }
        if std::mem::take(&mut changed) {
            terminal.draw(|frame| draw(frame, model, colour))?;
        }
        // All keys that have been pressed are obeyed before anything is drawn.
        wait_for_terminal(wait(fetch, next, model.paused))?;
        while event::poll(Duration::ZERO)? {
            let outcome = outcome(model, event::read()?);
            changed |= outcome.is_some();
            match outcome {
                Some(Outcome::Quit) => return Ok(()),
                Some(Outcome::Refresh) => {
                    terminal.clear()?;
                    next = Instant::now();
                }
                Some(Outcome::Suspend) => terminal = suspend()?,
                Some(Outcome::Draw) => next = next.min(Instant::now() + model.interval),
                None => {}
            }
        }
    }
    Ok(())
}

/// Waits until something was typed, or `time` has passed. A terminal that has gone is an error: crossterm would read its
/// end over and over, and never come back.
fn wait_for_terminal(time: Duration) -> io::Result<()> {
    let stdin = io::stdin();
    let mut terminal = [PollFd::new(&stdin, PollFlags::IN)];
    let timeout = Timespec::try_from(time).ok();
    match poll(&mut terminal, timeout.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(why) => return Err(why.into()),
    }
    match terminal[0]
        .revents()
        .intersects(PollFlags::HUP | PollFlags::ERR)
    {
        true => Err(io::Error::other("the terminal has gone")),
        false => Ok(()),
    }
}

fn wait(fetch: &Fetch, next: Instant, paused: bool) -> Duration {
    match (fetch.is_waiting(), paused) {
        (true, _) => ANSWER,
        (false, true) => SIGNAL,
        (false, false) => next.saturating_duration_since(Instant::now()).min(SIGNAL),
    }
}

fn outcome(model: &mut Model, event: Event) -> Option<Outcome> {
    match event {
        Event::Key(key) if key.kind != KeyEventKind::Release => {
            Some(model.act(keys::action(key, model.typing)?))
        }
        Event::Resize(..) => Some(Outcome::Draw),
        _ => None,
    }
}

/// As a shell's other programs do on Ctrl-Z, which a terminal in raw mode does not see to.
fn suspend() -> io::Result<DefaultTerminal> {
    ratatui::try_restore()?;
    kill_process(getpid(), Signal::TSTP)?;
    // From here on the shell has said to go on.
    ratatui::try_init()
}
