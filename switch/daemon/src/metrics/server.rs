//! The HTTP server of the metrics, and of `/healthz` and `/readyz`: see [`health`](crosspoint_model::health).
//!
//! hyper on one thread, one request per connection. Memory, threads and time are bounded, and no input can make it panic,
//! which matters in a program that aborts on panic. (tiny_http 0.12 panics if a client resets its connection at the right
//! moment, keeps header lines of any length, and starts a thread per client.)
//!
//! Clients that hold connections, send half a request, or do not read their answers cannot delay a probe, not even one from
//! their own address: where no place is free, the oldest connection without a request gives way to the new one (see
//! [`Places`]). That holds through the handshake of TLS too: it is part of the time without a request.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use crate::api::health;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use miette::Diagnostic;
use rustls::ServerConfig;
use rustls::server::Acceptor;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::{Access, AccessError, Exposition};
use crate::api::Source;
use crate::api::places::{Closed, Limits, Phase, Place, Places};
use crate::api::thread::{ServerThread, serve};
use crate::handover;

/// The most connections at the same time. Each takes a file descriptor.
const CLIENTS_MAX: usize = 256;
/// Of those, one address's, or one /64 network's. Three that take their maximum leave places for others.
const CLIENTS_OF_PEER_MAX: usize = 64;
/// The most metrics texts held for clients; more wait. With a thousand queues, one text takes megabytes.
const TEXTS_MAX: usize = 16;
/// Of those, one address's.
const TEXTS_OF_PEER_MAX: usize = 4;
/// The most signatures of TLS that are made at the same time; one for each address.
const SIGNATURES_MAX: usize = 4;
/// How long a connection may take for its answer while others wait for its place or its text. Where none waits, it has
/// [`CONNECTION_TIME_MAX`].
const PATIENCE: Duration = Duration::from_secs(1);
/// Connections that the kernel queues until they are accepted.
const BACKLOG: i32 = 1024;
/// The longest that a client may take for the handshake of TLS.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(2);
/// The longest that a client may take to send its request's header.
const HEADER_TIME_MAX: Duration = Duration::from_secs(2);
/// The longest that a connection lasts. Prometheus gives up after 10 s by default.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(10);
/// The largest header. Bodies are not read.
const HEADER_BYTES_MAX: usize = 16 << 10;

/// Connections to metrics servers that were closed for lack of places.
pub(super) static CLOSED: Closed = Closed::new();

/// The server that Prometheus scrapes. It ends when it is dropped.
///
/// Its thread inherits the caller's CPU affinity: start it before pinning the calling thread to anything.
#[derive(Debug)]
pub struct MetricsServer {
    _thread: ServerThread,
    local_addr: SocketAddr,
    access: Arc<Mutex<Access>>,
}

