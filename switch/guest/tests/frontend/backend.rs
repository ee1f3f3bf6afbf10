//! A back end that records what it is told, and refuses what it is to refuse.

use super::*;

/// Features and answers of a recording back end.
#[derive(Clone, Copy)]
pub(super) struct Backend {
    pub(super) features: u64,
    pub(super) protocol_features: u64,
    /// Answer to GET_VRING_BASE, plus the ring's index.
    pub(super) base: u32,
    /// Request that is refused.
    pub(super) refuse: u32,
}

pub(super) const BACKEND: Backend = Backend {
    features: VERSION_1 | MRG_RXBUF | PROTOCOL_FEATURES | 1,
    protocol_features: protocol::MQ | protocol::REPLY_ACK | protocol::CONFIG | protocol::STATUS,
    base: 1000,
    refuse: 0,
};

/// Answers GET_INFLIGHT_FD with a file of 8192 bytes, whose second half is the region.
pub(super) fn send_inflight(stream: &UnixStream, request: &Message) {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let file = rustix::fs::memfd_create("inflight", flags).unwrap();
    rustix::fs::ftruncate(&file, 8192).unwrap();
    rustix::io::pwrite(&file, b"in hand", 4096).unwrap();
    let (queues, size) = (request.u16_at(16).unwrap(), request.u16_at(18).unwrap());
    let payload = message::inflight(4096, 4096, queues, size);
    let bytes = message::encode(request.request, FLAG_VERSION | FLAG_REPLY, &payload);
    message::send_bytes(stream, &bytes, &[rustix::fd::AsFd::as_fd(&file)]).unwrap();
}

impl Backend {
    pub(super) fn serve(self, stream: &UnixStream) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Ok(message) = message::receive(stream, TIMEOUT) {
            let reply = match message.request {
                request::GET_FEATURES => Some(self.features.to_ne_bytes().to_vec()),
                request::GET_PROTOCOL_FEATURES => {
                    Some(self.protocol_features.to_ne_bytes().to_vec())
                }
                request::GET_QUEUE_NUM => Some(4u64.to_ne_bytes().to_vec()),
                request::GET_CONFIG => Some(message.payload.iter().map(|b| b ^ 0x40).collect()),
                request::GET_VRING_BASE => {
                    let index = message.u32_at(0).unwrap();
                    Some(
                        [
                            index.to_ne_bytes(),
                            (self.base.wrapping_add(index)).to_ne_bytes(),
                        ]
                        .concat(),
                    )
                }
                request::GET_MAX_MEM_SLOTS => Some(32u64.to_ne_bytes().to_vec()),
                request::GET_STATUS => Some(15u64.to_ne_bytes().to_vec()),
                request::SET_LOG_BASE => Some(Vec::new()),
                request::GET_INFLIGHT_FD => {
                    send_inflight(stream, &message);
                    None
                }
                _ if message.flags & FLAG_NEED_REPLY != 0 => {
                    let code = u64::from(message.request == self.refuse);
                    Some(code.to_ne_bytes().to_vec())
                }
                _ => None,
            };
            if let Some(payload) = reply {
                let bytes = message::encode(message.request, FLAG_VERSION | FLAG_REPLY, &payload);
                message::send_bytes(stream, &bytes, &[]).unwrap();
            }
            messages.push(message);
        }
        messages
    }

    /// Serves consecutive sessions on a socket in a directory that lives as long as the result.
    pub(super) fn listen(
        self,
        sessions: usize,
    ) -> (
        tempfile::TempDir,
        std::path::PathBuf,
        JoinHandle<Vec<Vec<Message>>>,
    ) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("switch.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let serve = move || {
            (0..sessions)
                .map(|_| self.serve(&listener.accept().unwrap().0))
                .collect()
        };
        (directory, path, std::thread::spawn(serve))
    }
}
