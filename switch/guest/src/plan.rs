//! Memory layout of a guest.

use crate::guest::GuestOptions;
use crate::memory::{CACHE_LINE_LEN, RegionLayout};
use crate::queue::{ReceiveQueue, TransmitQueue};
use crate::ring::RingLayout;

/// Unused bytes at the start of each region: no buffer has guest address 0.
const RESERVED_LEN: usize = 4096;

/// Address and length in bytes.
pub(crate) type Range = (u64, usize);

#[derive(Debug)]
pub(crate) struct QueuePlan {
    pub(crate) ring: Range,
    pub(crate) area: Range,
    pub(crate) tables: Range,
}

#[derive(Debug)]
pub(crate) struct PairPlan {
    pub(crate) receive: QueuePlan,
    pub(crate) transmit: QueuePlan,
}

/// Addresses of all parts of a guest.
pub(crate) struct Plan {
    pub(crate) pairs: Vec<PairPlan>,
    /// By region: base, and allocated bytes.
    regions: Vec<Range>,
}

impl Plan {
    pub(crate) fn new(options: &GuestOptions) -> Self {
        let regions = options
            .region_bases
            .iter()
            .map(|&base| (base, RESERVED_LEN))
            .collect();
        let mut plan = Self {
            pairs: Vec::new(),
            regions,
        };
        let size = options.ring_size;
        let mut turn = 0;
        for _ in 0..options.queue_pairs {
            let receive = plan.queue(
                size,
                ReceiveQueue::memory_len(size, options.rx_buffer_len),
                &mut turn,
            );
            let transmit = plan.queue(
                size,
                TransmitQueue::memory_len(size, options.frame_len_max),
                &mut turn,
            );
            plan.pairs.push(PairPlan { receive, transmit });
        }
        plan
    }

    fn queue(
        &mut self,
        size: u16,
        (area_len, tables_len): (usize, usize),
        turn: &mut usize,
    ) -> QueuePlan {
        let ring = self.take(RingLayout::contiguous_len(size), turn);
        let area = self.take(area_len, turn);
        let tables = self.take(tables_len, turn);
        QueuePlan { ring, area, tables }
    }

    fn take(&mut self, len: usize, turn: &mut usize) -> Range {
        let count = self.regions.len().max(1);
        let Some((base, taken)) = self.regions.get_mut(*turn % count) else {
            return (0, len);
        };
        *turn += 1;
        let address = base.wrapping_add(*taken as u64);
        *taken = (*taken + len).next_multiple_of(CACHE_LINE_LEN);
        (address, len)
    }

    pub(crate) fn regions(&self, options: &GuestOptions) -> Vec<RegionLayout> {
        let huge_pages = options.huge_pages;
        let own = self.regions.iter().map(|&(guest_base, len)| RegionLayout {
            guest_base,
            len,
            huge_pages,
        });
        own.chain(options.extra_regions.iter().copied()).collect()
    }
}