/// Why metrics cannot be served.
#[derive(Debug, Error, Diagnostic)]
pub enum MetricsError {
    /// Another program has the address.
    #[error("cannot serve metrics on {addr}: another program listens there")]
    #[diagnostic(help(
        "`ss -ltnp 'sport = :{}'` shows which; if it is another crosspoint, give this one an address of its own, as [metrics] listen",
        addr.port()
    ))]
    Busy {
        /// The address.
        addr: SocketAddr,
    },
    /// The address cannot be used for another reason.
    #[error("cannot serve metrics on {addr}: {cause}")]
    #[diagnostic(help(
        "[metrics] listen must be an address of this host, and a port below 1024 needs CAP_NET_BIND_SERVICE"
    ))]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// The kernel's error.
        #[source]
        cause: io::Error,
    },
    /// The files that say which clients may read the metrics are wrong.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Access(#[from] AccessError),
    /// The thread cannot be started.
    #[error("cannot start the metrics thread: {0}")]
    #[diagnostic(help("the host is short of memory or threads; see `ulimit -u`"))]
    Thread(#[source] io::Error),
    /// The metrics contradict one another, which the tests rule out.
    #[error("cannot register the metrics: {0}")]
    #[diagnostic(help("this is a defect of crosspoint; please report it"))]
    Registry(#[from] prometheus::Error),
}

/// Name of the record of the listening socket.
const RECORD: &str = "metrics";

/// The predecessor's socket, if it listens on `addr`.
fn adopt(addr: SocketAddr) -> Option<TcpListener> {
    let taken = handover::take(RECORD)?;
    let of: SocketAddr = serde_json::from_slice(&taken.body).ok()?;
    let listener = TcpListener::from(taken.fds.into_iter().next()?);
    (of == addr).then_some(listener)
}

impl MetricsServer {
    /// Listens on `addr`; port 0 takes any free port.
    pub fn start(
        addr: SocketAddr,
        access: Access,
        source: Arc<dyn Source>,
    ) -> Result<MetricsServer, MetricsError> {
        let exposition = Exposition::new(Arc::clone(&source))?;
        let listen = |cause: io::Error| match cause.kind() {
            io::ErrorKind::AddrInUse => MetricsError::Busy { addr },
            _ => MetricsError::Listen { addr, cause },
        };
        let listener = match adopt(addr) {
            Some(listener) => listener,
            None => TcpListener::bind(addr).map_err(listen)?,
        };
        listener.set_nonblocking(true).map_err(listen)?;
        // It listens already, with a shorter queue; this sets the longer one.
        rustix::net::listen(&listener, BACKLOG).map_err(|errno| listen(errno.into()))?;
        let local_addr = listener.local_addr().map_err(listen)?;
        handover::put(RECORD, &addr, &[listener.as_fd()]);
        let access = Arc::new(Mutex::new(access));
        let current = Arc::clone(&access);
        let serving = move || async move {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let accept = async || listener.accept().await;
            let places = Places::new(CONNECTIONS, &CLOSED);
            let admit = async |(_, addr): &(TcpStream, SocketAddr)| {
                let place = places.try_take(peer(addr.ip()), Phase::Idle, &Arc::default());
                if place.is_none() {
                    CLOSED.refuse();
                }
                place
            };
            let served = Served {
                source,
                exposition,
                texts: Places::new(TEXTS, &CLOSED),
                handshakes: Places::new(HANDSHAKES, &CLOSED),
            };
            serve("metrics", accept, admit, |(client, _), place| {
                let access = locked(&current).clone();
                let all = greet(client, place, served.clone(), access);
                // The client notices that it was too slow; no other client is concerned.
                async move { drop(timeout(CONNECTION_TIME_MAX, all).await) }
            })
            .await
        };
        let thread = ServerThread::start("metrics", serving).map_err(MetricsError::Thread)?;
        Ok(MetricsServer {
            _thread: thread,
            local_addr,
            access,
        })
    }

    /// Serves new connections with `access` from now on.
    pub fn set_access(&self, access: Access) {
        *locked(&self.access) = access;
    }

    /// The address that it listens on.
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Ends the server regardless of its clients, and waits until it has ended. Dropping it does the same.
    pub fn stop(self) {
        drop(self);
    }
}

/// A connection without a request gives way at once, then one that waits for its text. Others have [`PATIENCE`] for their
/// answer.
const CONNECTIONS: Limits = Limits {
    total_max: CLIENTS_MAX,
    peer_max: CLIENTS_OF_PEER_MAX,
    idle: Some(Duration::ZERO),
    waiting: Some(Duration::ZERO),
    sending: Some(PATIENCE),
    working: Some(PATIENCE),
};

/// A text that is being rendered is waited for: its thread cannot be stopped.
const TEXTS: Limits = Limits {
    total_max: TEXTS_MAX,
    peer_max: TEXTS_OF_PEER_MAX,
    idle: None,
    waiting: None,
    sending: Some(PATIENCE),
    working: None,
};

/// A signature cannot be stopped either, and is soon made.
const HANDSHAKES: Limits = Limits {
    total_max: SIGNATURES_MAX,
    peer_max: 1,
    idle: None,
    waiting: None,
    sending: None,
    working: None,
};

/// The key that tells clients apart. A host has one IPv4 address, but any number of addresses of an IPv6 /64 network.
fn peer(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let network = u128::from(v6) >> 64 << 64;
            Ipv6Addr::from(network).into()
        }
        v4 => v4,
    }
}

/// What the server answers from.
#[derive(Clone)]
struct Served {
    source: Arc<dyn Source>,
    exposition: Exposition,
    texts: Arc<Places<IpAddr>>,
    handshakes: Arc<Places<IpAddr>>,
}

/// The right to hold one of the texts. The connection that sends it and the thread that renders it share it.
type TextPlace = Arc<Place<IpAddr>>;

fn locked(access: &Mutex<Access>) -> std::sync::MutexGuard<'_, Access> {
    access.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves one connection, after the handshake if there is TLS.
async fn greet(client: TcpStream, place: Arc<Place<IpAddr>>, served: Served, access: Access) {
    let Some(tls) = access.tls.clone() else {
        return converse(client, &place, &served, &access).await;
    };
    let handshake = shake_hands(client, tls, &place, &served.handshakes);
    match timeout(HANDSHAKE_TIME_MAX, handshake).await {
        Ok(Ok(client)) => converse(client, &place, &served, &access).await,
        // Anybody can cause it at any rate, so it is not for the usual log.
        Ok(Err(why)) => tracing::debug!("a client of the metrics fails in TLS: {why}"),
        Err(_) => {}
    }
}

