//! The folders of the guests' sockets, and which users can open the sockets in them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use crosspoint_config::Role;
use crosspoint_config::limits::CONTROL_SOCKET_DEFAULT;

use super::guest_group::GUESTS_FOLDER;
use super::service::{self, Connect, Service, Umask, group_name, user_name};
use super::subject::{Subject, counted};
use super::{Check, Finding, Severity};

const FOLDER: Check = Check {
    id: "socket-folder",
    looks_at: "The folders of guests' sockets: whether they exist, and which users may enter them and connect; and whether the folder of the control socket exists. The umask is that of the running daemon, or of the systemd unit, or of this process",
};
const PEER: Check = Check {
    id: "front-end-socket",
    looks_at: "The sockets of ports with `role = \"client\"`: whether front ends have made them",
};

const GROUP: Check = Check {
    id: "socket-group",
    looks_at: "The groups of ports with `socket_group`; reported only if this host does not have one",
};
const METRICS: Check = Check {
    id: "metrics-address",
    looks_at: "The address of `[metrics] listen`; reported only if this host does not have it",
};

pub(super) const CHECKS: &[Check] = &[FOLDER, GROUP, PEER, METRICS];

/// Bits of a file's mode.
const STICKY: u32 = 0o1000;
const OTHERS_WRITE: u32 = 0o002;
const OTHERS_ENTER: u32 = 0o001;
const GROUP_ENTER: u32 = 0o010;

pub(super) fn check(subject: &Subject<'_>) -> Vec<Finding> {
    let service = Service::of(subject.host);
    let mut folders: BTreeMap<&Path, (u64, bool)> = BTreeMap::new();
    let mut absent = Vec::new();
    for (name, guest) in subject.guests() {
        match guest.role {
            Role::Server => {
                let folder = guest.socket.parent().unwrap_or(Path::new("/"));
                let (ports, has_modes) = folders.entry(folder).or_default();
                *ports += 1;
                *has_modes |= guest.access.mode.is_some();
            }
            Role::Client if !is_socket(subject, &guest.socket) => absent.push(name),
            Role::Client => {}
        }
    }
    let folders = folders.into_iter();
    let mut findings: Vec<Finding> = folders
        .map(|(folder, (ports, has_modes))| of_folder(subject, &service, folder, ports, has_modes))
        .collect();
    findings.extend(of_control(subject));
    findings.extend(of_groups(subject));
    if !absent.is_empty() {
        findings.push(PEER.finding(
            Severity::Note,
            "host",
            format!("no front end listens yet for {}", absent.join(", ")),
            "These ports wait; frames for them are dropped (port_down).",
            vec!["# start the front ends".to_owned()],
        ));
    }
    findings.extend(of_metrics(subject));
    findings
}

/// The folder of the control socket, if it is missing. The usual one is made by the unit or, at each start, by the daemon.
fn of_control(subject: &Subject<'_>) -> Option<Finding> {
    let folder = subject.config?.control.socket.parent()?;
    let usual = Path::new(CONTROL_SOCKET_DEFAULT).parent();
    let shown = folder.to_string_lossy();
    if Some(folder) == usual || subject.host.path(&shown).exists() {
        return None;
    }
    Some(FOLDER.finding(
        Severity::Warning,
        &shown,
        "it does not exist, though [control] socket is there",
        "The daemon makes it when it starts, and leaves it there; it does not start if it may not. If the path is mistyped, commands need --socket.",
        vec![format!("install -d -m 755 {shown}")],
    ))
}

/// Groups that no line of /etc/group has. A number needs none.
fn of_groups(subject: &Subject<'_>) -> Option<Finding> {
    let groups = subject.host.read("/etc/group").unwrap_or_default();
    let is_known = |group: &str| {
        let mut names = groups.lines().filter_map(|line| line.split(':').next());
        group.parse::<u32>().is_ok() || names.any(|name| name == group)
    };
    let absent: BTreeSet<&str> = subject
        .guests()
        .filter_map(|(_, guest)| guest.access.group.as_deref())
        .filter(|group| !is_known(group))
        .collect();
    let first = absent.first()?;
    let all: Vec<&str> = absent.iter().copied().collect();
    Some(GROUP.finding(
        Severity::Error,
        "host",
        format!(
            "socket_group names what this host has no group for: {}",
            all.join(", ")
        ),
        "The daemon does not start, or the port is not opened.",
        vec![format!(
            "groupadd --system {first}    # or name another group"
        )],
    ))
}

