//! Connects this process's guests to a switch.

use crate::error::BenchError;
use crate::options::Ports;
use crosspoint_guest::{Guest, GuestError, GuestOptions, Listener};
use std::path::Path;
use std::time::{Duration, Instant};

/// Longest wait for a switch that is about to listen, or to connect.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// Two guests, one on each of a switch's ports.
pub fn connect(ports: &Ports, options: &GuestOptions) -> Result<[Guest; 2], BenchError> {
    let [a, b] = &ports.sockets.0;
    if !ports.guests_listen {
        return Ok([to_listener(a, options)?, to_listener(b, options)?]);
    }
    // Both listen before either connects: a switch that finds one socket missing retries only after a second or more.
    let bind =
        |path: &Path| Listener::bind(path).map_err(BenchError::io(path.display().to_string()));
    let (listener_a, listener_b) = (bind(a)?, bind(b)?);
    let accept = |listener: &Listener| -> Result<Guest, BenchError> {
        let mut guest = Guest::new(options.clone())?;
        guest.attach(listener.accept(CONNECT_MAX).map_err(GuestError::from)?)?;
        Ok(guest)
    };
    Ok([accept(&listener_a)?, accept(&listener_b)?])
}

/// Connects a guest to `socket`, as soon as a process listens there.
pub fn to_listener(socket: &Path, options: &GuestOptions) -> Result<Guest, BenchError> {
    let deadline = Instant::now() + CONNECT_MAX;
    loop {
        match Guest::connect(socket, options.clone()) {
            Ok(guest) => return Ok(guest),
            Err(why) if Instant::now() > deadline => return Err(why.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}
