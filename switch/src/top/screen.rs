//! The loop around the model: the terminal, the daemon and the clock.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

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

/// How often the loop checks for an answer.
const ANSWER: Duration = Duration::from_millis(20);
/// How often the loop checks for a signal.
const SIGNAL: Duration = Duration::from_millis(200);

/// Shows the model on the terminal until a key ends it, or `stop` is no longer zero. The terminal is then restored, also if
/// this panics.
///
/// # Errors
///
/// The options name a column that does not exist, or the terminal cannot be used. A missing daemon is no error: it may start
/// later.
pub fn screen(options: Options, stop: &AtomicUsize) -> Result<(), TopError> {
    let mut model = Model::new(&options)?;
    let mut fetch = Fetch::start(&options.socket).map_err(TopError::Terminal)?;
    // This also restores the terminal on a panic.
    let terminal = ratatui::try_init();
    let ended = terminal
        .and_then(|terminal| converse(&mut model, &mut fetch, terminal, options.colour, stop));
    let restored = ratatui::try_restore();
    // A terminal that was closed cannot be restored, and need not be.
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
            model.take(answer, SystemTime::now());
            changed = true;
        }
        if std::mem::take(&mut changed) {
            terminal.draw(|frame| draw(frame, model, colour))?;
        }
        // All pressed keys are handled before anything is drawn.
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

/// Waits until something was typed, or `time` has passed. A closed terminal is an error: crossterm would read its end again
/// and again, and never return.
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

/// Suspends the process, as other programs do on Ctrl-Z; a terminal in raw mode does not do it.
fn suspend() -> io::Result<DefaultTerminal> {
    ratatui::try_restore()?;
    kill_process(getpid(), Signal::TSTP)?;
    // The shell has continued the process.
    ratatui::try_init()
}
