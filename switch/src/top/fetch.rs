//! The thread that waits for the daemon, so that the screen does not have to.

use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::{io, thread};

use crosspoint_model::client::Client;
use crosspoint_model::request::Request;
use crosspoint_model::status::StatusReport;

/// Requests one snapshot at a time, over one connection as long as it lasts. When this is dropped, the thread ends by
/// itself; it may still be waiting for a daemon that does not answer.
#[derive(Debug)]
pub(super) struct Fetch {
    questions: Sender<()>,
    answers: Receiver<Result<StatusReport, String>>,
    asked: bool,
}

impl Fetch {
    /// Starts the thread, for the daemon at `socket`.
    pub(super) fn start(socket: &Path) -> io::Result<Fetch> {
        let (questions, asked) = channel();
        let (answer, answers) = channel();
        let mut client = Client::new(socket);
        let wait = move || {
            while let Ok(()) = asked.recv() {
                let snapshot = client.request(&Request::Snapshot {});
                if answer
                    .send(snapshot.map_err(|why| why.to_string()))
                    .is_err()
                {
                    return;
                }
            }
        };
        thread::Builder::new()
            .name("fetch".to_owned())
            .spawn(wait)?;
        Ok(Fetch {
            questions,
            answers,
            asked: false,
        })
    }

    /// Requests a snapshot, unless the last answer is still to come.
    pub(super) fn ask(&mut self) {
        if !self.asked {
            self.asked = self.questions.send(()).is_ok();
        }
    }

    /// Whether an answer is still to come.
    pub(super) fn is_waiting(&self) -> bool {
        self.asked
    }

    /// The answer, if it has come.
    pub(super) fn answer(&mut self) -> Option<Result<StatusReport, String>> {
        match self.answers.try_recv() {
            Ok(answer) => {
                self.asked = false;
                Some(answer)
            }
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => {
                Some(Err("no client asks for it any more".to_owned()))
            }
        }
    }
}
