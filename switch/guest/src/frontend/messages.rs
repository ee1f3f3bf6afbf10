//! Messages of a session, and their answers.

use super::*;

impl Session {
    /// A request without its own reply; with REPLY_ACK in force, waits for the acknowledgement.
    ///
    /// # Errors
    /// Session errors; [`SessionError::Refused`].
    pub fn request(
        &mut self,
        number: u32,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), SessionError> {
        let acked = self.negotiated.protocol_features & protocol::REPLY_ACK != 0;
        let flags = FLAG_VERSION | if acked { FLAG_NEED_REPLY } else { 0 };
        self.send(number, flags, payload, fds)?;
        if acked {
            let reply = self.reply(number)?;
            match reply.u64_at(0) {
                Some(0) => {}
                Some(code) => {
                    return Err(SessionError::Refused {
                        request: number,
                        code,
                    });
                }
                None => {
                    return Err(SessionError::Reply {
                        request: number,
                        reply,
                    });
                }
            }
        }
        Ok(())
    }

    /// A request with a 64-bit payload.
    ///
    /// # Errors
    /// Session errors.
    pub fn request_u64(&mut self, number: u32, value: u64) -> Result<(), SessionError> {
        self.request(number, &value.to_ne_bytes(), &[])
    }

    /// A request that has its own reply.
    ///
    /// # Errors
    /// Session errors.
    pub fn query(
        &mut self,
        number: u32,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<Message, SessionError> {
        self.send(number, FLAG_VERSION, payload, fds)?;
        self.reply(number)
    }

    /// A request that is answered with 64 bits.
    ///
    /// # Errors
    /// Session errors.
    pub fn query_u64(&mut self, number: u32) -> Result<u64, SessionError> {
        let reply = self.query(number, &[], &[])?;
        reply.u64_at(0).ok_or(SessionError::Reply {
            request: number,
            reply,
        })
    }

    /// Sends a message unchanged, and does not wait.
    ///
    /// # Errors
    /// Socket errors.
    pub fn send(
        &mut self,
        number: u32,
        flags: u32,
        payload: &[u8],
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), SessionError> {
        self.send_bytes(&message::encode(number, flags, payload), fds)
            .map_err(|source| SessionError::Io {
                request: number,
                source,
            })
    }

    /// Sends bytes unchanged: half a header, a wrong length, anything.
    ///
    /// # Errors
    /// Socket errors.
    pub fn send_bytes(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        message::send_bytes(&self.stream, bytes, fds)
    }

    /// Receives one message of any kind.
    ///
    /// # Errors
    /// Socket errors.
    pub fn receive(&mut self) -> io::Result<Message> {
        message::receive(&self.stream, self.timeout)
    }

    /// Waits until the back end has closed the connection; returns false if `timeout` passed first. Pending replies are
    /// discarded.
    ///
    /// # Errors
    /// Socket errors.
    pub fn wait_closed(&mut self, timeout: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + timeout;
        loop {
            match message::receive(
                &self.stream,
                deadline.saturating_duration_since(Instant::now()),
            ) {
                Ok(_) => {}
                Err(error) => match error.kind() {
                    ErrorKind::UnexpectedEof
                    | ErrorKind::ConnectionReset
                    | ErrorKind::BrokenPipe => return Ok(true),
                    ErrorKind::TimedOut => return Ok(false),
                    _ => return Err(error),
                },
            }
        }
    }

    fn reply(&mut self, number: u32) -> Result<Message, SessionError> {
        let reply = self.receive().map_err(|source| SessionError::Io {
            request: number,
            source,
        })?;
        if reply.request != number || reply.flags & FLAG_REPLY == 0 {
            return Err(SessionError::Reply {
                request: number,
                reply,
            });
        }
        Ok(reply)
    }
}
