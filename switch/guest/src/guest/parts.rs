//! Access to parts of a guest.

use super::*;

impl Guest {
    /// The receive queue of pair `queue`.
    ///
    /// # Errors
    /// No such queue.
    pub fn receive_queue(&mut self, queue: usize) -> Result<&mut ReceiveQueue, GuestError> {
        self.pairs
            .get_mut(queue)
            .and_then(|pair| pair.receive.as_mut())
            .ok_or(GuestError::NoQueue(queue))
    }

    /// The transmit queue of pair `queue`.
    ///
    /// # Errors
    /// No such queue.
    pub fn transmit_queue(&mut self, queue: usize) -> Result<&mut TransmitQueue, GuestError> {
        self.pairs
            .get_mut(queue)
            .and_then(|pair| pair.transmit.as_mut())
            .ok_or(GuestError::NoQueue(queue))
    }

    /// Turns the transmit queue of pair `queue` into a pump permanently.
    ///
    /// # Errors
    /// No such queue; frames in flight.
    pub fn take_tx_pump(
        &mut self,
        queue: usize,
        options: &TxPumpOptions,
    ) -> Result<TxPump, GuestError> {
        self.transmit_queue(queue)?;
        let transmit = self.pairs[queue]
            .transmit
            .take()
            .ok_or(GuestError::NoQueue(queue))?;
        Ok(TxPump::new(
            transmit,
            self.kick_event(2 * queue + 1)?,
            options,
        )?)
    }

    /// Turns the receive queue of pair `queue` into a pump permanently. `write_descriptors`: write each descriptor
    /// again when its buffer is posted, as real drivers do because they post a new buffer.
    ///
    /// # Errors
    /// No such queue; buffers that are chains.
    pub fn take_rx_pump(
        &mut self,
        queue: usize,
        write_descriptors: bool,
    ) -> Result<RxPump, GuestError> {
        self.receive_queue(queue)?;
        let receive = self.pairs[queue]
            .receive
            .take()
            .ok_or(GuestError::NoQueue(queue))?;
        Ok(RxPump::new(
            receive,
            self.kick_event(2 * queue)?,
            write_descriptors,
        )?)
    }

    /// Turns pair `queue` permanently into a pump that sends what it receives, with other addresses.
    ///
    /// # Errors
    /// No such queue; frames in flight; receive buffers that are chains or in another region than the transmitted
    /// frames.
    pub fn take_forward_pump(
        &mut self,
        queue: usize,
        destination: [u8; 6],
        source: [u8; 6],
    ) -> Result<ForwardPump, GuestError> {
        self.receive_queue(queue)?;
        self.transmit_queue(queue)?;
        let pair = &mut self.pairs[queue];
        let (Some(receive), Some(transmit)) = (pair.receive.take(), pair.transmit.take()) else {
            return Err(GuestError::NoQueue(queue));
        };
        let kicks = (self.kick_event(2 * queue)?, self.kick_event(2 * queue + 1)?);
        Ok(ForwardPump::new(
            receive,
            transmit,
            kicks,
            destination,
            source,
        )?)
    }

    /// The kick eventfd of vring `index`.
    ///
    /// # Errors
    /// No such ring.
    pub fn kick_event(&self, index: usize) -> Result<Arc<EventFd>, GuestError> {
        self.attachments
            .get(index)
            .map(|a| Arc::clone(&a.kick))
            .ok_or(GuestError::NoQueue(index))
    }

    /// The call eventfd of vring `index`.
    ///
    /// # Errors
    /// No such ring.
    pub fn call_event(&self, index: usize) -> Result<Arc<EventFd>, GuestError> {
        self.attachments
            .get(index)
            .map(|a| Arc::clone(&a.call))
            .ok_or(GuestError::NoQueue(index))
    }

    /// The session, for messages that no guest sends.
    ///
    /// # Errors
    /// There is none.
    pub fn session(&mut self) -> Result<&mut Session, GuestError> {
        self.session.as_mut().ok_or(GuestError::NotConnected)
    }

    /// Features negotiated with the current session.
    #[must_use]
    pub fn negotiated(&self) -> Negotiated {
        self.session
            .as_ref()
            .map_or_else(Negotiated::default, Session::negotiated)
    }

    /// Guest memory.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Kicks sent so far; those of pumps are not counted.
    #[must_use]
    pub fn kicks(&self) -> u64 {
        self.kicks
    }
}
