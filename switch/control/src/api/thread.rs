//! What the control socket and the metrics server share: a thread that serves, and ends when it is told to.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

use super::places::Place;
use crate::progress::Beat;

/// How long to wait when the kernel gives no connection, because file descriptors ran out for instance.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// How often the thread says that it comes round.
const BEAT_INTERVAL: Duration = Duration::from_secs(1);

/// How long what clients have asked for may go on, when the thread is told to end.
const END_TIME_MAX: Duration = Duration::from_secs(1);

/// A thread with a runtime of its own, on which every client is a task. Nothing on it waits for a client but those
/// tasks, so it ends as soon as it is told to: with the runtime, they are dropped. What has a thread of its own, as a move
/// of a stream, is waited for, no longer than [`END_TIME_MAX`]; then it is left behind.
#[derive(Debug)]
pub(crate) struct ServerThread {
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ServerThread {
    /// Starts a thread that drives what `serving`, called there, returns.
    pub(crate) fn start<F, T>(name: &'static str, serving: F) -> io::Result<ServerThread>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Future<Output = io::Result<()>>,
    {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (end, ended) = oneshot::channel::<()>();
        let beat = Beat::new(match name {
            "metrics" => "the metrics server",
            _ => "the control socket's server",
        });
        let thread = std::thread::Builder::new()
            .name(format!("cp-{name}"))
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        result = serving() => if let Err(error) = result {
                            tracing::error!(%error, "the {name} server has ended");
                        },
                        () = beats(&beat) => {}
                        _ = ended => {}
                    }
                });
                beat.rest();
                runtime.shutdown_timeout(END_TIME_MAX);
            })?;
        Ok(ServerThread {
            end: Some(end),
            thread: Some(thread),
        })
    }
}

/// Says again and again that the thread comes round.
async fn beats(beat: &Beat) {
    loop {
        beat.begin();
        tokio::time::sleep(BEAT_INTERVAL).await;
    }
}

/// Ends the thread, and waits until it has ended.
impl Drop for ServerThread {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // It can only have panicked, and then has said so.
            let _ = thread.join();
        }
    }
}

/// Accepts clients, and converses with each that `admit` has a place for. One that it has none for is hung up on; while it
/// waits, clients wait in the kernel's queue.
pub(crate) async fn serve<C, P, T>(
    name: &'static str,
    accept: impl AsyncFn() -> io::Result<C>,
    admit: impl AsyncFn(&C) -> Option<Place<P>>,
    converse: impl Fn(C, Arc<Place<P>>) -> T,
) -> io::Result<()>
where
    P: Copy + Eq + Send + Sync + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    let mut accepted_last = true;
    loop {
        match accept().await {
            Ok(client) => {
                accepted_last = true;
                if let Some(place) = admit(&client).await {
                    let place = Arc::new(place);
                    let conversation = converse(client, Arc::clone(&place));
                    tokio::spawn(async move {
                        tokio::select! {
                            () = place.closing().notified() => {}
                            () = conversation => {}
                        }
                    });
                }
                // However many come at once, each has its request looked at before it may have to give way.
                tokio::task::yield_now().await;
            }
            Err(error) => {
                // Said once, however long it lasts.
                if std::mem::take(&mut accepted_last) {
                    tracing::warn!(%error, "the {name} server cannot accept clients; trying again");
                }
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}
