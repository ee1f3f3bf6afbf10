//! Guests and interfaces that come and go beside the measured ones.

use super::{addresses, connect};
use crate::error::BenchError;
use crate::interrupt;
use crate::lab::metrics::read_sum;
use crate::lab::wait_until;
use crate::lab::wire::command;
use crosspoint_guest::{Guest, GuestOptions};
use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

/// Number of the first among all guests; those before it are measured.
const FIRST: usize = 2;
/// Frames that each guest must get from the other.
const FRAMES: usize = 32;
/// Longest wait for them.
const EXCHANGE_MAX: Duration = Duration::from_secs(5);
/// Longest wait for some of them, before more are sent.
const AGAIN: Duration = Duration::from_millis(5);
/// Longest wait for a session, or for an interface to become a port.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Time between two checks.
const LOOK: Duration = Duration::from_millis(20);
/// Frames in flight when a guest is killed.
const LEFT_BEHIND: usize = 64;

/// Two guests beside the measured ones.
pub struct ChurnPeers([Guest; 2]);

impl ChurnPeers {
    /// Connects both, and waits until each has got frames from the other.
    pub fn attach(sockets: [&Path; 2]) -> Result<Self, BenchError> {
        let options = GuestOptions::default();
        let [a, b] = sockets.map(|socket| connect::to_listener(socket, &options));
        let mut this = Self([a?, b?]);
        this.exchange()?;
        Ok(this)
    }

    /// Stops the rings and hangs up, like a guest that is shut down.
    pub fn detach(mut self) -> Result<(), BenchError> {
        for guest in &mut self.0 {
            guest.stop()?;
        }
        Ok(())
    }

    /// Hangs up with frames in flight in both directions, like a guest that is killed.
    pub fn kill(mut self) -> Result<(), BenchError> {
        for from in [0, 1] {
            self.send(from, LEFT_BEHIND)?;
        }
        self.0.iter_mut().for_each(Guest::disconnect);
        Ok(())
    }

    /// Stops the rings of both, and starts them again at the same indices.
    pub fn pause(&mut self) -> Result<(), BenchError> {
        for guest in &mut self.0 {
            guest.stop()?;
            guest.restart()?;
        }
        self.exchange()
    }

    /// Stops the rings, resets them, connects again and starts from the beginning.
    pub fn reboot(&mut self) -> Result<(), BenchError> {
        for guest in &mut self.0 {
            guest.stop()?;
            guest.disconnect();
            guest.reset(0);
            let deadline = Instant::now() + CONNECT_MAX;
            while let Err(why) = guest.reconnect() {
                if Instant::now() > deadline {
                    return Err(why.into());
                }
                std::thread::sleep(LOOK);
            }
        }
        self.exchange()
    }

    /// Sends in both directions until each guest has got enough.
    fn exchange(&mut self) -> Result<(), BenchError> {
        let deadline = Instant::now() + EXCHANGE_MAX;
        for to in [0, 1] {
            let mut arrived = 0;
            while arrived < FRAMES {
                interrupt::check()?;
                if Instant::now() > deadline {
                    let what = format!("{arrived} frames arrive at a guest that was attached");
                    return Err(BenchError::backend("churn", what));
                }
                self.send(1 - to, FRAMES / 4)?;
                let frames = self.0[to].receive_at_least(0, FRAMES / 4, AGAIN)?;
                let own = |(_, frame): &&(_, Vec<u8>)| {
                    frame.get(6..12) == Some(&addresses::of(FIRST + 1 - to))
                };
                arrived += frames.iter().filter(own).count();
            }
        }
        Ok(())
    }

    fn send(&mut self, from: usize, count: usize) -> Result<(), BenchError> {
        let mut frame = [0; 60];
        frame[..6].copy_from_slice(&addresses::of(FIRST + 1 - from));
        frame[6..12].copy_from_slice(&addresses::of(FIRST + from));
        frame[12..14].copy_from_slice(&[0x88, 0xb5]); // local experimental (IEEE 802)
        let frames: Vec<&[u8]> = (0..count).map(|_| frame.as_slice()).collect();
        self.0[from].send(0, &frames)?;
        Ok(())
    }
}

/// A veth pair, one end of which is a port while it exists. It is removed when dropped.
pub struct Interface<'a>(&'a str);

impl<'a> Interface<'a> {
    /// Creates it, and waits until the switch with metrics at `metrics` has it as a port.
    pub fn add(name: &'a str, metrics: SocketAddr) -> Result<Self, BenchError> {
        command(&format!("ip link add {name} type veth peer name {name}p"))?;
        let this = Self(name);
        command(&format!("ip link set {name} up"))?;
        command(&format!("ip link set {name}p up"))?;
        wait_up(name, metrics, true)?;
        Ok(this)
    }

    /// Removes it, and waits until the switch has noticed.
    pub fn remove(self, metrics: SocketAddr) -> Result<(), BenchError> {
        let name = self.0;
        drop(self);
        wait_up(name, metrics, false)
    }
}

impl Drop for Interface<'_> {
    fn drop(&mut self) {
        if let Err(why) = command(&format!("ip link del {}", self.0)) {
            eprintln!("{why}");
        }
    }
}

/// Waits until port `name` is up, or down.
fn wait_up(name: &str, metrics: SocketAddr, up: bool) -> Result<(), BenchError> {
    let label = format!("port=\"{name}\"");
    let is_there = wait_until(CONNECT_MAX, || {
        interrupt::check()?;
        let value = read_sum(metrics, "crosspoint_port_up", &label);
        let value = value.map_err(BenchError::io("metrics"))?;
        Ok(((value > 0.0) == up).then_some(()))
    })?;
    let state = if up { "up" } else { "down" };
    let what = format!("port {name} is not {state}");
    is_there.ok_or_else(|| BenchError::backend("crosspoint", what))
}
