//! What the device has used.

use super::*;

impl PackedRing {
    /// Used buffers that are ready to be taken.
    #[must_use]
    pub fn pending_used(&self) -> u16 {
        self.walk_used().1
    }

    /// Published descriptors that were not taken back.
    #[inline(always)]
    fn published(&self) -> u16 {
        self.layout.size - self.free_slots - self.unpublished
    }

    /// Walks the used descriptors that are not taken yet: returns their end and the number of buffers.
    pub(super) fn walk_used(&self) -> (Position, u16) {
        let (mut at, mut count) = (self.used, 0);
        let mut last = self.batch.map(|batch| batch.id);
        while count < self.outstanding {
            last = last.or_else(|| self.used_id(at));
            let Some(end) = last else { break };
            let id = if self.in_order {
                self.id_at[usize::from(at.slot)]
            } else {
                end
            };
            let Some(descriptors) = self.descriptors_of(id) else {
                break;
            };
            at = at.advance(descriptors, self.layout.size);
            count += 1;
            if id == end {
                last = None;
            }
        }
        (at, count)
    }

    fn used_id(&self, at: Position) -> Option<u16> {
        let descriptor = self.read_desc(at.slot);
        at.is_used(descriptor.flags).then_some(descriptor.id)
    }

    /// Descriptors of the outstanding buffer `id`.
    fn descriptors_of(&self, id: u16) -> Option<u16> {
        match *self.chain_len.get(usize::from(id))? {
            0 => None,
            OFFERED => Some(1),
            descriptors => Some(descriptors),
        }
    }

    /// Takes one used buffer from `add` and frees its descriptors.
    ///
    /// # Errors
    /// The device faults in [`RingError`].
    pub fn pop_used(&mut self) -> Result<Option<UsedElement>, RingError> {
        let (at, mut element) = (self.used, [UsedElement::default()]);
        let count = self.take_used(&mut element)?;
        Ok((count > 0).then(|| self.without_reserved_len(at, element[0])))
    }

    /// Returns `used` of the used descriptor at `at`, with length 0 if no part of the buffer is device-writable and the
    /// descriptor does not say that it was written: the length is reserved then (2.8.4), and DPDK leaves the driver's
    /// length there. For device-writable buffers, the length is valid without that flag too, as for all drivers.
    fn without_reserved_len(&self, at: Position, mut used: UsedElement) -> UsedElement {
        let says_written = self.read_desc(at.slot).flags & DESC_F_WRITE != 0;
        let is_writable = self.writable_len.get(usize::from(used.id)) != Some(&0);
        if !says_written && !is_writable {
            used.len = 0;
        }
        used
    }

    /// Takes used buffers into `elements`, as many as are ready and fit; returns how many. A large batch of single
    /// descriptors ends at the end of a cache line of the ring, so that the next one does not begin inside a line.
    ///
    /// In a batch that the device used in order with one descriptor, buffers without their own length count as
    /// completely written (2.8.8).
    ///
    /// # Errors
    /// The device faults in [`RingError`]. Buffers used before the fault are returned first.
    #[inline(always)]
    pub fn take_used(&mut self, elements: &mut [UsedElement]) -> Result<usize, RingError> {
        if self.in_order {
            return self.take_in_order(elements);
        }
        let (table, published) = (self.descriptors.view(), self.published());
        let chain_len = self.chain_len.as_mut_slice();
        let (size, mut at) = (self.layout.size, self.used);
        let (mut count, mut descriptors, mut wrong) = (0, 0, None);
        let mut room = elements.len();
        if room > 2 * DESCRIPTORS_PER_LINE {
            room -= (usize::from(at.slot) + room) % DESCRIPTORS_PER_LINE;
        }
        for element in &mut elements[..room] {
            let Some(used) = load_used(table, at) else {
                break;
            };
            let taken = match chain_len.get_mut(usize::from(used.id)) {
                _ if descriptors >= published => {
                    wrong = Some(used.id);
                    break;
                }
                Some(len) if *len == OFFERED => {
                    *len = 0;
                    1
                }
                Some(len) if *len > 0 => {
                    self.free_ids.push_back(used.id);
                    std::mem::take(len)
                }
                _ => {
                    wrong = Some(used.id);
                    break;
                }
            };
            *element = used;
            at = at.advance(taken, size);
            descriptors += taken;
            count += 1;
        }
        self.taken(at, descriptors, count as u16);
        match wrong {
            Some(id) if count == 0 => Err(self.wrong_id(id)),
            _ => Ok(count),
        }
    }

    fn take_in_order(&mut self, elements: &mut [UsedElement]) -> Result<usize, RingError> {
        let room = elements.len();
        for (count, element) in elements.iter_mut().enumerate() {
            if self.batch.is_none() {
                let last = load_used(self.descriptors.view(), self.used);
                self.batch = last.map(|last| self.without_reserved_len(self.used, last));
            }
            let Some(last) = self.batch else {
                return Ok(count);
            };
            if self.descriptors_of(last.id).is_none() || self.published() == 0 {
                self.batch = None;
                return if count > 0 {
                    Ok(count)
                } else {
                    Err(self.wrong_id(last.id))
                };
            }
            *element = self.take_oldest(last);
        }
        Ok(room)
    }

    /// Takes the oldest outstanding buffer of a batch that ends with `last`.
    fn take_oldest(&mut self, last: UsedElement) -> UsedElement {
        let id = self.id_at[usize::from(self.used.slot)];
        let used = if id == last.id {
            self.batch = None;
            last
        } else {
            let len = self.writable_len[usize::from(id)];
            UsedElement { id, len }
        };
        let descriptors = match std::mem::take(&mut self.chain_len[usize::from(id)]) {
            OFFERED => 1,
            descriptors => {
                self.free_ids.push_front(id);
                descriptors
            }
        };
        self.taken(
            self.used.advance(descriptors, self.layout.size),
            descriptors,
            1,
        );
        used
    }

    #[inline(always)]
    fn taken(&mut self, to: Position, descriptors: u16, buffers: u16) {
        self.used = to;
        self.free_slots += descriptors;
        self.outstanding -= buffers;
        self.progress.used.store(to.to_bits(), Release);
    }

    #[cold]
    fn wrong_id(&self, id: u16) -> RingError {
        RingError::UsedId {
            id: id.into(),
            index: self.used.to_bits(),
        }
    }
}

/// The used descriptor at `at`, if it is one.
#[inline(always)]
pub(super) fn load_used(table: View<'_>, at: Position) -> Option<UsedElement> {
    let offset = DESCRIPTOR_LEN * usize::from(at.slot);
    if !at.is_used(table.load_u16(offset + FLAGS_AT, Acquire)) {
        return None;
    }
    let bits = u64::from_le_bytes(table.read_array(offset + LEN_AT));
    Some(UsedElement {
        id: (bits >> 32) as u16,
        len: bits as u32,
    })
}
