//! The classic pcap format: what testpmd's net_pcap ports read and write.

use std::fs;
use std::path::Path;

/// Writes frames.
pub fn write(path: &Path, frames: &[Vec<u8>]) {
    let mut bytes = Vec::new();
    for word in [0xa1b2_c3d4, 4 << 16 | 2, 0, 0, 65535, 1_u32] {
        bytes.extend(word.to_le_bytes());
    }
    for frame in frames {
        for word in [0, 0, frame.len() as u32, frame.len() as u32] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(frame);
    }
    fs::write(path, bytes).expect("the pcap file is written");
}

/// Reads frames; those that are complete, since the file may be growing.
pub fn read(path: &Path) -> Vec<Vec<u8>> {
    let bytes = fs::read(path).unwrap_or_default();
    let mut rest = bytes.get(24..).unwrap_or_default();
    let mut frames = Vec::new();
    while let Some((head, tail)) = rest.split_at_checked(16) {
        let len = u32::from_le_bytes([head[8], head[9], head[10], head[11]]) as usize;
        let Some((frame, tail)) = tail.split_at_checked(len) else {
            break;
        };
        frames.push(frame.to_vec());
        rest = tail;
    }
    frames
}
