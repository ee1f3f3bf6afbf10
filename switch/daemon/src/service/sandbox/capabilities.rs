//! Capabilities: those that the daemon needs stay, in every set and every thread that controls; workers keep none.

use crosspoint_config::{Config, KeptCapability, PortKind};
use rustix::io;
use rustix::process::{Gid, getgroups};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
    clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
    set_thread_groups,
};

use crate::ports::vhost::group_number;

/// What the daemon needs: NET_ADMIN for interfaces and XDP, NET_RAW for AF_XDP sockets, BPF to load the XDP program, IPC_LOCK
/// for memory that a NIC reads and writes.
const NEEDED: CapabilitySet = CapabilitySet::NET_ADMIN
    .union(CapabilitySet::NET_RAW)
    .union(CapabilitySet::BPF)
    .union(CapabilitySet::IPC_LOCK);
/// What the helper process needs: to find network namespaces, to enter them, and to open sockets in them.
const OF_HELPER: CapabilitySet = CapabilitySet::NET_ADMIN
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::SYS_PTRACE);

/// Whether this thread may enter other network namespaces.
pub(super) fn may_enter_namespaces() -> bool {
    capabilities(None).is_ok_and(|now| now.effective.contains(CapabilitySet::SYS_ADMIN))
}

/// Gives up what the daemon does not need. The threads that this one starts later begin with the same.
pub(super) fn keep_needed(kept: &[KeptCapability]) -> io::Result<()> {
    let kept = kept.iter().map(|one| match one {
        KeptCapability::Chown => CapabilitySet::CHOWN,
        KeptCapability::DacOverride => CapabilitySet::DAC_OVERRIDE,
        KeptCapability::Fowner => CapabilitySet::FOWNER,
    });
    keep(kept.fold(NEEDED, CapabilitySet::union))
}

/// Gives up what the helper process does not need.
pub(super) fn keep_for_helper() -> io::Result<()> {
    keep(OF_HELPER)
}

fn keep(wanted: CapabilitySet) -> io::Result<()> {
    let now = capabilities(None)?;
    // Without CAP_SETPCAP, the process that started this one has decided about this set.
    if now.effective.contains(CapabilitySet::SETPCAP) {
        for one in (0..u64::BITS).map(|number| CapabilitySet::from_bits_retain(1 << number)) {
            // An error: the kernel does not know the number.
            let is_there = capability_is_in_bounding_set(one).unwrap_or(false);
            if is_there && !wanted.contains(one) {
                remove_capability_from_bounding_set(one)?;
            }
        }
    }
    // Nothing is executed that could inherit them.
    clear_ambient_capability_set()?;
    let left = now.permitted.intersection(wanted);
    set_capabilities(
        None,
        CapabilitySets {
            effective: left,
            permitted: left,
            inheritable: CapabilitySet::empty(),
        },
    )
}

/// Gives up all capabilities of this thread.
pub(super) fn keep_none() -> io::Result<()> {
    set_capabilities(
        None,
        CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        },
    )
}

/// Joins the groups of ports' `socket_group`, if this process may: then giving them their sockets takes no capability.
pub(super) fn join_socket_groups(config: &Config) -> io::Result<()> {
    if !capabilities(None)?
        .effective
        .contains(CapabilitySet::SETGID)
    {
        return Ok(());
    }
    let names = config.ports.iter().filter_map(|port| match &port.kind {
        PortKind::Vhost(guest) => guest.access.group.as_deref(),
        PortKind::Xdp(_) => None,
    });
    let now = getgroups()?;
    let mut groups: Vec<Gid> = names.filter_map(group_number).collect();
    groups.sort_unstable_by_key(|group| group.as_raw());
    groups.dedup();
    groups.retain(|group| !now.contains(group));
    match groups.is_empty() {
        true => Ok(()),
        false => set_thread_groups(&[now, groups].concat()),
    }
}
