//! Arithmetic on operands that a guest chooses: every case, or every edge, is compared with arithmetic that cannot
//! overflow.

use std::fs::File;
use std::os::fd::OwnedFd;

use crosspoint_memory::{GuestMemory, RegionSpec};
use crosspoint_vring::reserve::Reserve;

const PAGE: u64 = 0x1000;

fn file(len: u64) -> File {
    let fd: OwnedFd =
        rustix::fs::memfd_create("arithmetic", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let file = File::from(fd);
    file.set_len(len).unwrap();
    file
}

/// Regions at the lowest and highest addresses, two adjacent ones, and a separate one.
#[test]
fn an_address_is_translated_if_and_only_if_one_region_holds_it_all() {
    let starts = [0, 3 * PAGE, 4 * PAGE, 1 << 63, u64::MAX - PAGE];
    let spec = |start: &u64| RegionSpec {
        guest_address: *start,
        size: PAGE,
        user_address: *start,
        mmap_offset: 0,
    };
    let table = starts
        .iter()
        .map(|start| (spec(start), file(PAGE)))
        .collect();
    let memory = GuestMemory::map(table).unwrap();
    let around = |at: u64| (-3i64..=3).map(move |d| at.wrapping_add_signed(d));
    let mut addresses: Vec<u64> = starts.iter().flat_map(|at| around(*at)).collect();
    addresses.extend(starts.iter().flat_map(|at| around(at.wrapping_add(PAGE))));
    addresses.extend(around(u64::MAX).chain(around(1 << 32)));
    let lens = [
        1,
        2,
        3,
        4,
        16,
        4093,
        4094,
        4095,
        4096,
        4097,
        0x2000,
        1 << 31,
        u32::MAX,
    ];
    for address in addresses {
        for len in lens {
            let end = u128::from(address) + u128::from(len);
            let holds =
                |start: &&u64| **start <= address && end <= u128::from(**start) + u128::from(PAGE);
            let expected = starts.iter().any(|start| holds(&start));
            assert_eq!(
                memory.translate(address, len).is_some(),
                expected,
                "{address:#x}+{len:#x}"
            );
            let by_user = memory.translate_user(address, len.into());
            assert_eq!(by_user.is_some(), expected, "user {address:#x}+{len:#x}");
        }
    }
}

/// All 65536 indices that a driver can write, from positions where 16 bits wrap and where they do not.
#[test]
fn the_available_index_is_believed_up_to_the_rings_size_and_no_further() {
    for size in [1, 2, 8, 256, 32_768] {
        for base in [0u64, 1, 255, 32_767, 32_768, 65_535, 1 << 40] {
            let reserve = Reserve::new(size, base, 1);
            for avail in 0..=u16::MAX {
                let ahead = avail.wrapping_sub(base as u16);
                let expected = (ahead <= size).then_some(usize::from(ahead));
                let got = reserve.available(base, avail);
                assert_eq!(got, expected, "size {size}, base {base}, index {avail}");
            }
        }
    }
}
