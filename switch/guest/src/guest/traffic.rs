//! Frames of a guest.

use super::*;

impl Guest {
    /// Sends frames with an empty header on queue pair `queue`, and kicks if the device asks for it. Returns how many
    /// the ring took.
    ///
    /// # Errors
    /// No such queue; faults of the device.
    pub fn send(&mut self, queue: usize, frames: &[&[u8]]) -> Result<usize, GuestError> {
        let transmit = self.transmit_queue(queue)?;
        let mut sent = 0;
        while sent < frames.len() && transmit.send(&VirtioNetHdr::default(), frames[sent])? {
            sent += 1;
        }
        self.publish_transmit(queue)?;
        Ok(sent)
    }

    /// Sends one frame with `header`. False when the ring is full.
    ///
    /// # Errors
    /// No such queue; faults of the device.
    pub fn send_with_header(
        &mut self,
        queue: usize,
        header: &VirtioNetHdr,
        frame: &[u8],
    ) -> Result<bool, GuestError> {
        let sent = self.transmit_queue(queue)?.send(header, frame)?;
        self.publish_transmit(queue)?;
        Ok(sent)
    }

    fn publish_transmit(&mut self, queue: usize) -> Result<(), GuestError> {
        if self.transmit_queue(queue)?.virtqueue().publish() {
            self.kick(2 * queue + 1)?;
        }
        Ok(())
    }

    /// Returns all frames that queue pair `queue` has received, assembled from their buffers, which are returned to the
    /// device.
    ///
    /// # Errors
    /// No such queue; faults of the device.
    pub fn receive(&mut self, queue: usize) -> Result<Vec<(VirtioNetHdr, Vec<u8>)>, GuestError> {
        let receive = self.receive_queue(queue)?;
        let frames = receive.receive()?;
        if receive.virtqueue().publish() {
            self.kick(2 * queue)?;
        }
        Ok(frames)
    }

    /// Receives until there are `count` frames or `timeout` has passed. In between it sleeps on the call eventfd (or
    /// yields the core if there is none).
    ///
    /// # Errors
    /// Errors of [`Guest::receive`].
    pub fn receive_at_least(
        &mut self,
        queue: usize,
        count: usize,
        timeout: Duration,
    ) -> Result<Vec<(VirtioNetHdr, Vec<u8>)>, GuestError> {
        let deadline = Instant::now() + timeout;
        let mut frames = self.receive(queue)?;
        while frames.len() < count && Instant::now() < deadline {
            if self.options.polling {
                std::thread::yield_now();
            } else if !self.receive_queue(queue)?.virtqueue().enable_calls()? {
                let left = deadline.saturating_duration_since(Instant::now());
                self.call_event(2 * queue)?.wait(left)?;
            }
            frames.extend(self.receive(queue)?);
        }
        Ok(frames)
    }

    /// Waits until all frames sent on queue pair `queue` have been used; returns false if `timeout` passed first.
    ///
    /// # Errors
    /// No such queue; faults of the device.
    pub fn drain_transmit(&mut self, queue: usize, timeout: Duration) -> Result<bool, GuestError> {
        let deadline = Instant::now() + timeout;
        loop {
            let transmit = self.transmit_queue(queue)?;
            transmit.reap()?;
            if transmit.virtqueue().outstanding() == 0 {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            std::thread::yield_now();
        }
    }

    /// Kicks vring `index` (2n receives, 2n + 1 transmits), requested or not.
    ///
    /// # Errors
    /// No such ring; system errors.
    pub fn kick(&mut self, index: usize) -> Result<(), GuestError> {
        self.attachments
            .get(index)
            .ok_or(GuestError::NoQueue(index))?
            .kick
            .signal()?;
        self.kicks += 1;
        Ok(())
    }
}
