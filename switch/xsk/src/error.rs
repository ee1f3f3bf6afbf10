//! Errors of opening a socket, with advice.

use std::io;

use thiserror::Error;

use crate::Pages;

/// Why a socket could not be opened.
#[derive(Debug, Error)]
#[error("{what}: {why}{advice}")]
pub struct SocketError {
    /// The operation that failed.
    pub what: &'static str,
    /// The kernel's error.
    #[source]
    pub why: io::Error,
    /// What it means and what to do, for the operator; empty if not known.
    pub advice: String,
}

impl SocketError {
    pub(crate) fn new(what: &'static str) -> impl FnOnce(io::Error) -> SocketError {
        move |why| SocketError {
            what,
            why,
            advice: String::new(),
        }
    }

    /// An error that is not the kernel's.
    pub fn of(what: &'static str, why: String) -> SocketError {
        SocketError::new(what)(io::Error::other(why))
    }

    /// Error of locking `bytes` bytes of memory.
    #[cfg_attr(feature = "xsk-rs", allow(dead_code, reason = "the crate does it"))]
    pub(crate) fn locking(bytes: usize) -> impl FnOnce(io::Error) -> SocketError {
        move |why| {
            let advice = match why.raw_os_error() {
                // The kernel uses this error only for this limit.
                Some(libc::ENOBUFS) => too_little_may_be_locked(bytes),
                _ => String::new(),
            };
            SocketError {
                advice,
                ..SocketError::new("registering packet memory")(why)
            }
        }
    }

    /// Error of allocating `bytes` bytes in `pages`.
    pub(crate) fn allocating(bytes: usize, pages: Pages) -> impl FnOnce(io::Error) -> SocketError {
        move |why| {
            let advice = match (why.raw_os_error(), pages) {
                (Some(libc::ENOMEM), Pages::Reserved) => format!(
                    "; {} of reserved huge pages are needed, and fewer are free (HugePages_Free in /proc/meminfo): raise vm.nr_hugepages, or set `huge_pages = \"transparent\"`",
                    size(bytes as u64)
                ),
                (Some(libc::ENOMEM), _) => format!("; {} are needed", size(bytes as u64)),
                _ => String::new(),
            };
            SocketError {
                advice,
                ..SocketError::new("allocating packet memory")(why)
            }
        }
    }
}

fn too_little_may_be_locked(bytes: usize) -> String {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock);
    let limit = limit.current.map_or("unlimited".to_owned(), size);
    format!(
        "; the limit of locked memory (RLIMIT_MEMLOCK) is {limit} for all processes of this user together, and {} more are to be locked: raise it (LimitMEMLOCK=infinity in the service, `ulimit -l unlimited` in a shell), or give CAP_IPC_LOCK",
        size(bytes as u64)
    )
}

fn size(bytes: u64) -> String {
    match bytes {
        bytes if bytes >= 1 << 20 => format!("{} MiB", bytes.div_ceil(1 << 20)),
        bytes => format!("{} KiB", bytes.div_ceil(1 << 10)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_size() {
        let error = SocketError::locking(16 << 20)(io::Error::from_raw_os_error(libc::ENOBUFS));
        let text = error.to_string();
        assert!(
            text.starts_with("registering packet memory: No buffer space"),
            "{text}"
        );
        for part in [
            "RLIMIT_MEMLOCK",
            "16 MiB more",
            "LimitMEMLOCK",
            "CAP_IPC_LOCK",
        ] {
            assert!(text.contains(part), "{text}");
        }
        let no_memory = || io::Error::from_raw_os_error(libc::ENOMEM);
        let text = SocketError::allocating(16 << 20, Pages::Reserved)(no_memory()).to_string();
        assert!(text.contains("16 MiB of reserved huge pages"), "{text}");
        assert!(text.contains("vm.nr_hugepages"), "{text}");
        let text = SocketError::allocating(16 << 20, Pages::Small)(no_memory()).to_string();
        assert!(text.ends_with("; 16 MiB are needed"), "{text}");
        let other = SocketError::locking(1)(io::Error::from_raw_os_error(libc::EINVAL));
        assert!(other.advice.is_empty());
    }
}
