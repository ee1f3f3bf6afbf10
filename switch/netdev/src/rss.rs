//! A NIC's RSS indirection table, which spreads received frames over queues (`ethtool -x` and `-X`).
//!
//! By ioctl: netlink can set the table only since Linux 6.17; the ioctl works in every kernel with ethtool.

use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsFd, AsRawFd};

use rustix::net::{AddressFamily, SocketType};

use crate::LinkError;

/// ETHTOOL_GRXRINGS, ETHTOOL_GRXFHINDIR and ETHTOOL_SRXFHINDIR.
const GET_RINGS: u32 = 0x2d;
const GET: u32 = 0x38;
const SET: u32 = 0x39;
/// The longest table that is accepted. The largest of the drivers in the kernel has 4096 entries.
const ENTRIES_MAX: u32 = 1 << 16;
const ASKING: &str = "asking for the RSS indirection table";
const SETTING: &str = "setting the RSS indirection table";

/// A NIC's RSS indirection table: a frame's hash, modulo the table's length, chooses an entry, and the entry is the
/// queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndirectionTable {
    entries: Vec<u32>,
}

impl IndirectionTable {
    /// Reads the table of interface `name`. Unsupported if the driver has none.
    pub fn of(name: &str) -> Result<IndirectionTable, LinkError> {
        let fail = |why| LinkError::new(ASKING, why);
        // struct ethtool_rxfh_indir: the command, the number of entries, the entries. With a number of 0, the kernel
        // returns the actual number.
        let mut head = [GET, 0];
        command(name, &mut head).map_err(fail)?;
        let len = head[1];
        if len == 0 || len > ENTRIES_MAX {
            return Err(fail(rustix::io::Errno::OPNOTSUPP.into()));
        }
        let mut words = vec![0; 2 + len as usize];
        words[..2].copy_from_slice(&[GET, len]);
        command(name, &mut words).map_err(fail)?;
        let entries = words.split_off(2);
        Ok(IndirectionTable { entries })
    }

    /// Returns a table of the same length that spreads evenly over `queues`, at least one.
    pub fn over(&self, queues: &[u32]) -> IndirectionTable {
        let entries = queues.iter().copied().cycle().take(self.entries.len());
        IndirectionTable {
            entries: entries.collect(),
        }
    }

    /// Sets the table of interface `name`.
    pub fn set(&self, name: &str) -> Result<(), LinkError> {
        let mut words = vec![SET, self.entries.len() as u32];
        words.extend(&self.entries);
        command(name, &mut words).map_err(|why| LinkError::new(SETTING, why))
    }

    /// Restores the table of interface `name`. If it is equal to the driver's default, resets to the default: an
    /// explicitly set table is not adapted when the number of queues changes, and prevents reducing it.
    pub fn restore(&self, name: &str) -> Result<(), LinkError> {
        if !self.is_drivers(name) {
            return self.set(name);
        }
        command(name, &mut [SET, 0]).map_err(|why| LinkError::new(SETTING, why))
    }

    /// Returns whether it is the drivers' default (ethtool_rxfh_indir_default()): round robin over all queues.
    fn is_drivers(&self, name: &str) -> bool {
        // struct ethtool_rxnfc, 192 bytes, whose third word is the number of rings.
        let mut words = [0; 48];
        words[0] = GET_RINGS;
        if command(name, &mut words).is_err() {
            return false;
        }
        // `data`, a u64 after the command and the flow type.
        let rings = u64::from_ne_bytes(join(words[2], words[3]));
        let rings: Vec<u32> = (0..rings.min(u64::from(ENTRIES_MAX)) as u32).collect();
        !rings.is_empty() && self.over(&rings) == *self
    }
}

fn join(low: u32, high: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&low.to_ne_bytes());
    bytes[4..].copy_from_slice(&high.to_ne_bytes());
    bytes
}

/// Executes an ethtool command on interface `name`: `words` is the command's structure, which begins with its number, and
/// into which the kernel writes the answer.
fn command(name: &str, words: &mut [u32]) -> io::Result<()> {
    if name.len() >= libc::IFNAMSIZ || name.contains('\0') {
        return Err(rustix::io::Errno::NODEV.into());
    }
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // SAFETY: plain bytes and a pointer: all zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
    // SAFETY: SIOCETHTOOL takes a `struct ifreq` whose data points to the command's structure. Its callers, all in this
    // module, make `words` as long as that: GET and SET are two words and as many entries as the second word gives (the
    // kernel writes no more entries than that, and none if it is 0), GET_RINGS is 48 words. The name ends with a zero
    // byte, since it is shorter than IFNAMSIZ. Both structures outlive the call.
    let rc = unsafe {
        libc::ioctl(
            socket.as_fd().as_raw_fd(),
            libc::SIOCETHTOOL as _,
            std::ptr::from_mut(&mut request),
        )
    };
    match rc {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_even_table_has_each_queue_as_often_as_the_others_and_no_queue_more() {
        for len in [1, 2, 7, 128, 2048] {
            let table = IndirectionTable {
                entries: vec![9; len],
            };
            for queues in [vec![0], vec![3, 1], vec![5, 6, 7], (0..64).collect()] {
                let spread = table.over(&queues).entries;
                assert_eq!(spread.len(), len);
                let count = |queue| spread.iter().filter(|entry| **entry == queue).count();
                let counts: Vec<usize> = queues.iter().map(|queue| count(*queue)).collect();
                assert_eq!(counts.iter().sum::<usize>(), len, "no queue but these");
                let (least, most) = (counts.iter().min(), counts.iter().max());
                assert!(most <= least.map(|least| least + 1).as_ref());
            }
        }
    }

    #[test]
    fn an_interface_without_a_table_says_that_it_is_not_supported() {
        let error = IndirectionTable::of("lo").expect_err("loopback has none");
        assert!(error.is_unsupported(), "{error}");
        let error = IndirectionTable::of("nowhere0").expect_err("there is no such interface");
        assert!(error.is_gone(), "{error}");
    }
}
