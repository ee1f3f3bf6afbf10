//! Memory messages: tables and single regions, the dirty log, the inflight region.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crosspoint_memory::{DirtyLog, GuestMemory, MemoryCell, RegionSpec};
use crosspoint_vring::{InflightRegion, MAX_RING_SIZE, feature};

use super::{Device, InflightFile, Vring};
use crate::dataplane::PortChange;
use crate::handover::is_supervised;

/// Maximum number of memory regions of one guest (vhost-user protocol, GET_MAX_MEM_SLOTS; QEMU's own limit).
pub(in super::super) const MAX_MEMORY_SLOTS: usize = 509;

impl Device {
    /// Sets a new memory table. Rings whose place does not change go on without a pause.
    pub(in super::super) fn set_memory(
        &mut self,
        table: Vec<(RegionSpec, File)>,
    ) -> Result<(), String> {
        let before = self.memory.as_ref().map(|cell| cell.shared());
        let files = self.copies_of(&table);
        let memory = GuestMemory::map_after(before.as_deref(), table).map_err(|e| e.to_string())?;
        self.check_log(&memory)?;
        self.direct.files = files;
        self.kept.has_changed = true;
        self.exchange_memory(memory);
        Ok(())
    }

    /// Closes descriptors of the front end, on the caller thread if a close can block.
    pub(in super::super) fn retire(&self, fds: impl IntoIterator<Item = OwnedFd>) {
        for fd in fds {
            self.attachment.caller.retire(fd);
        }
    }

    /// Adds a region; no ring stops for it.
    pub(in super::super) fn add_region(
        &mut self,
        spec: RegionSpec,
        file: File,
    ) -> Result<(), String> {
        let table = [(spec, file)];
        let copy = self.copies_of(&table);
        let [(spec, file)] = table;
        let memory = match &self.memory {
            None => GuestMemory::map(vec![(spec, file)]),
            Some(cell) if cell.get().region_count() >= MAX_MEMORY_SLOTS => {
                return Err(format!("more than {MAX_MEMORY_SLOTS} memory regions"));
            }
            Some(cell) => cell.get().with_region(spec, &file),
        };
        let memory = memory.map_err(|e| e.to_string())?;
        self.check_log(&memory)?;
        self.direct.files.extend(copy);
        self.kept.has_changed = true;
        self.exchange_memory(memory);
        Ok(())
    }

    /// Removes a region. Rings in it stop.
    pub(in super::super) fn remove_region(&mut self, spec: &RegionSpec) -> Result<(), String> {
        let memory = self.memory.as_ref();
        let without = memory.and_then(|cell| cell.get().without_region(spec));
        let without = without.ok_or_else(|| {
            format!(
                "no region of {} bytes at guest address {:#x} to remove",
                spec.size, spec.guest_address
            )
        })?;
        let other = |known: &RegionSpec| {
            (known.guest_address, known.size) != (spec.guest_address, spec.size)
        };
        self.direct.files.retain(|(known, _)| other(known));
        self.kept.has_changed = true;
        self.exchange_memory(without);
        Ok(())
    }

    /// Replaces the memory while workers use it.
    fn exchange_memory(&mut self, memory: GuestMemory) {
        let memory = Arc::new(match self.effective_log() {
            log if log.is_some() || memory.log().is_some() => memory.with_log(log),
            _ => memory,
        });
        match self.memory.clone() {
            None => self.memory = Some(MemoryCell::new(memory.clone())),
            Some(cell) => {
                if self.direct.is_open() && !memory.is_same_place(cell.get()) {
                    // The NIC reads the old mapping: the queue is reopened on the new one.
                    self.stop(&[super::direct::VRING as u32]);
                }
                self.stop_moved(cell.get(), &memory);
                let old = cell.swap(memory.clone());
                self.change(PortChange {
                    memory: Some(Some(memory.clone())),
                    properties: Some(self.properties(&memory)),
                    ..PortChange::default()
                });
                // Every worker has reached a quiescent point, so none uses it any more.
                drop(old);
            }
        }
        self.change(PortChange {
            memory: Some(Some(memory)),
            ..PortChange::default()
        });
        self.reconcile();
    }

