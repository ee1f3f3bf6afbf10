//! Upgrades to another version of the program, and back: a debug build that behaves like one (`daemon/src/handover/pretend.rs`).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use crate::harness::{Exchange, Lab, Switch, binary, guest, s};

/// The installed program.
struct Installed(PathBuf);

impl Installed {
    fn put(&self, write: impl FnOnce(&Path)) {
        let new = self.0.with_extension("new");
        write(&new);
        fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).expect("a mode");
        fs::rename(&new, &self.0).expect("a file");
    }

    /// This version.
    fn plain(&self) {
        self.put(|new| {
            fs::copy(binary(), new).expect("a copy");
        });
    }

    /// A version that differs in `words`.
    fn pretending(&self, words: &str) {
        let program = binary();
        let script = format!("#!/bin/sh\nCROSSPOINT_PRETEND='{words}' exec {program} \"$@\"\n");
        self.put(|new| fs::write(new, script).expect("a script"));
    }
}

#[test]
fn another_version_takes_over_if_it_knows_what_guests_need_and_is_refused_in_words_if_not() {
    let lab = Lab::new(s(90));
    let installed = Installed(lab.dir().join("installed"));
    installed.plain();
    let ports = ["g0", "g1"].map(|name| guest(&lab, name));
    let switch = Switch::start_supervised_by(&installed.0, &lab, &[1], &ports);
    let exchange = Exchange::start(&lab, &switch, ["g0", "g1"]);
    let upgrade = |refused: Option<&str>| {
        exchange.run(500);
        let before = switch.supervised_id();
        let (status, text) = switch.upgrade(&[]);
        assert_eq!(status.success(), refused.is_none(), "{text}");
        assert!(refused.is_none_or(|why| text.contains(why)), "{text}");
        let is_same = switch.supervised_id() == before;
        assert_eq!(is_same, refused.is_some(), "{text}");
        exchange.run(500);
    };
    // A later version, which reads this one's messages, and back.
    installed.pretending("reads=1-2");
    upgrade(None);
    installed.plain();
    upgrade(None);
    // One that does not read them.
    installed.pretending("reads=2-3");
    upgrade(Some(
        "writes version 1 of the hand-over, and this one reads 2 to 3",
    ));
    // One with a record that this version does not know, and can do without.
    installed.pretending("record=next/more");
    upgrade(None);
    installed.plain();
    upgrade(None);
    // One with a record without which guests would be lost.
    installed.pretending("critical=next/guests");
    upgrade(None);
    installed.plain();
    upgrade(Some("has \"next/guests\", which this one does not know"));
    installed.pretending("critical=next/guests");
    upgrade(Some("next/guests"));
    exchange.stop();
    switch.ledger();
}
