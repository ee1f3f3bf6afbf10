//! Short frames that are decided on beyond their head: all their bytes are read once, and delivered from the copy.

use std::cell::UnsafeCell;

use crate::{BURST, Burst, HEAD_LEN, Segment};

/// Most bytes of a frame that is held.
pub const HELD_LEN: usize = 128;

/// A place for the bytes of each frame after its head.
pub(crate) struct Held(Box<[UnsafeCell<[u8; HELD_LEN - HEAD_LEN]>]>);

impl Default for Held {
    fn default() -> Held {
        let place = || UnsafeCell::new([0; HELD_LEN - HEAD_LEN]);
        Held((0..BURST).map(|_| place()).collect())
    }
}

impl Burst {
    /// Reads a frame of at most [`HELD_LEN`] bytes whole, and has its copies made from what was read: what a guest writes
    /// there later has no effect. Returns the bytes and their number; `None` if the frame is longer, or the burst has no
    /// room for one more segment.
    pub fn hold(&mut self, index: usize) -> Option<([u8; HELD_LEN], usize)> {
        let frame = self.frames().get(index)?;
        let len = frame.len as usize;
        if len > HELD_LEN {
            return None;
        }
        let mut bytes = [0; HELD_LEN];
        let read = self.read_beginning(frame, bytes.get_mut(..len)?);
        let rest = bytes.get(HEAD_LEN..len).unwrap_or(&[]);
        if rest.is_empty() {
            return Some((bytes, read));
        }
        if read != len || self.segment_room() == 0 {
            return None;
        }
        let segment = self.held_segment(index, rest)?;
        self.lease().close_frame(index);
        self.replace_segments(index, segment);
        Some((bytes, len))
    }

    /// Reads the first [`HELD_LEN`] bytes of a frame of any length, and has its copies made from what was read. Returns the
    /// bytes and their number; `None` if the burst has no room for one more segment.
    pub fn hold_beginning(&mut self, index: usize) -> Option<([u8; HELD_LEN], usize)> {
        let frame = self.frames().get(index)?;
        if frame.len as usize <= HELD_LEN {
            return self.hold(index);
        }
        let mut bytes = [0; HELD_LEN];
        let read = self.read_beginning(frame, &mut bytes);
        if read != HELD_LEN || self.segment_room() <= self.piece_count(frame) {
            return None;
        }
        let segment = self.held_segment(index, bytes.get(HEAD_LEN..)?)?;
        self.lease().close_frame(index);
        self.replace_beginning(index, segment);
        Some((bytes, HELD_LEN))
    }

    /// Adds a copy of a frame of at most [`HELD_LEN`] bytes, which need not stay valid. Returns `false` if the frame is longer or
    /// the burst is full.
    pub fn push_copy(&mut self, bytes: &[u8]) -> bool {
        let (head, rest) = bytes.split_at(bytes.len().min(HEAD_LEN));
        if rest.is_empty() {
            return self.push_short(head);
        }
        let Some(segment) = self.held_segment(self.len(), rest) else {
            return false;
        };
        let has_room = self.segment_room() > 0;
        has_room && self.push_short(head) && {
            let index = self.len() - 1;
            if let Some(frame) = self.frames_mut().get_mut(index) {
                frame.len = bytes.len() as u32;
            }
            self.replace_segments(index, segment);
            true
        }
    }

    /// Copies bytes into the place of frame `index`, and returns the segment that has them.
    fn held_segment(&self, index: usize, bytes: &[u8]) -> Option<Segment> {
        let place = self.held.0.get(index)?;
        // SAFETY: one thread uses a burst, and no reference into the place exists: it is only read through segments, which
        // copy out of it. A segment of an earlier burst is gone: `clear` removes them all. A frame that is held again has
        // the same bytes.
        unsafe {
            (&mut *place.get())
                .get_mut(..bytes.len())?
                .copy_from_slice(bytes)
        };
        // SAFETY: there are at most as many bytes as the place has, which the burst owns: it stays until the worker's end.
        Some(unsafe { Segment::new(place.get().cast(), bytes.len() as u32) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::Offload;

    proptest! {
        /// A copied frame has its bytes, whatever comes before it; a longer one is refused.
        #[test]
        fn a_copy_has_the_frames_bytes(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 14..200), 1..8)) {
            let mut burst = Burst::new();
            let mut expected = Vec::new();
            for mut bytes in frames {
                let is_short = bytes.len() <= HELD_LEN;
                prop_assert_eq!(burst.push_copy(&bytes), is_short);
                if is_short {
                    expected.push(bytes.clone());
                }
                bytes.fill(0xee);
            }
            prop_assert_eq!(burst.len(), expected.len());
            for (frame, bytes) in burst.frames().iter().zip(&expected) {
                let mut now = vec![0; frame.len as usize];
                prop_assert_eq!(burst.read_beginning(frame, &mut now), bytes.len());
                prop_assert_eq!(&now, bytes);
            }
        }

        /// A held frame has the bytes that it had when it was held, whatever is written into its memory later, and the
        /// other frames have theirs.
        #[test]
        fn a_held_frame_does_not_change(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 14..200), 1..8),
            held in prop::collection::vec(any::<bool>(), 8),
        ) {
            let mut owned: Vec<Vec<u8>> = frames.clone();
            let memory: Vec<_> = owned.iter_mut().map(|bytes| (bytes.as_mut_ptr(), bytes.len())).collect();
            let mut burst = Burst::new();
            for (bytes, len) in &memory {
                // SAFETY: the memory lives as long as the burst.
                let segment = unsafe { Segment::new(*bytes, *len as u32) };
                prop_assert!(burst.push_contiguous(segment, Offload::default()));
            }
            let mut is_held = vec![false; frames.len()];
            for (index, frame) in frames.iter().enumerate() {
                if held[index] {
                    let got = burst.hold(index);
                    prop_assert_eq!(got.is_some(), frame.len() <= HELD_LEN);
                    if let Some((bytes, len)) = got {
                        prop_assert_eq!(&bytes[..len], &frame[..]);
                        is_held[index] = true;
                    }
                }
            }
            // The guest overwrites everything.
            for (bytes, len) in &memory {
                // SAFETY: the memory is this test's, and only raw pointers read it.
                unsafe { std::ptr::write_bytes(*bytes, 0xee, *len) };
            }
            for (index, frame) in frames.iter().enumerate() {
                let mut now = vec![0; frame.len()];
                let read = burst.read_beginning(&burst.frames()[index], &mut now);
                prop_assert_eq!(read, frame.len());
                let mut expected = frame.clone();
                if !is_held[index] && frame.len() > HEAD_LEN {
                    expected[HEAD_LEN..].fill(0xee);
                }
                prop_assert_eq!(now, expected);
            }
        }
    }
}
