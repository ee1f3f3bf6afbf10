//! Frames that tests make themselves.

/// A MAC address by number: locally administered.
pub const fn mac(number: u8) -> [u8; 6] {
    [2, 0, 0, 0, 9, number]
}

/// A frame of `len` bytes whose payload holds `number`, and differs in every byte from those of adjacent numbers.
pub fn frame(to: [u8; 6], from: [u8; 6], number: u32, len: usize) -> Vec<u8> {
    let head = [&to[..], &from[..], &[0x88, 0xb5], &number.to_be_bytes()].concat();
    let fill = (head.len()..len).map(|at| (at as u32).wrapping_mul(31).wrapping_add(number) as u8);
    head.iter().copied().chain(fill).collect()
}

/// `frame` with the tag of VLAN `id`.
pub fn tagged(frame: &[u8], id: u16) -> Vec<u8> {
    [&frame[..12], &[0x81, 0x00], &id.to_be_bytes(), &frame[12..]].concat()
}

/// Like [`frame`], in UDP over IPv4; `flow` is its source port, at [`FLOW_AT`].
pub fn udp(to: [u8; 6], from: [u8; 6], flow: u16, number: u32, len: usize) -> Vec<u8> {
    let mut bytes = frame(to, from, number, len);
    let ip_len = (len - 14) as u16;
    let mut head = vec![0x08, 0x00, 0x45, 0];
    head.extend(ip_len.to_be_bytes());
    head.extend([
        0, 0, 0x40, 0, 64, 17, 0, 0, 10, 8, 0, from[5], 10, 8, 0, to[5],
    ]);
    let sum = head[2..]
        .chunks(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum::<u32>();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    head[12..14].copy_from_slice(&sum.to_be_bytes());
    head.extend(flow.to_be_bytes());
    head.extend([0x1b, 0x58]);
    head.extend((ip_len - 20).to_be_bytes());
    head.extend([0, 0]);
    head.extend(number.to_be_bytes());
    bytes[12..12 + head.len()].copy_from_slice(&head);
    bytes
}

/// Offset of the flow in a frame of [`udp`].
pub const FLOW_AT: usize = 34;
/// Offset of the number in a frame of [`udp`].
pub const NUMBER_AT: usize = 42;

/// The flow of a frame of [`udp`].
pub fn flow_of(frame: &[u8]) -> u16 {
    u16::from_be_bytes([frame[FLOW_AT], frame[FLOW_AT + 1]])
}

/// The number of a frame of [`udp`].
pub fn number_of(frame: &[u8]) -> u32 {
    let at = NUMBER_AT;
    u32::from_be_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]])
}
