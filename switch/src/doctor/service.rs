//! The daemon as it runs, or as systemd would start it: its user, its groups, its umask.

use std::fmt;

use super::Host;
use super::guest_group::GUESTS;

/// Folders of units, the one that takes precedence first (systemd.unit(5)).
const UNIT_FOLDERS: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];
const UNIT: &str = "crosspoint.service";
/// The umask of a unit without `UMask=` (systemd.exec(5)).
const DEFAULT_UMASK: u32 = 0o022;

/// The users that may connect to a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Connect {
    Everybody,
    OwnerAndGroup,
    Owner,
}

impl fmt::Display for Connect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Connect::Everybody => "everybody",
            Connect::OwnerAndGroup => "its owner and group",
            Connect::Owner => "its owner",
        })
    }
}

/// A umask, and where it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Umask {
    /// Of a running daemon.
    Daemon(u32),
    /// Of the systemd unit; no daemon runs.
    Unit(u32),
    /// Of this process: there is neither a daemon nor a unit.
    Own(u32),
}

impl Umask {
    pub const fn bits(self) -> u32 {
        match self {
            Umask::Daemon(bits) | Umask::Unit(bits) | Umask::Own(bits) => bits,
        }
    }

    /// The words before its bits.
    pub const fn whose(self) -> &'static str {
        match self {
            Umask::Daemon(_) => "the daemon's umask",
            Umask::Unit(_) => "the unit's umask",
            Umask::Own(_) => "umask",
        }
    }

    /// The users that may connect to a socket made under this umask. Connecting takes permission to write to the socket;
    /// its mode is 777 without the bits of the umask.
    pub const fn may_connect(self) -> Connect {
        match self.bits() {
            bits if bits & 0o002 == 0 => Connect::Everybody,
            bits if bits & 0o020 == 0 => Connect::OwnerAndGroup,
            _ => Connect::Owner,
        }
    }
}

/// The daemon's identity.
pub(super) struct Service {
    pub umask: Umask,
    /// Its user. `None`: neither a daemon nor a unit was found.
    pub user: Option<String>,
    /// Its primary group.
    pub group: Option<String>,
    /// Its other groups.
    pub others: Vec<String>,
    /// Whether the host has the systemd unit.
    unit: bool,
}

impl Service {
    pub fn of(host: &Host) -> Service {
        let unit = unit_lines(host);
        daemon_status(host)
            .and_then(|status| Service::of_daemon(host, &status, unit.is_some()))
            .or_else(|| unit.map(|lines| Service::of_unit(host, &lines)))
            .unwrap_or_else(|| Service::unknown(host))
    }

    fn of_daemon(host: &Host, status: &str, unit: bool) -> Option<Service> {
        // Uid and Gid: the real one, the effective one, the saved one, that for files.
        let effective = |name| field(status, name)?.split_whitespace().nth(1)?.parse().ok();
        let groups = field(status, "Groups:").unwrap_or_default();
        let groups = groups.split_whitespace().filter_map(|id| id.parse().ok());
        Some(Service {
            umask: Umask::Daemon(umask_of(status)?),
            user: Some(user_name(host, effective("Uid:")?)),
            group: Some(group_name(host, effective("Gid:")?)),
            others: groups.map(|id| group_name(host, id)).collect(),
            unit,
        })
    }

    fn of_unit(host: &Host, lines: &[String]) -> Service {
        let last = |key: &str| lines.iter().rev().find_map(|line| line.strip_prefix(key));
        let bits = last("UMask=").and_then(|text| u32::from_str_radix(text.trim(), 8).ok());
        let user = last("User=").unwrap_or("root").trim().to_owned();
        let group = last("Group=").map_or_else(|| user.clone(), |group| group.trim().to_owned());
        // Several lines add up.
        let added = lines
            .iter()
            .filter_map(|line| line.strip_prefix("SupplementaryGroups="));
        let added = added.flat_map(str::split_whitespace).map(str::to_owned);
        let of_user = groups_with(host, &user);
        Service {
            umask: Umask::Unit(bits.unwrap_or(DEFAULT_UMASK)),
            user: Some(user),
            group: Some(group),
            others: added.chain(of_user).collect(),
            unit: true,
        }
    }

    fn unknown(host: &Host) -> Service {
        let own = host.read("/proc/self/status").unwrap_or_default();
        Service {
            umask: Umask::Own(umask_of(&own).unwrap_or(DEFAULT_UMASK)),
            user: None,
            group: None,
            others: Vec::new(),
            unit: false,
        }
    }

