//! Tests of guest memory.

use crosspoint_guest::{Guest, GuestMemory, GuestOptions, MemoryError, RegionLayout};
use std::sync::atomic::Ordering::Relaxed;

fn region(guest_base: u64, len: usize) -> RegionLayout {
    RegionLayout {
        guest_base,
        len,
        huge_pages: false,
    }
}

#[test]
fn regions_that_overlap_or_wrap_or_are_empty_are_refused() {
    for layout in [
        vec![],
        vec![region(0, 0)],
        vec![region(0, 8192), region(4096, 4096)],
        vec![region(u64::MAX - 4095, 4096), region(u64::MAX - 8191, 8192)],
        vec![region(u64::MAX - 4000, 4096)],
    ] {
        assert!(
            matches!(GuestMemory::new(&layout), Err(MemoryError::BadLayout)),
            "{layout:x?}"
        );
    }
}

#[test]
fn bytes_are_found_at_their_guest_address_in_the_file_of_their_region() {
    let memory = GuestMemory::new(&[region(0x1000, 4096), region(1 << 40, 8192)]).unwrap();
    memory.write((1 << 40) + 5000, b"hello").unwrap();
    let mut bytes = [0; 5];
    rustix::io::pread(memory.regions()[1].file(), &mut bytes, 5000).unwrap();
    assert_eq!(&bytes, b"hello");
    assert_eq!(
        memory.user_address((1 << 40) + 5000).unwrap(),
        memory.regions()[1].user_address() + 5000
    );
}

#[test]
fn nothing_reaches_beyond_a_region() {
    let memory = GuestMemory::new(&[region(0x1000, 4096), region(0x2000, 4096)]).unwrap();
    for (address, len) in [
        (0xfff, 1),
        (0x1fff, 2),
        (0x3000, 1),
        (u64::MAX, 1),
        (0x1000, usize::MAX),
    ] {
        assert!(
            memory.window(address, len).is_err(),
            "{address:#x}+{len:#x}"
        );
    }
    assert!(memory.write(0x1fff, &[0; 2]).is_err());
    assert!(memory.read(0x1fff, &mut [0; 2]).is_err());
    let window = memory.window(0x1ff0, 16).unwrap();
    assert!(std::panic::catch_unwind(|| window.view().write(15, &[0; 2])).is_err());
    assert!(std::panic::catch_unwind(|| window.view().load_u16(15, Relaxed)).is_err());
    assert!(
        std::panic::catch_unwind(|| window.view().load_u16(3, Relaxed)).is_err(),
        "misaligned"
    );
}

#[test]
fn after_truncation_others_lose_the_tail_and_the_guest_goes_on() {
    let mut guest = Guest::new(GuestOptions::default()).unwrap();
    guest.start(1 << 32).unwrap();
    assert_eq!(guest.send(0, &[&[7; 60]]).unwrap(), 1);
    guest.memory().truncate(0, 4096).unwrap();
    let file = guest.memory().regions()[0].file();
    assert_eq!(rustix::fs::fstat(file).unwrap().st_size, 4096);
    let ring = guest.transmit_queue(0).unwrap().ring();
    assert_eq!(ring.avail_idx(), 1, "the guest's own view is unchanged");
    assert_eq!(guest.send(0, &[&[7; 60]]).unwrap(), 1);
}
