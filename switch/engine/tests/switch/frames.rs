//! Frames that identify themselves.

use crate::world::Random;

/// Source, flow and number, at the end of every frame that has room for them.
pub const TRAILER: usize = 16;

/// Header fields of a frame.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Flow {
    pub dst: [u8; 6],
    pub src: [u8; 6],
    /// Tag control information.
    pub tag: Option<u16>,
    pub ip: Option<Ip>,
}

/// UDP; with `fragment`, a later fragment of a datagram.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Ip {
    pub v6: bool,
    pub from: (u8, u16),
    pub to: (u8, u16),
    pub fragment: bool,
}

impl Flow {
    /// A flow from `src` to `dst` without tag and IP.
    pub fn plain(src: [u8; 6], dst: [u8; 6]) -> Flow {
        let (tag, ip) = (None, None);
        Flow { dst, src, tag, ip }
    }

    /// Returns the opposite direction.
    pub fn back(self) -> Flow {
        let ip = self.ip.map(|ip| Ip {
            from: ip.to,
            to: ip.from,
            ..ip
        });
        let (dst, src) = (self.src, self.dst);
        Flow {
            dst,
            src,
            ip,
            ..self
        }
    }

    fn headers(&self, len: usize) -> Vec<u8> {
        let mut out = [self.dst, self.src].concat();
        if let Some(tci) = self.tag {
            out.extend([0x81, 0]);
            out.extend(tci.to_be_bytes());
        }
        let Some(ip) = self.ip else {
            out.extend([0x88, 0xb5]);
            return out;
        };
        let payload = (len.saturating_sub(out.len() + 2).min(65535) as u16).to_be_bytes();
        if ip.v6 {
            out.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            out.extend(payload);
            out.extend([if ip.fragment { 44 } else { 17 }, 64]);
            out.extend([ip.from.0; 16]);
            out.extend([ip.to.0; 16]);
        } else {
            out.extend([0x08, 0, 0x45, 0]);
            out.extend(payload);
            out.extend([0, 0, 0, u8::from(ip.fragment), 64, 17, 0, 0]);
            out.extend([10, 0, 0, ip.from.0, 10, 0, 0, ip.to.0]);
        }
        out.extend(ip.from.1.to_be_bytes());
        out.extend(ip.to.1.to_be_bytes());
        out
    }

    /// Returns a frame of `len` bytes, with a trailer if there is room for one.
    pub fn frame(&self, len: usize, source: u32, flow: u32, number: u64) -> Vec<u8> {
        let mut out = self.headers(len);
        let room = len.saturating_sub(out.len());
        out.extend(Random(number).bytes(room));
        out.truncate(len);
        if room >= TRAILER {
            let at = len - TRAILER;
            out[at..at + 4].copy_from_slice(&source.to_le_bytes());
            out[at + 4..at + 8].copy_from_slice(&flow.to_le_bytes());
            out[at + 8..].copy_from_slice(&number.to_le_bytes());
        }
        out
    }
}

/// Returns source, flow and number of a frame that has a trailer.
pub fn trailer(frame: &[u8]) -> (u32, u32, u64) {
    let at = frame.len() - TRAILER;
    let word = |at: usize| u32::from_le_bytes(frame[at..at + 4].try_into().unwrap());
    let number = u64::from_le_bytes(frame[at + 8..].try_into().unwrap());
    (word(at), word(at + 4), number)
}

/// Returns the address of host `n`.
pub fn host(n: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, n]
}
