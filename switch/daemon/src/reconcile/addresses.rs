//! Requests about the forwarding database.

use std::path::Path;

use crosspoint_config::limits::STATICS_MAX;
use crosspoint_config::{Config, FileChanges, KeepError, StaticEntry};
use crosspoint_model::request::{ChangeError, FdbAdd, FdbAnswer, FdbFlush, FdbRemove};
use crosspoint_packet::Mac;

use super::{Changing, Running};
use crate::dataplane::{Dataplane, FdbError, Flush};

impl From<FdbError> for ChangeError {
    fn from(error: FdbError) -> ChangeError {
        ChangeError::new(error.to_string(), error.help())
    }
}

fn mac(text: &str) -> Result<Mac, ChangeError> {
    let error = || {
        ChangeError::new(
            format!("{text:?} is not a MAC address"),
            "such as 52:54:00:00:00:01, 52-54-00-00-00-01, 5254.0000.0001 or 525400000001",
        )
    };
    as_typed(text).ok_or_else(error)
}

/// Reads an address as people and other programs write it.
fn as_typed(text: &str) -> Option<Mac> {
    let marks = [(':', 2), ('-', 2), ('.', 4)].into_iter();
    let mut plain = marks.filter_map(|(mark, digits)| {
        let is_so = text.contains(mark) && text.split(mark).all(|part| part.len() == digits);
        is_so.then(|| text.replace(mark, ""))
    });
    let plain = plain.next().unwrap_or_else(|| text.to_owned());
    let is_whole = plain.len() == 12 && plain.bytes().all(|byte| byte.is_ascii_hexdigit());
    let word = u64::from_str_radix(&plain, 16).ok().filter(|_| is_whole)?;
    let [_, _, bytes @ ..] = word.to_be_bytes();
    Some(Mac::new(bytes))
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
        bridge: flush.bridge.clone(),
    })?;
    Ok(FdbAnswer {
        removed,
        ..FdbAnswer::default()
    })
}

impl Running {
    /// Puts an address on a port; with `keep`, also writes it to its file.
    pub(super) fn add_static(&self, add: &FdbAdd) -> Result<FdbAnswer, ChangeError> {
        let mut changing = self.lock();
        let asked = StaticEntry {
            mac: station(&add.mac)?,
            vlan: add.vlan,
            bridge: add.bridge.clone(),
            port: add.port.clone(),
        };
        let vlan = self.dataplane.check_static(&asked)?;
        let entry = StaticEntry {
            vlan: Some(vlan),
            ..asked
        };
        let config = &changing.config;
        config
            .check_static(&entry)
            .map_err(|error| ChangeError::of_command(&error))?;
        let place = config.place_of(&entry);
        let is_same =
            |other: &StaticEntry| other.mac == entry.mac && config.place_of(other) == place;
        let is_in_files = |other: &StaticEntry| is_same(other) && other.port == entry.port;
        let is_kept = config.fdb.iter().any(is_in_files);
        let mut fdb = config.fdb.clone();
        let mut by_hand = changing.fdb_by_hand.clone();
        by_hand.retain(|other| !is_same(other));
        if add.keep && !is_kept {
            let mut changes = FileChanges::begin(self.main_file()?, config)?;
            changes.set_static(&entry)?;
            changes.prepare()?.commit()?;
            fdb.retain(|other| !is_same(other));
            fdb.push(entry);
        } else if !is_kept {
            if by_hand.len() >= STATICS_MAX {
                return Err(FdbError::TooMany.into());
            }
            by_hand.push(entry);
        }
        (changing.config.fdb, changing.fdb_by_hand) = (fdb, by_hand);
        changing.set_statics(&self.dataplane);
        Ok(FdbAnswer {
            vlan: Some(vlan),
            ..FdbAnswer::default()
        })
    }

