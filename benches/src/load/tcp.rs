//! TCP frames like Linux's: checksum left to the device, time stamps, and a different payload in each frame.

use crosspoint_packet::checksum::{fold, sum};

/// Ethernet, IPv4, TCP with time stamps.
pub const HEADERS_LEN: usize = 66;
/// Payload of a segment that fills an Ethernet frame of 1514 bytes.
pub const MSS: usize = 1448;
/// Offset of the TCP header: `csum_start`.
pub const TCP_AT: usize = 34;
/// Offset of its checksum, relative to the header: `csum_offset`.
pub const CHECKSUM_OFFSET: usize = 16;
/// Offset of IPv4's identification, which holds the frame's number here.
pub const ID_AT: usize = 18;
/// Offset of the sequence number.
pub const SEQUENCE_AT: usize = 38;
/// Length without time stamps, for frames shorter than [`HEADERS_LEN`].
const HEADERS_LEN_MIN: usize = 54;
const IP_AT: usize = 14;

/// A frame of `len` bytes, at least 54. Its checksum field holds the pseudo-header's sum, as with `NEEDS_CSUM`.
pub fn frame(len: usize, source: [u8; 6], destination: [u8; 6], id: u16) -> Vec<u8> {
    let mut frame = [&destination[..], &source, &[0x08, 0x00]].concat();
    frame.extend(ipv4((len - IP_AT) as u16, id));
    let headers_len = if len < HEADERS_LEN {
        HEADERS_LEN_MIN
    } else {
        HEADERS_LEN
    };
    let words = ((headers_len - TCP_AT) / 4) as u8;
    frame.extend([0xc0, 0x00, 0x14, 0x51]); // from port 49152 to 5201
    frame.extend([0; 8]); // sequence, acknowledgement
    frame.extend([words << 4, 0x10, 0x01, 0xf6]); // ACK; window
    let pseudo = pseudo_header_sum(&frame, len);
    frame.extend(pseudo.to_be_bytes());
    frame.extend([0; 2]);
    if headers_len == HEADERS_LEN {
        frame.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    }
    let mut state = u64::from(id) + 1;
    while frame.len() < len {
        // xorshift: bytes that differ between frames and positions.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let bytes = state.to_le_bytes();
        frame.extend(&bytes[..(len - frame.len()).min(8)]);
    }
    frame
}

fn ipv4(total_len: u16, id: u16) -> [u8; 20] {
    let mut header = [0; 20];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&total_len.to_be_bytes());
    header[4..6].copy_from_slice(&id.to_be_bytes());
    header[6] = 0x40; // do not fragment
    header[8..10].copy_from_slice(&[64, 6]);
    header[12..16].copy_from_slice(&[10, 0, 0, 1]);
    header[16..20].copy_from_slice(&[10, 0, 0, 2]);
    let checksum = !fold(sum(&header, 0));
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    header
}

fn pseudo_header_sum(frame: &[u8], len: usize) -> u16 {
    let addresses = sum(&frame[IP_AT + 12..IP_AT + 20], 0);
    let rest = [6, (len - TCP_AT) as u16].map(u16::to_be_bytes).concat();
    fold(sum(&rest, addresses))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_completed_frame_has_the_right_checksum() {
        for len in [60, 66, 1514, 65226] {
            let mut frame = frame(len, [2; 6], [4; 6], 7);
            assert_eq!(frame.len(), len);
            let at = TCP_AT + CHECKSUM_OFFSET;
            let checksum = !fold(sum(&frame[TCP_AT..], 0));
            frame[at..at + 2].copy_from_slice(&checksum.to_be_bytes());
            let pseudo = pseudo_header_sum(&frame, len);
            let all = sum(&frame[TCP_AT..], sum(&pseudo.to_be_bytes(), 0));
            assert_eq!(fold(all), 0xffff);
        }
    }
}
