//! Memory nodes (NUMA) of cores, network interfaces and guest memory. `None` if the kernel knows none.

use std::ffi::{c_int, c_long, c_void};
use std::fs;
use std::io;
use std::path::Path;

/// The memory node of a core.
pub(super) fn of_core(core: usize) -> Option<u32> {
    let entries = fs::read_dir(format!("/sys/devices/system/cpu/cpu{core}")).ok()?;
    let nodes = entries.flatten().filter_map(|entry| {
        let name = entry.file_name();
        name.to_str()?.strip_prefix("node")?.parse().ok()
    });
    nodes.min()
}

/// The memory node of an interface's device; a software device has none.
pub(crate) fn of_interface(name: &str) -> Option<u32> {
    let path = Path::new("/sys/class/net").join(name);
    let text = fs::read_to_string(path.join("device/numa_node")).ok()?;
    // -1 if the firmware does not report it.
    text.trim().parse().ok()
}

/// The memory node of the page at `address` of this process, if the page is present.
pub(crate) fn of_page(address: usize) -> Option<u32> {
    let pages = [address as *mut c_void];
    let mut status: [c_int; 1] = [-1];
    let (process, count, flags): (c_int, usize, c_int) = (0, pages.len(), 0);
    // SAFETY: without a list of nodes move_pages(2) moves nothing and touches no page; it reads one pointer of `pages`,
    // which it looks up in this process's page table and does not follow, and writes one number of `status`. Both
    // arrays live through the call.
    let done: c_long = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            process,
            count,
            pages.as_ptr(),
            std::ptr::null::<c_int>(),
            status.as_mut_ptr(),
            flags,
        )
    };
    match (done, status) {
        // Negative: an error for the page, for instance that it is not present.
        (0, [node]) => u32::try_from(node).ok(),
        _ => {
            let error = io::Error::last_os_error();
            tracing::debug!(%error, "the kernel tells no memory node");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the kernel knows memory nodes at all; if so, there is a node 0.
    fn has_nodes() -> bool {
        Path::new("/sys/devices/system/node/node0").exists()
    }

    #[test]
    fn a_core_has_the_node_that_lists_it() {
        let core = core_affinity::get_core_ids().expect("cores")[0].id;
        let node = of_core(core);
        assert_eq!(node.is_some(), has_nodes());
        if let Some(node) = node {
            assert!(Path::new(&format!("/sys/devices/system/node/node{node}/cpu{core}")).exists());
        }
        assert_eq!(of_core(1 << 20), None);
    }

    #[test]
    fn a_page_in_memory_has_a_node_and_one_that_is_not_there_has_none() {
        let here = Box::new(7u64);
        let node = of_page(std::ptr::from_ref(&*here).addr());
        if has_nodes() {
            let node = node.expect("the page has just been written");
            assert!(Path::new(&format!("/sys/devices/system/node/node{node}")).exists());
        }
        assert_eq!(of_page(0), None);
    }

    #[test]
    fn an_interface_without_a_device_has_no_node() {
        assert_eq!(of_interface("lo"), None);
        assert_eq!(of_interface("no-such-device"), None);
    }
}
