//! Security groups of the running configuration, and requests about sets of addresses and about connections.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::str::FromStr as _;

use crosspoint_config::plan::Plan;
use crosspoint_config::{Config, KeepError, PreparedSet, parse_address, prefix_text, prepare_set};
use crosspoint_model::plan::{Failure, KeepAnswer, KeptPort, NotKept};
use crosspoint_model::request::{
    CONNECTIONS_SHOWN, ChangeError, ConnectionsWanted, SetAnswer, SetChange,
};
use crosspoint_model::rows::ConnectionTable;
use crosspoint_packet::IpNet;

use super::files::help_of;
use super::{Changing, Running};
use crate::dataplane::{ConnectionFilter, Dataplane};

/// What commands have changed in sets, by the set's name. It stays until the files say the same, a command takes it back, or
/// the switch ends.
#[derive(Clone, Debug, Default)]
pub(super) struct SetChanges(BTreeMap<String, Changed>);

#[derive(Clone, Debug, Default)]
struct Changed {
    added: BTreeSet<IpNet>,
    removed: BTreeSet<IpNet>,
}

impl SetChanges {
    /// The names of the changed sets.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }

    /// Notes a command. The files have the set with the addresses `in_files`.
    fn note(&mut self, name: &str, change: &[IpNet], is_added: bool, in_files: &[IpNet]) {
        let in_files: BTreeSet<&IpNet> = in_files.iter().collect();
        let changed = self.0.entry(name.to_owned()).or_default();
        for net in change {
            let (now, before) = match is_added {
                true => (&mut changed.added, &mut changed.removed),
                false => (&mut changed.removed, &mut changed.added),
            };
            before.remove(net);
            if in_files.contains(net) != is_added {
                now.insert(*net);
            }
        }
        self.0
            .retain(|_, changed| !(changed.added.is_empty() && changed.removed.is_empty()));
    }

    /// The configuration of files with these changes. A change of a set that the files do not have is left out.
    pub(super) fn applied_to(&self, config: Config) -> Config {
        self.0.iter().fold(config, |config, (name, changed)| {
            let added: Vec<IpNet> = changed.added.iter().copied().collect();
            let removed: Vec<IpNet> = changed.removed.iter().copied().collect();
            let with = |config: Config, change: &[IpNet], is_added| {
                let changed = config.with_set_changed(name, change, is_added);
                changed.map_or(config, |(config, _)| config)
            };
            // First what makes room: the set may be as large as it can be.
            with(with(config, &removed, false), &added, true)
        })
    }

    /// Changes that the files of `config` say too belong to the files.
    pub(super) fn forget_those_of(&mut self, config: &Config) {
        self.0.retain(|name, changed| {
            let Some(set) = config.sets.iter().find(|set| set.name == *name) else {
                return false;
            };
            let known: BTreeSet<&IpNet> = config.set_addresses(set).iter().collect();
            changed.added.retain(|net| !known.contains(net));
            changed.removed.retain(|net| known.contains(net));
            !(changed.added.is_empty() && changed.removed.is_empty())
        });
    }
}

impl Changing {
    /// Puts the groups and sets of the wanted configuration into use. Call it before ports are opened, so that no frame
    /// passes without rules. Returns what cannot be used.
    pub(super) fn take_groups(&mut self, wanted: &Config, dataplane: &Dataplane) -> Vec<Failure> {
        self.config.groups.clone_from(&wanted.groups);
        self.config.sets.clone_from(&wanted.sets);
        self.config.set_files.clone_from(&wanted.set_files);
        let set = dataplane.set_groups(wanted, self.config.connections.max);
        let failed = set.err().unwrap_or_default().into_iter();
        let failed = failed.map(|error| {
            tracing::error!(
                "{error}; ports with these groups keep their former rules, or let nothing pass"
            );
            let what = "group".to_owned();
            Failure { what, error }
        });
        failed.collect()
    }

    /// Records that the files have these addresses more in a set, or have them no longer.
    fn note_kept_addresses(&mut self, set: &str, change: &[IpNet], is_added: bool) {
        if let Some(loaded) = &mut self.loaded
            && let Ok((config, _)) = loaded.config.with_set_changed(set, change, is_added)
        {
            loaded.config = config;
        }
    }

    /// The addresses of a set in the files, as they were last read or written.
    fn addresses_in_files(&self, name: &str) -> Vec<IpNet> {
        let Some(loaded) = &self.loaded else {
            return Vec::new();
        };
        let mut sets = loaded.config.sets.iter();
        let set = sets.find(|set| set.name == name);
        set.map_or(Vec::new(), |set| loaded.config.set_addresses(set).to_vec())
    }

    /// Writes what commands have changed in sets to the files.
    pub(super) fn keep_sets(&mut self, main: &Path, answer: &mut KeepAnswer) {
        for (name, changed) in self.sets_by_hand.0.clone() {
            let saved = self.save_set(main, &name, &changed);
            match saved {
                Ok(path) => {
                    tracing::info!("set {name} written to {}", path.display());
                    self.sets_by_hand.0.remove(&name);
                    answer.kept_sets.push(KeptPort { name, path });
                }
                Err(why) => answer.not_kept_sets.push(NotKept {
                    error: why.to_string(),
                    help: help_of(&why),
                    table: changed.text(),
                    name,
                }),
            }
        }
    }

