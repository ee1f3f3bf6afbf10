//! Sockets that another process goes on with. The NIC's queue, its packet memory and what is in its rings stay as they are.
//!
//! 1. [`XskSocket::record`] describes a socket, and names its descriptors.
//! 2. The other process maps the memory and the rings ([`PacketMemory::map_socket`](crate::PacketMemory::map_socket)), while
//!    this one uses them.
//! 3. This process stops. [`FramePlaces::of`] tells which UMEM frame belongs to which half.
//! 4. The other process makes the two halves: [`MappedSocket::resume`].
//!
//! Step 2 fails on kernels that do not map the rings of a bound socket, and with the feature `xsk-rs` there is no record. The
//! socket is then opened anew.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

#[cfg(not(feature = "xsk-rs"))]
use crate::XskRx;
use crate::umem::Half;
use crate::{FRAME_SIZE, Pages, RING_SIZE, XskSocket, XskTx};

#[cfg(not(feature = "xsk-rs"))]
use crate::socket::Rings;

/// What another process must know of a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SocketRecord {
    /// For how many sockets the packet memory was made, and the number of this one among them.
    pub sockets: u16,
    /// See `sockets`.
    pub slot: u16,
    /// The kind of the memory's pages.
    pub pages: Pages,
    /// Whether the NIC reads and writes the memory itself.
    pub zero_copy: bool,
    /// Whether frames may take several UMEM frames.
    pub multi_buffer: bool,
    /// Whether the kernel finishes checksums.
    pub finishes_checksums: bool,
    /// Whether the kernel polls the NIC when it is asked for frames.
    pub busy_poll: bool,
}

impl XskSocket {
    /// Describes the socket for another process. The descriptors are the socket and its packet memory. `None` if the memory is
    /// this process's alone.
    pub fn record(&self) -> Option<(SocketRecord, [BorrowedFd<'_>; 2])> {
        use std::os::fd::AsFd;
        let umem = self.umem();
        let memory = umem.file()?;
        let record = SocketRecord {
            sockets: umem.sockets(),
            slot: self.slot(),
            pages: umem.pages(),
            zero_copy: self.zero_copy(),
            multi_buffer: self.multi_buffer(),
            finishes_checksums: self.finishes_checksums(),
            busy_poll: self.polls_busily(),
        };
        Some((record, [self.as_fd(), memory]))
    }
}

/// A socket of another process, mapped but not used.
#[cfg(not(feature = "xsk-rs"))]
pub struct MappedSocket {
    pub(crate) socket: Arc<XskSocket>,
    pub(crate) rings: Rings,
}

/// Never made with the feature `xsk-rs`.
#[cfg(feature = "xsk-rs")]
pub struct MappedSocket {
    pub(crate) socket: Arc<XskSocket>,
    never: std::convert::Infallible,
}

impl MappedSocket {
    /// Returns the socket.
    pub fn socket(&self) -> &Arc<XskSocket> {
        &self.socket
    }

    /// Makes the two halves. `None` if the places cannot be true; the socket is then closed.
    #[cfg(not(feature = "xsk-rs"))]
    pub fn resume(self, places: &FramePlaces) -> Option<(XskRx, XskTx)> {
        let MappedSocket { socket, rings } = self;
        let size = RING_SIZE as usize;
        let sending = places.free.len() + places.in_flight.len();
        if places.rx.len() != size || sending != size {
            return None;
        }
        let (rx, tx) = (Half::rx(socket.slot()), Half::tx(socket.slot()));
        let umem = socket.umem();
        let mut all = places.rx.iter().map(|frame| (frame, rx)).chain(
            [&places.free, &places.in_flight]
                .into_iter()
                .flatten()
                .map(|frame| (frame, tx)),
        );
        if !all.all(|(frame, half)| umem.claim(*frame, half)) {
            return None;
        }
        let address = |frame: &u32| u64::from(*frame) * u64::from(FRAME_SIZE);
        let free = places.free.iter().map(address).collect();
        Some((
            XskRx::resume(socket.clone(), rings.rx, rings.fill),
            XskTx::resume(socket, rings.tx, rings.completion, free),
        ))
    }

    /// Never called.
    #[cfg(feature = "xsk-rs")]
    pub fn resume(self, _: &FramePlaces) -> Option<(crate::XskRx, XskTx)> {
        match self.never {}
    }
}

/// To which half of a socket UMEM frames belong, by their numbers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FramePlaces {
    /// Frames of the receiving half: in the fill ring, the receive ring, or with the NIC.
    rx: Vec<u32>,
    /// Free frames of the sending half.
    free: Vec<u32>,
    /// Frames of the sending half that the kernel has not completed.
    in_flight: Vec<u32>,
}

impl FramePlaces {
    /// Suspends the sending half, and returns the places of the socket's frames. No worker may have either half.
    pub fn of(tx: &mut XskTx) -> FramePlaces {
        let number = |address: &u64| (address / u64::from(FRAME_SIZE)) as u32;
        let mut free: Vec<u32> = tx.suspend().iter().map(number).collect();
        free.sort_unstable();
        let socket = tx.socket();
        let of = |half| {
            socket
                .umem()
                .frames_of(half)
                .iter()
                .map(number)
                .collect::<Vec<_>>()
        };
        let mut in_flight = of(Half::tx(socket.slot()));
        in_flight.retain(|frame| free.binary_search(frame).is_err());
        FramePlaces {
            rx: of(Half::rx(socket.slot())),
            free,
            in_flight,
        }
    }

    /// Appends the places to `to`, in the order of this host's bytes.
    pub fn write(&self, to: &mut Vec<u8>) {
        for list in [&self.rx, &self.free, &self.in_flight] {
            to.extend((list.len() as u32).to_ne_bytes());
            to.extend(list.iter().flat_map(|frame| frame.to_ne_bytes()));
        }
    }

    /// Reads what [`write`](Self::write) has written, and moves `from` behind it. `None` if it is malformed.
    pub fn read(from: &mut &[u8]) -> Option<FramePlaces> {
        let mut list = || {
            let count = read_u32(from)?;
            let bytes = from.split_off(..(count.min(RING_SIZE) as usize) * 4)?;
            let words = bytes.as_chunks::<4>().0.iter();
            (count <= RING_SIZE).then(|| words.map(|word| u32::from_ne_bytes(*word)).collect())
        };
        Some(FramePlaces {
            rx: list()?,
            free: list()?,
            in_flight: list()?,
        })
    }
}

fn read_u32(from: &mut &[u8]) -> Option<u32> {
    let (word, rest) = from.split_first_chunk::<4>()?;
    *from = rest;
    Some(u32::from_ne_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_as_they_were_written_and_malformed_ones_are_refused() {
        let places = FramePlaces {
            rx: vec![1, 2, 4096],
            free: vec![],
            in_flight: vec![7],
        };
        let mut bytes = Vec::new();
        places.write(&mut bytes);
        bytes.push(9);
        let mut rest = bytes.as_slice();
        assert_eq!(FramePlaces::read(&mut rest), Some(places));
        assert_eq!(rest, [9]);
        for len in 0..bytes.len() - 1 {
            assert_eq!(FramePlaces::read(&mut &bytes[..len]), None);
        }
        assert_eq!(FramePlaces::read(&mut &[0xff; 64][..]), None);
    }
}