    /// Removes the static entries of an address, in one VLAN or in all; with `keep`, also from their file. Without it, an
    /// entry of a file comes back when the file is read again.
    pub(super) fn remove_static(&self, remove: &FdbRemove) -> Result<FdbAnswer, ChangeError> {
        let mut changing = self.lock();
        let mac = mac(&remove.mac)?;
        let config = &changing.config;
        let at = (remove.bridge.as_deref(), remove.vlan);
        let is_meant = |entry: &StaticEntry| config.is_for(entry, mac, at);
        let (mut fdb, mut by_hand) = (config.fdb.clone(), changing.fdb_by_hand.clone());
        let meant = fdb.iter().chain(&by_hand).filter(|entry| is_meant(entry));
        let mut places: Vec<_> = meant.map(|entry| config.place_of(entry)).collect();
        places.sort_unstable();
        places.dedup();
        if places.is_empty() {
            return self.remove_absent_static(config, mac, remove);
        }
        if remove.keep {
            remove_from_files(self.main_file()?, config, mac, at)?;
        }
        fdb.retain(|entry| !is_meant(entry));
        by_hand.retain(|entry| !is_meant(entry));
        (changing.config.fdb, changing.fdb_by_hand) = (fdb, by_hand);
        changing.set_statics(&self.dataplane);
        Ok(FdbAnswer {
            removed: places.len(),
            ..FdbAnswer::default()
        })
    }
}

impl Running {
    /// Removes a static address that is not in use: with `keep`, from its file, which would bring it back at the next reload.
    fn remove_absent_static(
        &self,
        config: &Config,
        mac: Mac,
        remove: &FdbRemove,
    ) -> Result<FdbAnswer, ChangeError> {
        if let (true, Some(main)) = (remove.keep, self.path.as_deref()) {
            let at = (remove.bridge.as_deref(), remove.vlan);
            match remove_from_files(main, config, mac, at) {
                Ok(()) => return Ok(FdbAnswer::default()),
                Err(KeepError::StaticNowhere { .. }) => {}
                Err(why) => return Err(why.into()),
            }
        }
        match remove.if_exists {
            true => Ok(FdbAnswer::default()),
            false => Err(FdbError::NotStatic(mac).into()),
        }
    }
}

fn remove_from_files(
    main: &Path,
    config: &Config,
    mac: Mac,
    at: (Option<&str>, Option<u16>),
) -> Result<(), KeepError> {
    let mut changes = FileChanges::begin(main, config)?;
    changes.remove_statics(mac, at)?;
    changes.prepare()?.commit()
}

impl Changing {
    /// Puts the lists of the wanted configuration into use.
    pub(super) fn take_lists(&mut self, wanted: &Config, dataplane: &Dataplane) {
        self.config.fdb.clone_from(&wanted.fdb);
        // Now no port is in a bridge that is gone.
        dataplane.set_bridges(wanted, false);
        self.set_statics(dataplane);
    }

    /// Adds the bridges of the wanted configuration. Call it before ports are opened or put into them.
    pub(super) fn take_bridges(&mut self, wanted: &Config, dataplane: &Dataplane) {
        self.config.bridges.clone_from(&wanted.bridges);
        dataplane.set_bridges(wanted, true);
    }

    /// Puts the mirrors of the wanted configuration into use. Call it before ports are opened, so that the port of a mirror
    /// never has other traffic.
    pub(super) fn take_mirrors(&mut self, wanted: &Config, dataplane: &Dataplane) {
        self.config.mirrors.clone_from(&wanted.mirrors);
        dataplane.set_mirrors(wanted.mirrors.clone());
    }

    /// Puts the static addresses of the files and of commands into use.
    pub(super) fn set_statics(&self, dataplane: &Dataplane) {
        dataplane.set_statics(&self.config.fdb, &self.fdb_by_hand);
    }

    /// Static addresses that are in the files now belong to them.
    pub(super) fn note_statics_of_files(&mut self, wanted: &Config) {
        let in_files = |entry: &StaticEntry| {
            let is_it = |other: &&StaticEntry| {
                other.port == entry.port
                    && other.mac == entry.mac
                    && wanted.place_of(other) == wanted.place_of(entry)
            };
            wanted.fdb.iter().find(is_it).is_some()
        };
        self.fdb_by_hand.retain(|entry| !in_files(entry));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_however_it_is_written() {
        let mac = Some(Mac::new([0x52, 0x54, 0, 0xab, 0xcd, 0xef]));
        for text in [
            "52:54:00:ab:cd:ef",
            "52-54-00-AB-CD-EF",
            "5254.00ab.cdef",
            "525400abcdef",
        ] {
            assert_eq!(as_typed(text), mac, "{text}");
        }
        for text in [
            "",
            "52:54",
            "5:2:5400abcdef",
            "+25400abcdef",
            "52:54:00:ab:cd:ef:00",
        ] {
            assert_eq!(as_typed(text), None, "{text}");
        }
    }
}