    fn save_set(
        &mut self,
        main: &Path,
        name: &str,
        changed: &Changed,
    ) -> Result<PathBuf, KeepError> {
        let mut path = main.to_owned();
        for (change, is_added) in [(&changed.added, true), (&changed.removed, false)] {
            let change: Vec<IpNet> = change.iter().copied().collect();
            let set = self.config.sets.iter().find(|set| set.name == name);
            if let (Some(set), false) = (set, change.is_empty()) {
                let prepared = prepare_set(main, &self.config, set, &change, is_added)?;
                path = prepared.commit()?;
                self.note_kept_addresses(name, &change, is_added);
            }
        }
        Ok(path)
    }
}

impl Changed {
    /// What to write by hand: a line for each address.
    fn text(&self) -> String {
        let added = self.added.iter().map(|net| ("add", net));
        let removed = self.removed.iter().map(|net| ("remove", net));
        let lines = added
            .chain(removed)
            .map(|(what, net)| format!("{what} {}\n", prefix_text(net)));
        lines.collect()
    }
}

impl Running {
    /// Adds addresses to a set, or removes them; with `keep`, also in the set's file.
    pub(super) fn change_set(
        &self,
        change: &SetChange,
        is_added: bool,
    ) -> Result<SetAnswer, ChangeError> {
        let mut changing = self.lock();
        let addresses = change.addresses.iter().map(|text| address(text));
        let addresses: Vec<IpNet> = addresses.collect::<Result<_, _>>()?;
        let changed = changing
            .config
            .with_set_changed(&change.set, &addresses, is_added);
        let (wanted, count) = changed.map_err(|error| ChangeError::of_command(&error))?;
        let Some(set) = wanted.sets.iter().find(|set| set.name == change.set) else {
            return Ok(SetAnswer::default());
        };
        // Before the switch changes, so that a file that cannot be written changes nothing.
        let prepared = match change.keep {
            true => {
                let main = self.main_file()?;
                let running = &changing.config;
                Some(prepare_set(main, running, set, &addresses, is_added)?)
            }
            false => None,
        };
        let answer = SetAnswer {
            changed: count,
            addresses: wanted.set_addresses(set).len(),
        };
        if count > 0 {
            self.apply_set(&mut changing, &wanted)?;
        }
        let kept = prepared.map(PreparedSet::commit).transpose();
        if let Ok(Some(path)) = &kept {
            tracing::info!("set {} written to {}", change.set, path.display());
            changing.note_kept_addresses(&change.set, &addresses, is_added);
        }
        let in_files = changing.addresses_in_files(&change.set);
        changing
            .sets_by_hand
            .note(&change.set, &addresses, is_added, &in_files);
        match kept {
            Ok(_) => Ok(answer),
            Err(why) => Err(ChangeError::new(
                format!("the switch has changed, and the file has not: {why}"),
                help_of(&why),
            )),
        }
    }

    /// Uses a set as it is in `wanted`. If its rules cannot be compiled, nothing changes.
    fn apply_set(&self, changing: &mut Changing, wanted: &Config) -> Result<(), ChangeError> {
        let before = changing.config.clone();
        let plan = Plan::between(&before, wanted);
        let failed = self.apply(changing, wanted, &plan);
        let Some(failure) = failed.into_iter().next() else {
            return Ok(());
        };
        // Those were in use, so they can be compiled.
        changing.take_groups(&before, &self.dataplane);
        Err(ChangeError::new(
            failure.error,
            "nothing was changed; join addresses to prefixes",
        ))
    }

    /// The connections that a request asks for.
    pub(super) fn connections_of(
        &self,
        wanted: &ConnectionsWanted,
    ) -> Result<ConnectionTable, ChangeError> {
        let address = wanted.address.as_deref().map(address).transpose()?;
        Ok(self.dataplane.connections(&ConnectionFilter {
            port: wanted.port.clone(),
            address,
            limit: wanted.limit.unwrap_or(CONNECTIONS_SHOWN),
        }))
    }
}

/// An address or prefix of a command.
fn address(text: &str) -> Result<IpNet, ChangeError> {
    parse_address(text).map_err(|_| {
        let help = match IpNet::from_str(text) {
            Ok(net) => format!("bits beyond the prefix are set: write {}", net.trunc()),
            Err(_) => "such as 192.0.2.1, 192.0.2.0/24, 2001:db8::1 or 2001:db8::/48".to_owned(),
        };
        ChangeError::new(format!("{text:?} is no IP address, and no prefix"), help)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        parse_address(text).expect("an address")
    }

    fn config(addresses: &str) -> Config {
        let text = format!("version = 1\n[[set]]\nname = \"admins\"\naddresses = [{addresses}]\n");
        Config::parse("switch.toml", &text).expect("a configuration")
    }

    #[test]
    fn what_commands_change_in_a_set_stays_until_the_files_say_it_too() {
        let files = config("\"192.0.2.1\", \"192.0.2.2\"");
        let in_files = files.set_addresses(&files.sets[0]).to_vec();
        let mut changes = SetChanges::default();
        changes.note("admins", &[net("192.0.2.9")], true, &in_files);
        changes.note("admins", &[net("192.0.2.1")], false, &in_files);
        let applied = changes.applied_to(files.clone());
        let addresses = |config: &Config| config.set_addresses(&config.sets[0]).to_vec();
        assert_eq!(addresses(&applied), [net("192.0.2.2"), net("192.0.2.9")]);
        // One of the two is in the files now.
        let files = config("\"192.0.2.2\"");
        changes.forget_those_of(&files);
        let applied = changes.applied_to(files.clone());
        assert_eq!(addresses(&applied), [net("192.0.2.2"), net("192.0.2.9")]);
        changes.note("admins", &[net("192.0.2.9")], false, &addresses(&files));
        assert_eq!(
            addresses(&changes.applied_to(files.clone())),
            addresses(&files)
        );
        changes.forget_those_of(&Config::default());
        assert!(changes.0.is_empty());
    }
}