    /// Stops the rings whose place has changed.
    fn stop_moved(&mut self, before: &GuestMemory, after: &GuestMemory) {
        let moved = |vring: &Vring| {
            vring.addresses.is_some_and(|at| {
                [at.descriptors, at.available, at.used]
                    .iter()
                    .any(|area| before.translate_user(*area, 1) != after.translate_user(*area, 1))
            })
        };
        let which: Vec<u32> = (0..self.vrings.len() as u32)
            .filter(|index| moved(&self.vrings[*index as usize]))
            .collect();
        self.stop(&which);
    }

    /// The log in which writes must be marked now, if any.
    pub(super) fn effective_log(&self) -> Option<Arc<DirtyLog>> {
        let wanted = self.features.has(feature::LOG_ALL);
        self.log.clone().filter(|_| wanted)
    }

    /// Begins or ends marking of writes while rings run. Every write after this returns is marked accordingly.
    pub(super) fn apply_log(&mut self) {
        if let Some(cell) = &self.memory {
            let memory = cell.get().clone();
            let differs = match (memory.shared_log(), self.effective_log()) {
                (Some(a), Some(b)) => !Arc::ptr_eq(&a, &b),
                (a, b) => a.is_some() || b.is_some(),
            };
            if differs {
                self.exchange_memory(memory);
            }
        }
    }

    /// Checks that a log in use has a bit for every page: a front end gives a longer log before it adds memory.
    fn check_log(&self, memory: &GuestMemory) -> Result<(), String> {
        self.effective_log()
            .map_or(Ok(()), |log| covers(&log, memory))
    }

    /// Sets the log in which writes are marked once LOG_ALL is acknowledged.
    pub(in super::super) fn set_log(
        &mut self,
        file: &File,
        offset: u64,
        size: u64,
    ) -> Result<(), String> {
        let log = DirtyLog::map(file, offset, size).map_err(|e| e.to_string())?;
        if let Some(cell) = &self.memory {
            covers(&log, cell.get())?;
        }
        self.log = Some(Arc::new(log));
        let kept = file.try_clone().ok().filter(|_| is_supervised());
        self.kept.log = kept.map(|file| (file, offset, size));
        self.kept.has_changed = true;
        self.apply_log();
        Ok(())
    }

    /// Creates an inflight region for `queues` vrings of `ring_size` entries; returns the file and its length.
    pub(in super::super) fn new_inflight(
        &self,
        queues: u16,
        ring_size: u16,
    ) -> Result<(File, u64), String> {
        self.check_inflight(queues, ring_size)?;
        let packed = self.features.has(feature::RING_PACKED);
        let file = InflightRegion::create(queues.into(), ring_size, packed);
        let len = InflightRegion::len(queues.into(), ring_size, packed) as u64;
        Ok((file.map_err(|e| e.to_string())?, len))
    }

    fn check_inflight(&self, queues: u16, ring_size: u16) -> Result<(), String> {
        let most = 2 * self.queue_pairs;
        if queues == 0 || queues > most {
            return Err(format!("an inflight region for {queues} vrings of {most}"));
        }
        if !ring_size.is_power_of_two() || u32::from(ring_size) > MAX_RING_SIZE {
            return Err(format!(
                "an inflight region for rings of {ring_size} entries"
            ));
        }
        Ok(())
    }

    /// Sets the region that records the rings' progress, and may hold that of a previous back end.
    pub(in super::super) fn set_inflight(
        &mut self,
        file: &File,
        span: (u64, u64),
        queues: u16,
        ring_size: u16,
    ) -> Result<(), String> {
        self.check_inflight(queues, ring_size)?;
        let packed = self.features.has(feature::RING_PACKED);
        let region = InflightRegion::map(file, span, queues.into(), ring_size, packed)
            .map_err(|e| e.to_string())?;
        let region = Arc::new(region);
        self.inflight = Some(region.clone());
        let kept = file.try_clone().ok().filter(|_| is_supervised());
        self.kept.inflight = kept.map(|file| InflightFile {
            file,
            span,
            queues,
            ring_size,
            packed,
        });
        self.kept.has_changed = true;
        self.change(PortChange {
            inflight: Some(Some(region)),
            ..PortChange::default()
        });
        for vring in &mut self.vrings {
            vring.inherits = true;
        }
        Ok(())
    }
}

fn covers(log: &DirtyLog, memory: &GuestMemory) -> Result<(), String> {
    if log.end() < memory.end() {
        return Err(format!(
            "a dirty log of {} bytes ends at guest address {:#x}, and the memory at {:#x}",
            log.size(),
            log.end(),
            memory.end()
        ));
    }
    Ok(())
}
