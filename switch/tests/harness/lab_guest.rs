//! A guest that is a whole lab, for features that this machine's kernel lacks; and guests whose console takes commands.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::{Lab, Process, s, wait_until};

/// The script of deploy/guest that boots such guests.
pub const QEMU_SWITCH: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../deploy/guest/qemu-switch.sh"
);

/// A guest whose console runs each typed line, and prints how it ended.
pub struct CommandGuest {
    console: Process,
}

impl CommandGuest {
    /// Boots it by `command`, which is [`QEMU_SWITCH`] with arguments.
    pub fn start(lab: &Lab, command: &std::process::Command) -> Self {
        let mut console = Process::start(lab.dir(), "guest-switch", command);
        console.wait_for("GUEST-READY", s(60));
        Self { console }
    }

    /// A guest with tools and modules for namespaces, this switch, and the files in /switch.
    pub fn lab(lab: &Lab, files: &[(&str, &str)]) -> Self {
        let mut command = lab.command(QEMU_SWITCH);
        command.arg("--lab").arg(env!("CARGO_BIN_EXE_crosspoint"));
        for (name, text) in files {
            let path = lab.dir().join(Path::new(name));
            fs::write(&path, text).expect("a file is written");
            command.arg(path);
        }
        Self::start(lab, &command)
    }

    /// Runs a command, which must succeed within the limit. Returns its output.
    pub fn ask(&mut self, line: &str, limit: Duration) -> String {
        let before = self.console.log().len();
        self.console.type_line(line);
        let (text, status) = wait_until(line, limit, || {
            let log = self.console.log();
            let (text, status) = log.get(before..)?.rsplit_once("ENDED ")?;
            Some((text.to_owned(), status.strip_suffix('\n')?.to_owned()))
        });
        assert_eq!(status, "0", "{line}: {text}");
        text
    }
}
