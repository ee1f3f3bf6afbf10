//! A vhost-user proxy that hides features, for front ends that refuse what a back end offers. Messages and their descriptors
//! pass through it; rings and frames do not, so it costs nothing once a guest runs.

use crate::error::BenchError;
use crate::interrupt;
use clap::Args;
use crosspoint_guest::message::{self, Message, request};
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

/// A front end may be silent for long.
const SILENCE_MAX: Duration = Duration::from_secs(24 * 3600);

/// Options of `mask`.
#[derive(Args, Clone, Debug)]
pub struct FilterOptions {
    /// Numbers of the device features to hide
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(0..64))]
    pub hide: Vec<u32>,
    /// Socket to listen on, and the back end's; repeat for more
    #[arg(long, value_name = "LISTEN,CONNECT", value_parser = socket_pair, required = true)]
    pub pair: Vec<[PathBuf; 2]>,
}

/// Runs `crosspoint-bench mask`.
pub fn run(options: &FilterOptions) -> Result<(), BenchError> {
    interrupt::catch()?;
    let hidden = options
        .hide
        .iter()
        .fold(0_u64, |mask, number| mask | 1 << number);
    for [listen, connect] in options.pair.clone() {
        let _ = std::fs::remove_file(&listen); // there was none
        let listener = UnixListener::bind(&listen);
        let listener = listener.map_err(BenchError::io(listen.display().to_string()))?;
        std::thread::spawn(move || {
            for front in listener.incoming().flatten() {
                let back = UnixStream::connect(&connect);
                if let Err(why) = back.and_then(|back| between(&front, &back, hidden)) {
                    eprintln!("{}: {why}", connect.display());
                }
            }
        });
    }
    loop {
        match interrupt::check() {
            Ok(()) => std::thread::sleep(Duration::from_millis(50)),
            Err(_) => return Ok(()),
        }
    }
}

/// Forwards until one side hangs up.
fn between(front: &UnixStream, back: &UnixStream, hidden: u64) -> io::Result<()> {
    std::thread::scope(|scope| {
        let forth = scope.spawn(|| forward(front, back, 0));
        let ended = forward(back, front, hidden);
        // The other thread is blocked in a receive.
        let _ = (
            front.shutdown(Shutdown::Both),
            back.shutdown(Shutdown::Both),
        );
        let other = forth.join().unwrap_or(Ok(()));
        ended.and(other)
    })
}

/// Forwards messages; removes the `hidden` features from replies.
fn forward(from: &UnixStream, to: &UnixStream, hidden: u64) -> io::Result<()> {
    let end = || {
        let _ = to.shutdown(Shutdown::Both); // ended already
    };
    loop {
        let mut message = match message::receive(from, SILENCE_MAX) {
            Ok(message) => message,
            Err(_) => {
                end(); // the usual end: one side hung up
                return Ok(());
            }
        };
        hide(&mut message, hidden);
        let Message {
            request,
            flags,
            payload,
            fds,
        } = message;
        let fds: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
        message::send_bytes(to, &message::encode(request, flags, &payload), &fds)?;
    }
}

fn hide(message: &mut Message, hidden: u64) {
    let is_features =
        message.request == request::GET_FEATURES && message.flags & message::FLAG_REPLY != 0;
    if let (true, Some(features)) = (is_features, message.u64_at(0)) {
        message.payload[..8].copy_from_slice(&(features & !hidden).to_ne_bytes());
    }
}

/// Parses two paths with a comma between them.
fn socket_pair(text: &str) -> Result<[PathBuf; 2], String> {
    let paths: Vec<PathBuf> = text.split(',').map(PathBuf::from).collect();
    let pair = <[PathBuf; 2]>::try_from(paths);
    pair.map_err(|_| "two paths with a comma between".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_pass_in_both_directions_and_a_hangup_too() {
        let (front, front_far) = UnixStream::pair().unwrap();
        let (back, back_far) = UnixStream::pair().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| between(&front_far, &back_far, 1));
            let ask = message::encode(request::GET_FEATURES, message::FLAG_VERSION, &[]);
            message::send_bytes(&front, &ask, &[]).unwrap();
            let limit = Duration::from_secs(5);
            assert_eq!(
                message::receive(&back, limit).unwrap().request,
                request::GET_FEATURES
            );
            let flags = message::FLAG_VERSION | message::FLAG_REPLY;
            let answer = message::encode(request::GET_FEATURES, flags, &3_u64.to_ne_bytes());
            message::send_bytes(&back, &answer, &[]).unwrap();
            assert_eq!(message::receive(&front, limit).unwrap().u64_at(0), Some(2));
            drop(front);
            assert!(message::receive(&back, limit).is_err());
        });
    }
}
