//! Format of an input: a sequence of records, each of which is a message of a front end, or bytes that its memory has
//! when the session begins. The target reads them; the seeds are made of them.
//!
//! A record is: an order (one byte); for a message its request number (one byte), for memory bytes their offset (two);
//! a length (two); that many bytes; and for messages one byte for each descriptor. Numbers are little-endian. A record
//! that is cut off is used as far as it goes.

/// The order's upper two bits: a message with a header that matches the payload.
pub const MESSAGE: u8 = 0x00;
/// The same, with an acknowledgement requested.
pub const ACKED: u8 = 0x40;
/// Bytes sent unchanged.
pub const RAW: u8 = 0x80;
/// Bytes written into [`MEMORY`], at an offset.
pub const FILL: u8 = 0xc0;
/// In the order: 40 descriptors of the first kind, more than the session accepts.
pub const MANY: u8 = 0x20;

/// Kinds of descriptors, by number: memory of [`MEMORY_LEN`] bytes.
pub const MEMORY: u8 = 0;
/// The same, another file, all zeroes.
pub const OTHER: u8 = 1;
/// A memory file of one page.
pub const PAGE: u8 = 2;
/// An empty memory file.
pub const EMPTY: u8 = 3;
/// Read-only memory.
pub const READ_ONLY: u8 = 4;
/// An eventfd.
pub const EVENT: u8 = 5;
/// A pipe's writing end.
pub const PIPE_WRITE: u8 = 6;
/// A pipe's reading end.
pub const PIPE_READ: u8 = 7;
/// A file on a disk.
pub const REGULAR: u8 = 8;
/// /dev/null.
pub const NULL: u8 = 9;
/// A connected socket.
pub const SOCKET: u8 = 10;
/// Number of kinds.
pub const KINDS: u8 = 11;

/// Size of [`MEMORY`] and [`OTHER`] in bytes.
pub const MEMORY_LEN: u64 = 0x4_0000;

/// One record.
#[derive(Debug)]
pub struct Record<'a> {
    /// Kind and flags.
    pub order: u8,
    /// Request number of a message.
    pub request: u8,
    /// Offset of memory bytes.
    pub at: u16,
    /// Payload, raw bytes, memory bytes.
    pub bytes: &'a [u8],
    /// Kinds of the descriptors.
    pub descriptors: &'a [u8],
}

impl<'a> Record<'a> {
    /// Takes the next record off `input`; `None` at its end.
    pub fn take(input: &mut &'a [u8]) -> Option<Record<'a>> {
        let order = byte(input)?;
        let (mut request, mut at) = (0, 0);
        match order & 0xc0 {
            FILL => at = u16::from_le_bytes([byte(input)?, byte(input)?]),
            RAW => {}
            _ => request = byte(input)?,
        }
        let len = u16::from_le_bytes([byte(input)?, byte(input)?]);
        let bytes = up_to(input, len.into());
        let count = match order & 0xc0 {
            FILL => 0,
            _ => usize::from(order & 0x0f),
        };
        Some(Record {
            order,
            request,
            at,
            bytes,
            descriptors: up_to(input, count),
        })
    }
}

fn byte(input: &mut &[u8]) -> Option<u8> {
    let (first, rest) = input.split_first()?;
    *input = rest;
    Some(*first)
}

fn up_to<'a>(input: &mut &'a [u8], len: usize) -> &'a [u8] {
    let (taken, rest) = input.split_at(len.min(input.len()));
    *input = rest;
    taken
}
