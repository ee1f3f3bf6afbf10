//! `crosspoint capture`: frames and their verdicts, as lines or as a pcapng file.

mod command;
mod pcapng;

pub(crate) use command::{Capture, complain, duration, end_by_signal, refuse};
