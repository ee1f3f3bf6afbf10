//! The part that the control socket and the metrics server share: a server thread that ends on request.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

use super::places::Place;
use crate::service::progress::Beat;

/// How long to wait when the kernel cannot give a connection, for instance because file descriptors ran out.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// How often the thread reports that it makes progress.
const BEAT_INTERVAL: Duration = Duration::from_secs(1);

/// How long requests in progress may go on after the thread is asked to end.
const END_TIME_MAX: Duration = Duration::from_secs(1);

/// A thread with its own runtime, on which every client is a task. Only those tasks wait for clients, so the thread ends as
/// soon as it is asked to: they are dropped with the runtime. Work on a thread of its own, such as a move of a stream, is
/// waited for no longer than [`END_TIME_MAX`], and then left behind.
#[derive(Debug)]
pub(crate) struct ServerThread {
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl ServerThread {
    /// Starts a thread that drives the future which `serving`, called on that thread, returns.
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

/// Reports progress repeatedly.
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
            // It can only have panicked, which has been logged already.
            let _ = thread.join();
        }
    }
}

/// Accepts clients, and talks to each that `admit` has a place for. A client without a place is disconnected. While `admit`
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
                // However many connect at the same time, each has its request read before it may have to give way.
                tokio::task::yield_now().await;
            }
            Err(error) => {
                // Logged once, however long it lasts.
                if std::mem::take(&mut accepted_last) {
                    tracing::warn!(%error, "the {name} server cannot accept clients; trying again");
                }
                tokio::time::sleep(ACCEPT_RETRY).await;
            }
        }
    }
}
