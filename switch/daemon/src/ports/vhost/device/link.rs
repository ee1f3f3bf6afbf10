//! What the guest sees of its link: down while the operator has disabled the port.
//!
//! The link's state is in the configuration space, which front ends read by GET_CONFIG. Many front ends do not: they have a
//! configuration space of their own, in which the link is up. See `switch/docs/OPERATING.md`.

use std::io;
use std::os::fd::OwnedFd;

use vhost::vhost_user::VhostUserProtocolFeatures;

use super::super::wire;
use super::Device;

/// `status` of the configuration space: the link is up (virtio 1.2, 5.1.4).
const LINK_UP: u16 = 1;

impl Device {
    /// The status of the configuration space.
    pub(super) fn link_status(&self) -> u16 {
        // A guest that read "down" from a front end that we cannot tell of the change would stay so for ever.
        match self.attachment.link.is_down() && self.tells_changes() {
            true => 0,
            false => LINK_UP,
        }
    }

    /// Whether we can tell the front end that the configuration space has changed.
    fn tells_changes(&self) -> bool {
        let both = VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::BACKEND_REQ;
        self.channel.is_some() && self.protocol_features & both.bits() == both.bits()
    }

    /// SET_BACKEND_REQ_FD: the channel for our requests.
    pub(in super::super) fn set_channel(&mut self, fds: Vec<OwnedFd>) -> io::Result<()> {
        for fd in fds {
            if !wire::is_channel(&fd) {
                self.retire([fd]);
                let why = "SET_BACKEND_REQ_FD: its descriptor is no Unix stream socket";
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
            let before = self.channel.replace(fd);
            self.kept.has_changed = true;
            self.retire(before);
        }
        // The front end may have read the configuration space before we could tell it of changes.
        if self.attachment.link.is_down() {
            self.tell_link();
        }
        Ok(())
    }

    /// Tells the front end that the link has changed, so that it reads the configuration space again.
    pub(in super::super) fn tell_link(&mut self) {
        self.attachment.link.note_seen();
        let Some(channel) = self.channel.as_ref().filter(|_| self.tells_changes()) else {
            return;
        };
        if let Err(why) = wire::tell_config_change(channel) {
            tracing::warn!(
                port = self.name,
                "the guest is not told that its link has changed: its front end does not read the channel for requests: {why}"
            );
        }
    }
}