/// Whether metrics can be served. Whether another program has the port is not checked, since it may be the running daemon.
fn of_metrics(subject: &Subject<'_>) -> Option<Finding> {
    let address = subject.config?.metrics.listen?;
    let error = TcpListener::bind((address.ip(), 0)).err()?;
    Some(METRICS.finding(
        Severity::Warning,
        "host",
        format!("[metrics] listen is {address}: {error}"),
        "The metrics are not served until the host has the address; ports work without them.",
        vec![format!(
            "# give an interface the address {}, or configure another address",
            address.ip()
        )],
    ))
}

fn is_socket(subject: &Subject<'_>, path: &Path) -> bool {
    let found = fs::metadata(subject.host.path(&path.to_string_lossy()));
    found.is_ok_and(|file| file.file_type().is_socket())
}

fn sockets_of(ports: u64) -> String {
    match ports {
        1 => "1 port has its socket".to_owned(),
        _ => format!("{ports} ports have their sockets"),
    }
}

/// The finding about a folder that holds `ports` sockets; `has_modes`: whether one of them has a `socket_mode`.
fn of_folder(
    subject: &Subject<'_>,
    service: &Service,
    folder: &Path,
    ports: u64,
    has_modes: bool,
) -> Finding {
    let shown = folder.to_string_lossy();
    let Ok(found) = fs::metadata(subject.host.path(&shown)) else {
        if service.is_systemd() && folder == Path::new(GUESTS_FOLDER) {
            let found = format!(
                "{}; the unit makes the folder when it starts",
                counted(ports, "socket")
            );
            return FOLDER.ok(&shown, found);
        }
        return FOLDER.finding(
            Severity::Error,
            &shown,
            format!("it does not exist, though {} there", sockets_of(ports)),
            "The daemon makes it as its own user and umask say: front ends of other users may be kept out. If the path is mistyped, no front end comes.",
            service.makes_folder(subject.host, &shown),
        );
    };
    let mode = found.mode();
    let owner = user_name(subject.host, found.uid());
    let group = group_name(subject.host, found.gid());
    if mode & OTHERS_WRITE != 0 && mode & STICKY == 0 {
        return FOLDER.finding(
            Severity::Warning,
            &shown,
            format!("every user can write there (mode {:o})", mode & 0o7777),
            "Any user can put a socket in a guest's place, and read and forge its frames.",
            vec![format!("chmod o-w {shown}")],
        );
    }
    let enter = match mode {
        mode if mode & OTHERS_ENTER != 0 => "everybody".to_owned(),
        mode if mode & GROUP_ENTER != 0 => format!("{owner} and group {group}"),
        _ => owner,
    };
    let (connect, who) = (service.umask.may_connect(), service.umask.whose());
    let umask = service.umask.bits();
    let but = if has_modes {
        ", but for a port's socket_mode"
    } else {
        ""
    };
    let found = format!(
        "{}; {enter} may enter, and with {who} {umask:03o} {connect} may connect{but}",
        counted(ports, "socket")
    );
    if service.is_systemd() && !has_modes && connect != Connect::OwnerAndGroup {
        return unfit_umask(&shown, found, service.umask);
    }
    FOLDER.ok(&shown, found)
}

/// The packaged unit's umask lets the group of guests connect, and no other user.
fn unfit_umask(shown: &str, found: String, umask: Umask) -> Finding {
    let cost = match umask.may_connect() {
        Connect::Everybody => "Any user that may enter the folder can be a port's guest.",
        _ => "Front ends of users other than the daemon's and root are refused.",
    };
    let fix = service::drop_in("umask", "UMask=0007");
    FOLDER.finding(Severity::Warning, shown, found, cost, fix)
}