/// The handshake of TLS. The server's signature takes milliseconds, and clients can ask for any number: so it is made on
/// another thread, for each peer in turn, and connections are accepted and given up meanwhile.
async fn shake_hands(
    client: TcpStream,
    tls: Arc<ServerConfig>,
    place: &Place<IpAddr>,
    handshakes: &Arc<Places<IpAddr>>,
) -> io::Result<TlsStream<TcpStream>> {
    let hello = LazyConfigAcceptor::new(Acceptor::default(), client).await?;
    let turn = handshakes
        .take(place.peer(), Phase::Working, place.closing())
        .await;
    let sign = move || {
        let _turn = turn;
        hello.into_stream(tls)
    };
    let signed = tokio::task::spawn_blocking(sign).await;
    signed.map_err(io::Error::other)?.await
}

/// Serves one connection, which has one request.
async fn converse(
    client: impl AsyncRead + AsyncWrite + Unpin,
    place: &Place<IpAddr>,
    served: &Served,
    access: &Access,
) {
    // Held until the client has its text, or the connection ends.
    let text = OnceLock::new();
    let service = service_fn(|request| {
        let text = &text;
        async move {
            place.enter(Phase::Working);
            let answer = answer(&request, served, access, place, text).await;
            place.enter(Phase::Sending);
            Ok::<_, Infallible>(answer)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME_MAX)
        .max_buf_size(HEADER_BYTES_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(client), service);
    // The error is the client's, which notices it.
    let _ = connection.await;
}

async fn answer(
    request: &Request<Incoming>,
    served: &Served,
    access: &Access,
    place: &Place<IpAddr>,
    text_place: &OnceLock<TextPlace>,
) -> Response<Full<Bytes>> {
    let path = request.uri().path();
    if !["/metrics", "/healthz", "/readyz"].contains(&path) {
        let there = "the metrics are at /metrics, health is at /healthz and /readyz\n";
        return text(StatusCode::NOT_FOUND, there);
    }
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET is answered\n");
        let allowed = HeaderValue::from_static("GET, HEAD");
        response.headers_mut().insert(ALLOW, allowed);
        return response;
    }
    let is_known = access.admits(request.headers());
    match path {
        "/healthz" => {
            let health = health::look(&*served.source).await;
            probe(health.live, health.live_text(), is_known)
        }
        "/readyz" => {
            let health = health::look(&*served.source).await;
            probe(health.ready, health.ready_text(), is_known)
        }
        _ if !is_known => {
            let wants = "this needs a token, as in `Authorization: Bearer TOKEN`\n";
            let mut response = text(StatusCode::UNAUTHORIZED, wants);
            let scheme = HeaderValue::from_static("Bearer");
            response.headers_mut().insert(WWW_AUTHENTICATE, scheme);
            response
        }
        _ => {
            place.enter(Phase::Waiting);
            let texts = &served.texts;
            let one = texts.take(place.peer(), Phase::Working, place.closing());
            let one = Arc::new(one.await);
            place.enter(Phase::Working);
            // A connection has no second request, so the place was not set before.
            let _ = text_place.set(Arc::clone(&one));
            let answer = scrape(served.exposition.clone(), Arc::clone(&one)).await;
            one.enter(Phase::Sending);
            answer
        }
    }
}

/// The answer of a probe. Probes of orchestrators have no token; the reasons, which name ports, are for those with it.
fn probe(well: bool, mut words: String, is_known: bool) -> Response<Full<Bytes>> {
    if !is_known {
        words.truncate(words.find([':', '\n']).unwrap_or(words.len()));
        words.push('\n');
    }
    let status = match well {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    let mut response = text(status, words);
    let media_type = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, media_type);
    response
}

/// Runs on a thread of its own, of which there are no more than [`TEXTS_MAX`]: it may wait for the port table, and health
/// requests must be answered meanwhile.
async fn scrape(exposition: Exposition, place: TextPlace) -> Response<Full<Bytes>> {
    // The connection may end before the work does.
    let render = move || {
        let _place = place;
        exposition.render()
    };
    let rendered = tokio::task::spawn_blocking(render).await;
    let rendered = rendered.map_err(|error| error.to_string());
    match rendered.and_then(|result| result.map_err(|error| error.to_string())) {
        Ok(metrics) => text(StatusCode::OK, metrics),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let media_type = HeaderValue::from_static(Exposition::MEDIA_TYPE);
    response.headers_mut().insert(CONTENT_TYPE, media_type);
    response
}
