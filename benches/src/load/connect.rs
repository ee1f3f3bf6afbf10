//! Connects this process's guests to a switch.

use crate::error::BenchError;
use crate::lab::Ports;
use crosspoint_guest::{Guest, GuestError, GuestOptions, Listener};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest wait for a switch that is about to listen, or to connect.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// Guests on a switch's ports: the number of each one's port, and its options, in the order in which they connect.
pub fn connect(ports: &Ports, guests: &[(usize, GuestOptions)]) -> Result<Vec<Guest>, BenchError> {
    let socket = |number: usize| -> Result<&PathBuf, BenchError> {
        let missing = || BenchError::backend("the switch", format!("has no port {number}"));
        ports.sockets.get(number).ok_or_else(missing)
    };
    if !ports.guests_listen {
        let each = guests.iter();
        return each
            .map(|(number, options)| to_listener(socket(*number)?, options))
            .collect();
    }
    // All listen before any connects: a switch that finds one socket missing retries only after a second or more.
    let bind = |number: usize| -> Result<Listener, BenchError> {
        let path = socket(number)?;
        Listener::bind(path).map_err(BenchError::io(path.display().to_string()))
    };
    let listeners = guests.iter().map(|(number, _)| bind(*number));
    let listeners = listeners.collect::<Result<Vec<_>, _>>()?;
    let accept = |(listener, (_, options)): (&Listener, &(usize, GuestOptions))| {
        let mut guest = Guest::new(options.clone())?;
        guest.attach(listener.accept(CONNECT_MAX).map_err(GuestError::from)?)?;
        Ok(guest)
    };
    listeners.iter().zip(guests).map(accept).collect()
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
