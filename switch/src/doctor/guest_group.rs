//! The group of the guests' sockets, where systemd runs the daemon as an ordinary user.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crosspoint_config::{Role, VhostPort};

use super::service::{self, Service, group_name, members};
use super::subject::Subject;
use super::{Check, Finding, Host, Severity};

const GROUP: Check = Check {
    id: "guest-group",
    looks_at: "Where systemd runs the daemon as an ordinary user: the group of guests' sockets (`socket_group`, or that of the folder): whether it has members besides the daemon, gives no access to the control socket, and the daemon may give its sockets to it",
};

pub(super) const CHECKS: &[Check] = &[GROUP];

/// The group of users that may attach guests, which the package makes.
pub(super) const GUESTS: &str = "crosspoint-guests";
/// The folder that the unit makes for guests' sockets.
pub(super) const GUESTS_FOLDER: &str = "/run/crosspoint/guests";
const SETGID: u32 = 0o2000;

/// The group of a port's socket.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Group {
    name: String,
    /// Whether `socket_group` sets it: only then must the daemon be in it.
    is_set: bool,
}

pub(super) fn check(subject: &Subject<'_>) -> Vec<Finding> {
    let service = Service::of(subject.host);
    if !service.is_systemd() {
        return Vec::new();
    }
    let mut groups: BTreeMap<Group, Vec<&str>> = BTreeMap::new();
    let own = subject
        .guests()
        .filter(|(_, guest)| guest.role == Role::Server);
    for (name, guest) in own {
        if let Some(group) = group_of(subject.host, &service, guest) {
            groups.entry(group).or_default().push(name);
        }
    }
    let groups = groups.into_iter();
    groups
        .filter_map(|(group, ports)| examine(subject.host, &service, &group, &ports.join(", ")))
        .collect()
}

/// The group that a port's socket has; `None`: its folder is not there, and is not the unit's.
fn group_of(host: &Host, service: &Service, guest: &VhostPort) -> Option<Group> {
    if let Some(group) = &guest.access.group {
        let id = group.parse().ok();
        let name = id.map_or_else(|| group.clone(), |id| group_name(host, id));
        return Some(Group { name, is_set: true });
    }
    let folder = guest.socket.parent().unwrap_or(Path::new("/"));
    let name = match fs::metadata(host.path(&folder.to_string_lossy())) {
        Ok(found) if found.mode() & SETGID != 0 => group_name(host, found.gid()),
        Ok(_) => service.group.clone()?,
        Err(_) if folder == Path::new(GUESTS_FOLDER) => GUESTS.to_owned(),
        Err(_) => return None,
    };
    Some(Group {
        name,
        is_set: false,
    })
}

fn warn(found: String, cost: &str, fix: Vec<String>) -> Option<Finding> {
    Some(GROUP.finding(Severity::Warning, "host", found, cost, fix))
}

/// `None`: this host does not have the group of a `socket_group`, which another check reports.
fn examine(host: &Host, service: &Service, group: &Group, ports: &str) -> Option<Finding> {
    let user = service.user.as_deref().unwrap_or("crosspoint");
    let Group { name, is_set } = group;
    let found = format!("sockets of {ports} belong to group {name}");
    if service.group.as_ref() == Some(name) {
        return warn(
            format!("{found}, the daemon's own"),
            "A user that may attach a guest may also use the control socket, and define ports in ports_dir.",
            vec![format!(
                "# put these sockets into {GUESTS_FOLDER}, or set socket_group"
            )],
        );
    }
    let text = host.read("/etc/group").unwrap_or_default();
    let mut lines = text.lines();
    let line = lines.find(|line| line.split(':').next() == Some(name));
    if line.is_none() && *is_set {
        return None;
    }
    if *is_set && !service.others.contains(name) {
        return warn(
            format!("{found}, and user {user} is not in it"),
            "The daemon may not give a socket to a group that it is not in: the ports cannot be opened.",
            service::drop_in("groups", &format!("SupplementaryGroups={name}")),
        );
    }
    if line.is_some_and(|line| has_other_users(host, line, user)) {
        return Some(GROUP.ok("host", found));
    }
    Some(GROUP.finding(
        Severity::Note,
        "host",
        format!("{found}, which has no other member"),
        "Only root and the daemon's user may connect: front ends of other users are refused.",
        vec![format!(
            "adduser libvirt-qemu {name}   # or the user of your front ends; then restart them"
        )],
    ))
}

/// Whether a user other than the daemon's is in the group of this line of `/etc/group`: as its member, or with it as primary
/// group.
fn has_other_users(host: &Host, line: &str, user: &str) -> bool {
    let id = line.split(':').nth(2);
    let users = host.read("/etc/passwd").unwrap_or_default();
    let mut primary = users.lines().filter(|user| user.split(':').nth(3) == id);
    members(line).any(|one| one != user) || primary.any(|one| one.split(':').next() != Some(user))
}