    /// Whether systemd starts the daemon, as a user other than root.
    pub fn is_systemd(&self) -> bool {
        self.unit && self.user.as_deref() != Some("root")
    }

    /// The commands that make a folder of guests' sockets as the unit does; without a unit the daemon runs as root, which
    /// owns the folder then.
    pub fn makes_folder(&self, host: &Host, folder: &str) -> Vec<String> {
        let owner = match &self.user {
            Some(user) if self.is_systemd() => format!(" -o {user}"),
            _ => String::new(),
        };
        let groups = host.read("/etc/group").unwrap_or_default();
        let is_known = groups.lines().any(|l| l.split(':').next() == Some(GUESTS));
        let group = (!is_known).then(|| format!("groupadd --system {GUESTS}"));
        let make = format!("install -d -m 2770{owner} -g {GUESTS} {folder}");
        group.into_iter().chain([make]).collect()
    }
}

/// The commands that add a line to the unit's section `[Service]`, in the drop-in `name`.
pub(super) fn drop_in(name: &str, line: &str) -> Vec<String> {
    let folder = format!("{}/{UNIT}.d", UNIT_FOLDERS[0]);
    vec![
        format!("mkdir -p {folder}"),
        format!("printf '[Service]\\n{line}\\n' > {folder}/{name}.conf"),
        "systemctl daemon-reload && systemctl restart crosspoint".to_owned(),
    ]
}

/// The rest of the line that begins with `name`.
fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name))
}

fn umask_of(status: &str) -> Option<u32> {
    u32::from_str_radix(field(status, "Umask:")?.trim(), 8).ok()
}

/// `/proc/PID/status` of a running daemon: a process `crosspoint` with workers, as commands have none.
fn daemon_status(host: &Host) -> Option<String> {
    let is_daemon = |id: &String| {
        let threads = format!("/proc/{id}/task");
        let is_worker = |thread: &String| {
            let name = host.read(&format!("{threads}/{thread}/comm"));
            name.is_some_and(|name| name.starts_with("worker-"))
        };
        host.read(&format!("/proc/{id}/comm")).as_deref() == Some("crosspoint")
            && host.list(&threads).iter().any(is_worker)
    };
    let id = host.processes().into_iter().find(is_daemon)?;
    host.read(&format!("/proc/{id}/status"))
}

/// The lines of the unit and of its drop-ins, later ones in force; `None`: there is no unit.
fn unit_lines(host: &Host) -> Option<Vec<String>> {
    let unit = UNIT_FOLDERS
        .iter()
        .find_map(|folder| host.read(&format!("{folder}/{UNIT}")))?;
    // A drop-in of a folder that takes precedence hides one of the same name.
    let mut parts = std::collections::BTreeMap::new();
    for folder in UNIT_FOLDERS {
        let folder = format!("{folder}/{UNIT}.d");
        let names = host.list(&folder).into_iter();
        for name in names.filter(|name| name.ends_with(".conf")) {
            let text = host.read(&format!("{folder}/{name}")).unwrap_or_default();
            parts.entry(name).or_insert(text);
        }
    }
    let all = [unit].into_iter().chain(parts.into_values());
    Some(
        all.flat_map(|text| {
            text.lines()
                .map(|line| line.trim().to_owned())
                .collect::<Vec<_>>()
        })
        .collect(),
    )
}

/// The name of the number `id` in a file such as `/etc/passwd`; the number, if it has none.
fn name_of(host: &Host, file: &str, id: u32) -> String {
    let text = host.read(file).unwrap_or_default();
    let is_it = |line: &&str| line.split(':').nth(2) == Some(id.to_string().as_str());
    let line = text.lines().find(is_it);
    let name = line.and_then(|line| line.split(':').next());
    name.map_or_else(|| id.to_string(), str::to_owned)
}

pub(super) fn user_name(host: &Host, id: u32) -> String {
    name_of(host, "/etc/passwd", id)
}

pub(super) fn group_name(host: &Host, id: u32) -> String {
    name_of(host, "/etc/group", id)
}

/// The groups that `/etc/group` puts the user into.
fn groups_with(host: &Host, user: &str) -> Vec<String> {
    let text = host.read("/etc/group").unwrap_or_default();
    let has_user = |line: &&str| members(line).any(|one| one == user);
    let names = text.lines().filter(has_user);
    names
        .filter_map(|line| line.split(':').next().map(str::to_owned))
        .collect()
}

/// The members in a line of `/etc/group`.
pub(super) fn members(line: &str) -> impl Iterator<Item = &str> {
    let list = line.split(':').nth(3).unwrap_or_default();
    list.split(',').map(str::trim).filter(|one| !one.is_empty())
}
