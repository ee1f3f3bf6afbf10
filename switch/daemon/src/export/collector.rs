//! A collector: a host that datagrams are sent to.
//!
//! Sending never waits. A datagram that cannot be sent is lost, counted, and logged once a minute at most.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// Time between two attempts to get a socket, and so to look up the route.
const RETRY: Duration = Duration::from_secs(1);
/// Time between two lines in the log.
const SAY: Duration = Duration::from_secs(60);

/// A collector, and the socket to it if there is a route.
#[derive(Debug)]
pub(super) struct Collector {
    address: SocketAddr,
    /// Address that datagrams come from; `None`: the route's.
    from: Option<IpAddr>,
    socket: Option<UdpSocket>,
    /// When to try again to get a socket, and why there is none.
    retry_at: Instant,
    refused: Option<(ErrorKind, String)>,
    /// Errors since the last line in the log, and when that was.
    unsaid: u64,
    said_at: Option<Instant>,
}

impl Collector {
    /// A collector at this address, and the address that datagrams come from if not that of the route. Nothing is sent yet.
    pub(super) fn new(address: SocketAddr, from: Option<IpAddr>) -> Self {
        Collector {
            address,
            from,
            socket: None,
            retry_at: Instant::now(),
            refused: None,
            unsaid: 0,
            said_at: None,
        }
    }

    /// Its address.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The source address of the datagrams; `None` if there is no route now.
    pub(super) fn source(&mut self) -> Option<IpAddr> {
        let socket = self.socket().ok()?;
        socket.local_addr().ok().map(|address| address.ip())
    }

    /// Sends a datagram, or returns why it is lost.
    pub(super) fn send(&mut self, datagram: &[u8]) -> io::Result<()> {
        let sent = self.socket().and_then(|socket| socket.send(datagram));
        let Err(error) = sent else {
            return Ok(());
        };
        // These say nothing about the route: the buffer is full, or the collector's port was closed a moment ago.
        let kinds = [ErrorKind::WouldBlock, ErrorKind::ConnectionRefused];
        if !kinds.contains(&error.kind()) {
            self.socket = None;
            self.retry_at = self.retry_at.max(Instant::now() + RETRY);
        }
        self.say(&error);
        Err(error)
    }

    fn socket(&mut self) -> io::Result<&UdpSocket> {
        let socket = match self.socket.take() {
            Some(socket) => socket,
            None if Instant::now() < self.retry_at => {
                let refused = self.refused.clone();
                let unknown = || (ErrorKind::NetworkUnreachable, "no route".to_owned());
                let (kind, why) = refused.unwrap_or_else(unknown);
                return Err(io::Error::new(kind, why));
            }
            None => {
                self.retry_at = Instant::now() + RETRY;
                let opened = open(self.address, self.from);
                let why = opened.as_ref().err();
                self.refused = why.map(|why| (why.kind(), why.to_string()));
                opened?
            }
        };
        Ok(self.socket.insert(socket))
    }

    fn say(&mut self, error: &io::Error) {
        self.unsaid += 1;
        if self.said_at.is_none_or(|at| at.elapsed() >= SAY) {
            let (address, errors) = (self.address, self.unsaid);
            tracing::warn!(
                errors,
                "datagrams to the collector {address} are lost: {error}; check the route to it, and that the source address is this host's"
            );
            (self.unsaid, self.said_at) = (0, Some(Instant::now()));
        }
    }
}

fn open(to: SocketAddr, from: Option<IpAddr>) -> io::Result<UdpSocket> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((from.unwrap_or(any), 0))?;
    socket.set_nonblocking(true)?;
    // The kernel looks up the route and the source address; nothing is sent.
    socket.connect(to)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each attempt says why, also those that do not try again yet.
    #[test]
    fn a_source_that_is_not_this_hosts_is_named_as_the_reason() {
        let from = Some(Ipv4Addr::new(192, 0, 2, 77).into());
        let address = "127.0.0.1:4739".parse().expect("an address");
        let mut collector = Collector::new(address, from);
        for _ in 0..3 {
            let why = collector.send(b"lost").expect_err("no such address");
            assert_eq!(why.kind(), ErrorKind::AddrNotAvailable, "{why}");
        }
    }

    #[test]
    fn a_collector_that_is_gone_costs_errors_and_no_time() {
        let receiver = UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let mut collector = Collector::new(receiver.local_addr().expect("an address"), None);
        assert_eq!(collector.source(), Some(Ipv4Addr::LOCALHOST.into()));
        collector.send(b"first").expect("a receiver");
        let mut bytes = [0; 16];
        assert_eq!(receiver.recv(&mut bytes).expect("a datagram"), 5);
        drop(receiver);
        // The kernel reports a closed port at the next call.
        let lost = (0..10).filter(|_| collector.send(b"more").is_err());
        assert!(lost.count() > 0);
    }
}
