//! The daemon's own sockets: the guests' and the control socket. Checks whether each is still where the daemon listens: if a
//! socket's file is removed or replaced, its listener can no longer be reached.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileTypeExt;

use crosspoint_config::Role;

use super::subject::Subject;
use super::{Check, Finding, Severity};

const OWN: Check = Check {
    id: "own-sockets",
    looks_at: "The daemon's control socket and guests' sockets with `role = \"server\"`; reported only where another file is in their place, the file of a listener was removed, two processes listen, or none does",
};

pub(super) const CHECKS: &[Check] = &[OWN];

/// The flag of a listening socket in `/proc/net/unix`.
const LISTENS: u32 = 1 << 16;

pub(super) fn check(subject: &Subject<'_>) -> Vec<Finding> {
    let Some(config) = subject.config else {
        return Vec::new();
    };
    let guests = subject.guests();
    let own = guests.filter(|(_, guest)| guest.role == Role::Server);
    let own = own.map(|(_, guest)| guest.socket.as_path());
    let all = own.chain([config.control.socket.as_path()]);
    let listeners = subject.host.read("/proc/net/unix");
    let listeners = listeners.map(|text| listeners_of(&text));
    let mut found: BTreeMap<Wrong, Vec<String>> = BTreeMap::new();
    for path in all {
        let path = path.to_string_lossy().into_owned();
        let there = fs::symlink_metadata(subject.host.path(&path)).ok();
        let there = there.map(|file| file.file_type().is_socket());
        let count = listeners
            .as_ref()
            .map(|all| all.get(&path).copied().unwrap_or(0));
        if let Some(wrong) = Wrong::of(there, count) {
            found.entry(wrong).or_default().push(path);
        }
    }
    let found = found.into_iter();
    found.map(|(wrong, paths)| wrong.finding(&paths)).collect()
}

/// The number of listeners at each path.
fn listeners_of(text: &str) -> BTreeMap<String, usize> {
    let mut all = BTreeMap::new();
    for line in text.lines().skip(1) {
        // Num: RefCount Protocol Flags Type St Inode Path
        let mut words = line.split_ascii_whitespace();
        let flags = words
            .nth(3)
            .and_then(|word| u32::from_str_radix(word, 16).ok());
        let is_listening = flags.is_some_and(|flags| flags & LISTENS != 0);
        if let Some(path) = words.nth(3).filter(|_| is_listening) {
            *all.entry(path.to_owned()).or_default() += 1;
        }
    }
    all
}

/// What is wrong with a socket's file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Wrong {
    NoSocket,
    Removed,
    Replaced,
    Stale,
}

impl Wrong {
    /// `there`: whether the path exists, and whether it is a socket. `listeners`: the number of listeners on that path, if
    /// known.
    fn of(there: Option<bool>, listeners: Option<usize>) -> Option<Wrong> {
        match (there, listeners) {
            (Some(false), _) => Some(Wrong::NoSocket),
            (None, Some(1..)) => Some(Wrong::Removed),
            (Some(true), Some(2..)) => Some(Wrong::Replaced),
            (Some(true), Some(0)) => Some(Wrong::Stale),
            _ => None,
        }
    }

    fn finding(self, paths: &[String]) -> Finding {
        let shown = paths.join(", ");
        let (severity, found, cost, fix) = match self {
            Wrong::NoSocket => (
                Severity::Error,
                format!("{shown}: the file there is not a socket"),
                "The daemon does not start, or no client can connect there.",
                paths.iter().map(|path| format!("rm {path}")).collect(),
            ),
            Wrong::Removed => (
                Severity::Warning,
                format!("{shown}: a process listens there, but the file was removed"),
                "No front end can connect. A running daemon makes the socket again within seconds, if it has the rights.",
                vec!["crosspoint show ports   # shows the reason if it cannot be made".to_owned()],
            ),
            Wrong::Replaced => (
                Severity::Warning,
                format!("{shown}: two sockets listen under this name"),
                "New connections go to the later one, which may not be the switch.",
                paths
                    .iter()
                    .map(|path| format!("ss -xlp src {path}"))
                    .collect(),
            ),
            Wrong::Stale => (
                Severity::Note,
                format!("{shown}: no process listens there, in this network namespace"),
                "Front ends are refused until the daemon runs; it replaces the file when it starts.",
                vec!["systemctl start crosspoint".to_owned()],
            ),
        };
        OWN.finding(severity, "host", found, cost, fix)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners_are_told_from_connections() {
        let text = "Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 17 /run/a\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 18 /run/a\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 19 /run/b\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 20 /run/b\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 21\n";
        let all = listeners_of(text);
        assert_eq!(all.get("/run/a"), Some(&1));
        assert_eq!(all.get("/run/b"), Some(&2));
        assert_eq!(all.len(), 2);
    }
}
