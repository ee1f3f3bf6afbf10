//! Memory of a guest while it runs: hotplug, and the dirty log of a migration.

use super::*;

impl Guest {
    /// All regions that the back end must have.
    pub(super) fn regions(&self) -> Vec<&Region> {
        let memories = std::iter::once(&self.memory).chain(&self.added);
        memories.flat_map(|memory| memory.regions()).collect()
    }

    /// Adds a region, as memory hotplug does: with ADD_MEM_REG, or without CONFIGURE_MEM_SLOTS in a new SET_MEM_TABLE.
    /// The region is not used; the returned memory is that region alone.
    ///
    /// # Errors
    /// A region that overlaps another; session errors: the region is not added then.
    pub fn add_memory(&mut self, layout: RegionLayout) -> Result<Arc<GuestMemory>, GuestError> {
        let memory = GuestMemory::new(&[layout])?;
        let added = &memory.regions()[0];
        let overlaps = |region: &&Region| {
            region.guest_base() < added.end() && added.guest_base() < region.end()
        };
        if self.regions().iter().any(overlaps) {
            return Err(MemoryError::BadLayout.into());
        }
        self.added.push(Arc::clone(&memory));
        let result = self.tell_memory(|session| session.add_mem_region(added));
        if result.is_err() {
            self.added.pop();
        }
        result.map(|()| memory)
    }

    /// Removes the region that [`Guest::add_memory`] added at `guest_base`. The driver may still have buffers there,
    /// unlike a real driver.
    ///
    /// # Errors
    /// No such region; session errors: the region stays then.
    pub fn remove_memory(&mut self, guest_base: u64) -> Result<(), GuestError> {
        let at = |memory: &Arc<GuestMemory>| memory.regions()[0].guest_base() == guest_base;
        let index = self.added.iter().position(at);
        let index = index.ok_or(GuestError::NoMemory(guest_base))?;
        let memory = self.added.remove(index);
        let removed = &memory.regions()[0];
        let result = self.tell_memory(|session| session.remove_mem_region(removed));
        if result.is_err() {
            self.added.insert(index, memory);
        }
        result
    }

    /// Sends a change of the regions to the back end, if there is one.
    fn tell_memory(
        &mut self,
        change: impl FnOnce(&mut Session) -> Result<(), SessionError>,
    ) -> Result<(), GuestError> {
        let Some(mut session) = self.session.take() else {
            return Ok(());
        };
        let slots = protocol::CONFIGURE_MEM_SLOTS;
        let result = if session.negotiated().protocol_features & slots != 0 {
            change(&mut session)
        } else {
            session.set_mem_regions(&self.regions())
        };
        self.session = Some(session);
        Ok(result?)
    }

    /// Begins to log the pages that the back end writes, as QEMU does at the start of a migration: SET_LOG_BASE,
    /// SET_FEATURES with `LOG_ALL`, SET_VRING_ADDR of each ring. The log covers the current memory. It continues across
    /// reconnects until [`Guest::stop_dirty_log`].
    ///
    /// # Errors
    /// Session errors; the back end does not offer this.
    pub fn start_dirty_log(&mut self) -> Result<DirtyLog, GuestError> {
        self.require(protocol::LOG_SHMFD, "LOG_SHMFD")?;
        if self.negotiated().offered & features::LOG_ALL == 0 {
            return Err(GuestError::NotOffered("LOG_ALL"));
        }
        let end = self.regions().iter().map(|region| region.end()).max();
        let log = DirtyLog::new(end.unwrap_or(0) + LOG_ROOM)?;
        self.session()?.set_log_base(&log)?;
        self.log = Some(log.clone());
        self.set_logging(features::LOG_ALL)?;
        Ok(log)
    }

    /// Ends the log of [`Guest::start_dirty_log`].
    ///
    /// # Errors
    /// Session errors.
    pub fn stop_dirty_log(&mut self) -> Result<(), GuestError> {
        self.log = None;
        self.set_logging(0)
    }

    /// SET_FEATURES with `log_all` or without, and the rings' addresses accordingly.
    fn set_logging(&mut self, log_all: u64) -> Result<(), GuestError> {
        let mut session = self.session.take().ok_or(GuestError::NotConnected)?;
        let features = session.negotiated().features | log_all;
        let result = session.set_features(features).and_then(|()| {
            (0..self.attachments.len())
                .try_for_each(|index| session.set_vring_layout(&self.memory, &self.vring(index, 0)))
        });
        self.session = Some(session);
        Ok(result?)
    }

    /// The inflight region, if INFLIGHT_SHMFD is in force. It is kept across reconnects and dropped by
    /// [`Guest::reset`].
    #[must_use]
    pub fn inflight(&self) -> Option<&Inflight> {
        self.inflight.as_ref()
    }
}
