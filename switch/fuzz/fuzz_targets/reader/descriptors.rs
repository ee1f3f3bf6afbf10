//! The descriptors of this target's front end.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::pwrite;
use rustix::pipe::{PipeFlags, pipe_with};

use super::record::*;

/// Descriptors of one session, created on demand. What a kind also needs (a pipe's other end) is kept open beside it.
#[derive(Default)]
pub struct Descriptors {
    made: [Option<OwnedFd>; KINDS as usize],
    partners: Vec<OwnedFd>,
}

impl Descriptors {
    /// Creates the descriptor of this kind, unless it exists.
    pub fn make(&mut self, kind: u8) {
        let kind = kind % KINDS;
        if self.made[usize::from(kind)].is_some() {
            return;
        }
        let made = match kind {
            MEMORY | OTHER => memory(MEMORY_LEN),
            PAGE => memory(0x1000),
            EMPTY => memory(0),
            READ_ONLY => {
                let memory = memory(MEMORY_LEN);
                let path = format!("/proc/self/fd/{}", memory.as_raw_fd());
                File::open(path).expect("it is ours").into()
            }
            EVENT => eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).expect("one more"),
            PIPE_WRITE | PIPE_READ => {
                let flags = PipeFlags::NONBLOCK | PipeFlags::CLOEXEC;
                let (read, write) = pipe_with(flags).expect("two more");
                let (given, kept) = match kind {
                    PIPE_READ => (read, write),
                    _ => (write, read),
                };
                self.partners.push(kept);
                given
            }
            REGULAR => regular(),
            NULL => File::options()
                .read(true)
                .write(true)
                .open("/dev/null")
                .expect("it is there")
                .into(),
            _ => {
                let (given, kept) = UnixStream::pair().expect("two more");
                self.partners.push(kept.into());
                given.into()
            }
        };
        self.made[usize::from(kind)] = Some(made);
    }

    /// The descriptor of this kind, which must exist.
    pub fn get(&self, kind: u8) -> BorrowedFd<'_> {
        let made = self.made[usize::from(kind % KINDS)].as_ref();
        made.expect("it has been made").as_fd()
    }

    /// Writes into [`MEMORY`].
    pub fn fill(&mut self, at: u16, bytes: &[u8]) {
        self.make(MEMORY);
        pwrite(self.get(MEMORY), bytes, at.into()).expect("it is within the file");
    }
}

fn memory(len: u64) -> OwnedFd {
    let fd = memfd_create("fuzz", MemfdFlags::CLOEXEC).expect("one more");
    ftruncate(&fd, len).expect("any length");
    fd
}

/// An unnamed file on a file system.
fn regular() -> OwnedFd {
    let path = std::env::temp_dir().join(format!("crosspoint-fuzz-{}", std::process::id()));
    let mut options = File::options();
    let file = options.read(true).write(true).create(true).open(&path);
    let file = file.expect("a folder for temporary files");
    std::fs::remove_file(&path).expect("it is ours");
    file.set_len(0x1_0000).expect("a small file");
    file.into()
}
