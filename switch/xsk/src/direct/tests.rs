use std::fs::File;

use crosspoint_frame::Offload;
use crosspoint_memory::{GuestMemory, RegionSpec};

use super::*;

const SIZE: usize = 1 << 20;

/// A guest's memory with two regions, one of them at an unaligned offset in its file.
fn memory() -> (GuestMemory, Contiguous) {
    let table = || {
        let region = |(guest_address, mmap_offset): (u64, u64)| {
            let flags = rustix::fs::MemfdFlags::CLOEXEC;
            let file = File::from(rustix::fs::memfd_create("guest", flags).expect("memory"));
            file.set_len(SIZE as u64 + 8192).expect("memory");
            let spec = RegionSpec {
                guest_address,
                size: SIZE as u64,
                user_address: guest_address,
                mmap_offset,
            };
            (spec, file)
        };
        [(0, 0), (SIZE as u64 * 4, 0x234)].map(region)
    };
    let known = table();
    let copy = |(spec, file): &(RegionSpec, File)| (*spec, file.try_clone().expect("a file"));
    let memory = GuestMemory::map(known.iter().map(copy).collect()).expect("it is mapped");
    let run = memory.contiguous(DirectTx::OWN_LEN, &known);
    (memory, run.expect("it is mapped again"))
}

/// Pseudo-random small numbers (Marsaglia's xorshift).
fn next(state: &mut u64, below: usize) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state % below as u64) as usize
}

fn at(run: &Contiguous, desc: &libc::xdp_desc) -> Vec<u8> {
    assert!(desc.addr as usize + desc.len as usize <= run.len());
    let byte = |i: usize| run.base().wrapping_add(desc.addr as usize + i);
    // SAFETY: within the run, as asserted.
    (0..desc.len as usize)
        .map(|i| unsafe { byte(i).read_volatile() })
        .collect()
}

/// Wherever the pieces of a frame are: the kernel accepts each descriptor, together they are the frame, and the last
/// one is recognized by its address.
#[test]
fn descriptors_are_what_the_kernel_takes_and_make_the_frame() {
    let (memory, run) = memory();
    let mut slots = Slots {
        memory: run,
        zero_copy: false,
        finishes_checksums: false,
    };
    let (mut state, mut sent, mut direct) = (1, 0, 0);
    for round in 0..4000 {
        slots.zero_copy = round % 2 == 0;
        let len = 14 + next(&mut state, 9000);
        let count = 1 + next(&mut state, 4);
        let (mut pieces, mut frame) = (Vec::new(), Vec::new());
        for i in 0..count {
            let n = if i + 1 == count {
                len - frame.len()
            } else {
                next(&mut state, len - frame.len() + 1)
            };
            let region = SIZE as u64 * 4 * next(&mut state, 2) as u64;
            let address = region + next(&mut state, SIZE - n) as u64;
            let host = memory.translate(address, n as u32).expect("the guest's");
            let bytes: Vec<u8> = (0..n).map(|_| next(&mut state, 256) as u8).collect();
            // SAFETY: translated for this many bytes, which no other code uses; pieces may overlap, and then the
            // frame consists of the bytes written last.
            unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), host, n) };
            // SAFETY: as above, for as long as the burst.
            pieces.push(unsafe { Segment::new(host, n as u32) });
            frame.extend(bytes);
        }
        let whole: Vec<u8> = pieces
            .iter()
            .flat_map(|piece| {
                let mut bytes = vec![0; piece.len()];
                piece.read(&mut bytes);
                bytes
            })
            .collect();
        let mut burst = Burst::new();
        assert!(burst.push_segments(&pieces, Offload::default()));
        let slot = next(&mut state, DIRECT_FRAMES);
        let Some(filled) = slots.fill(slot as u16, &burst, &burst.frames()[0], HeaderOp::Keep)
        else {
            continue;
        };
        sent += 1;
        let descs = filled.descriptors();
        let most = if slots.zero_copy {
            ZERO_COPY_PIECES
        } else {
            MAX_PIECES
        };
        assert!(descs.len() <= most);
        let mut made = Vec::new();
        for (i, desc) in descs.iter().enumerate() {
            let (place, within) = (desc.addr as usize, desc.addr as usize % SLOT_LEN);
            assert!(desc.len > 0);
            assert!(within + desc.len as usize <= SLOT_LEN, "it crosses a page");
            assert!(slots.zero_copy || desc.len + METADATA_LEN <= FRAME_SIZE);
            let is_last = i + 1 == descs.len();
            assert_eq!(desc.options & libc::XDP_PKT_CONTD == 0, is_last);
            let is_ours = place < slots.memory.own();
            assert!(!is_ours || place / SLOT_LEN == slot);
            assert_eq!(is_ours && within >= TAIL_AT, is_last);
            direct += usize::from(!is_ours);
            made.extend(at(&slots.memory, desc));
        }
        assert!(made == whole, "round {round}");
    }
    assert!(sent > 3800 && direct > 2 * sent, "{sent} {direct}");
}
