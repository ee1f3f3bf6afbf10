//! Requests about the forwarding database.

use crosspoint_config::parse_mac;
use crosspoint_model::request::{ChangeError, FdbAdd, FdbAnswer, FdbFlush, FdbRemove};
use crosspoint_packet::Mac;

use crate::dataplane::{Dataplane, FdbError, Flush, StaticEntry};

impl From<FdbError> for ChangeError {
    fn from(error: FdbError) -> ChangeError {
        ChangeError::new(error.to_string(), error.help())
    }
}

fn mac(text: &str) -> Result<Mac, ChangeError> {
    let error = || {
        ChangeError::new(
            format!("{text:?} is not a MAC address"),
            "such as 52:54:00:00:00:01",
        )
    };
    parse_mac(text).ok_or_else(error)
}

/// A station's address.
fn station(text: &str) -> Result<Mac, ChangeError> {
    let mac = mac(text)?;
    match mac.is_valid_source() {
        true => Ok(mac),
        false => Err(ChangeError::new(
            format!("{text} is not the address of one station"),
            "a group address, or zero, is on no port",
        )),
    }
}

pub(super) fn flush(dataplane: &Dataplane, flush: &FdbFlush) -> Result<FdbAnswer, ChangeError> {
    let removed = dataplane.flush(&Flush {
        mac: flush.mac.as_deref().map(mac).transpose()?,
        port: flush.port.clone(),
        vlan: flush.vlan,
    })?;
    Ok(FdbAnswer {
        removed,
        ..FdbAnswer::default()
    })
}

pub(super) fn add(dataplane: &Dataplane, add: &FdbAdd) -> Result<FdbAnswer, ChangeError> {
    let vlan = dataplane.add_static(StaticEntry {
        mac: station(&add.mac)?,
        vlan: add.vlan,
        port: add.port.clone(),
    })?;
    Ok(FdbAnswer {
        vlan: Some(vlan),
        ..FdbAnswer::default()
    })
}

pub(super) fn remove(dataplane: &Dataplane, remove: &FdbRemove) -> Result<FdbAnswer, ChangeError> {
    let removed = dataplane.remove_static(mac(&remove.mac)?, remove.vlan)?;
    Ok(FdbAnswer {
        removed,
        ..FdbAnswer::default()
    })
}
