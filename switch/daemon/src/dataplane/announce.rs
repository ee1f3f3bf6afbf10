//! Frames that the switch itself sends as if they had come in on a port.

use crosspoint_engine::snapshot::Snapshot;
use crosspoint_engine::worker::Injected;
use crosspoint_packet::Mac;

use super::{Dataplane, PortState, State};

/// Ethernet type of RARP, and the operation "reverse request" (RFC 903).
const RARP_TYPE: [u8; 2] = [0x80, 0x35];
const REVERSE_REQUEST: u8 = 3;

impl Dataplane {
    /// Broadcasts a RARP request for `mac` that comes in on port `number`, so that this switch and those beyond learn
    /// where the station is now. The frame is lost, with a line in the log, if too many already wait, the port is
    /// quarantined or disabled, or the port may not use the address.
    pub(super) fn announce_locked(&self, state: &mut State, number: u16, mac: Mac) {
        let Some(Some(port)) = state.ports.get(usize::from(number)) else {
            return;
        };
        let name = port.view.name.clone();
        if port.options.disabled {
            tracing::warn!(port = %name, "{mac} is not announced: the port is disabled");
            return;
        }
        if port.state == PortState::Quarantined {
            tracing::warn!(port = %name, "{mac} is not announced: the port is quarantined");
            return;
        }
        if !is_allowed(&state.view, number, mac) {
            tracing::warn!(port = %name, "{mac} is not announced: it is not in the port's `addresses`, or in another port's");
            return;
        }
        // The worker that polls the port's own frames, so that they stay in order.
        let worker = port.streams.get(&0).map_or(0, |placed| placed.worker);
        let injected = Injected::new(number, None, &rarp_request(mac));
        let pushed = self.links.get(worker).map(|l| l.injected.push(injected));
        if !matches!(pushed, Some(Ok(()))) {
            tracing::warn!(port = %name, "{mac} is not announced: too many announcements wait");
            return;
        }
        tracing::info!(port = %name, "{mac} is announced");
        // Workers look at injected frames when they get an update.
        drop(self.publish(state, Vec::new()));
    }
}

/// Whether untagged frames from `mac` may come in on the port.
fn is_allowed(view: &Snapshot, number: u16, mac: Mac) -> bool {
    let placed = view.port(number).map(|port| port.vlan.admit(None));
    // If the port admits no untagged frame at all, the worker drops and counts the frame.
    let Some(Ok(placed)) = placed else {
        return true;
    };
    view.allows_source(mac, placed.vlan, number)
}

/// "Who am I?" (RFC 903), from and about `mac`, broadcast: 60 bytes.
fn rarp_request(mac: Mac) -> [u8; 60] {
    let mut frame = [0; 60];
    let fields: [&[u8]; 10] = [
        &Mac::BROADCAST.bytes(),
        &mac.bytes(),
        &RARP_TYPE,
        &[0, 1],       // hardware: Ethernet
        &[8, 0, 6, 4], // protocol: IPv4; lengths of the addresses
        &[0, REVERSE_REQUEST],
        &mac.bytes(), // sender
        &[0; 4],
        &mac.bytes(), // target
        &[0; 4],
    ];
    let bytes = fields.iter().flat_map(|field| field.iter());
    frame
        .iter_mut()
        .zip(bytes)
        .for_each(|(to, from)| *to = *from);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rarp_request_is_laid_out_as_rfc_903_says() {
        let mac = [0x52, 0x54, 0, 1, 2, 3];
        let frame = rarp_request(Mac::new(mac));
        assert_eq!(frame[..6], [0xff; 6]);
        assert_eq!(frame[6..12], mac);
        assert_eq!(frame[12..22], [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
        assert_eq!((&frame[22..28], &frame[32..38]), (&mac[..], &mac[..]));
        assert_eq!((&frame[28..32], &frame[38..]), (&[0; 4][..], &[0; 22][..]));
    }
}
