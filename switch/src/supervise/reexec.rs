//! The supervisor's own renewal: some time after an upgrade it becomes the installed program too, in the same process, and goes on
//! with the switch as after its own death. The switch forwards on meanwhile.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;

use signal_hook::consts::SIGPIPE;

use super::process::{FORMER, Program, identity, is_reaping};
use super::{PROBATION, Supervisor, say};

/// The program of the switch before the last upgrade, as the supervisor before this one has handed it on.
pub(super) fn former() -> Option<Program> {
    std::env::var_os(FORMER)?;
    let file = std::io::stdin().as_fd().try_clone_to_owned().ok()?;
    Some(Program::File(Arc::new(File::from(file))))
}

impl Supervisor {
    /// Becomes the installed program, if the switch has run it long enough without a crash, and this process runs another one.
    pub(super) fn reexec(&mut self) {
        let Some(upgraded_at) = self.upgraded_at else {
            return;
        };
        let is_proven = upgraded_at.elapsed() > PROBATION
            && self.crashes.iter().all(|crash| *crash < upgraded_at)
            && self.current.is_ready
            && self.current.runs(&self.program);
        if !is_proven {
            return;
        }
        // Once for each upgrade, whatever comes of it.
        self.upgraded_at = None;
        let own = fs::metadata("/proc/self/exe").ok();
        if own.map(|file| identity(&file)) == self.program.identity() {
            return;
        }
        // A thread that a front end holds up would hold up this process for ever, and a process that is still to be waited for would
        // be forgotten. What the store has is not closed for the last time: the switch has it too.
        if !self.closer.is_idle() || is_reaping() {
            return say(
                "stays the former program until the next upgrade: a front end holds one of its threads up",
            );
        }
        if self.is_stopping() {
            return;
        }
        let Program::Path(path) = &self.program else {
            return;
        };
        let mut words = std::env::args_os();
        let mut command = Command::new(path);
        command.arg0(words.next().unwrap_or_default()).args(words);
        match &self.former {
            Some(Program::File(file)) => match file.try_clone() {
                Ok(file) => command.env(FORMER, "stdin").stdin(Stdio::from(file)),
                Err(_) => command.env_remove(FORMER),
            },
            _ => command.env_remove(FORMER),
        };
        say("becomes the installed program");
        let why = command.exec();
        // exec() has given this signal its usual effect, which is to end the process whose log is closed.
        let _ = signal_hook::flag::register(SIGPIPE, Arc::default());
        say(&format!("error: stays the former program: {why}"));
    }
}
