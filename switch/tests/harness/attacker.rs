//! The attacker of tests/attacker: a front end that shares no code with the switch, and performs one attack on it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use super::{Lab, Process, run, s};

/// Its sources.
const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/attacker");
/// Entries of its rings: few, so that the switch is not busy for long after it has gone.
const RING: &str = "4096";

/// A running attacker, attached and not yet attacking.
pub struct Attacker {
    process: Process,
}

impl Attacker {
    /// Starts `attack` from port `own` to the ports `sinks`, and waits until it is attached to all. `options` are further
    /// options of its command line.
    pub fn start(lab: &Lab, attack: &str, own: &str, sinks: &[String], options: &[&str]) -> Self {
        let mut command = Command::new(program(lab.dir()));
        command.args([
            "--orders",
            "--core",
            "0",
            "--ring",
            RING,
            "--sink-ring",
            RING,
        ]);
        command
            .args(["--attack", attack, "--socket"])
            .arg(lab.socket(own));
        for sink in sinks {
            command.arg("--sink").arg(lab.socket(sink));
        }
        command.args(options);
        let mut process = Process::start(lab.dir(), "attacker", &command);
        process.wait_for("ready", s(20));
        Self { process }
    }

    /// Starts the attack.
    pub fn attack(&mut self) {
        self.process.type_line("attack");
        self.process.wait_for("attack\n", s(10));
    }

    /// Ends it. Returns its own report.
    pub fn end(mut self) -> serde_json::Value {
        self.process.type_line("end");
        let status = self.process.wait(s(10));
        let log = self.process.log();
        assert!(
            status.is_some_and(|status| status.success()),
            "{status:?}\n{log}"
        );
        let report = log.lines().last().unwrap_or_default();
        serde_json::from_str(report).unwrap_or_else(|error| panic!("{error}: {report:?}"))
    }
}

/// The attacker's program, rebuilt if its sources are newer.
fn program(dir: &Path) -> PathBuf {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("attacker");
    let age = |path: &Path| fs::metadata(path).and_then(|file| file.modified());
    let built = age(&program).unwrap_or(SystemTime::UNIX_EPOCH);
    let sources = fs::read_dir(SOURCE).expect("the attacker's sources");
    let is_younger = sources
        .map(|entry| age(&entry.expect("a source").path()).expect("its time"))
        .any(|source| source > built);
    if is_younger {
        // Built under another name first: another test may be running the old program.
        let new = program.with_extension(std::process::id().to_string());
        let mut command = Command::new("sh");
        command.arg(format!("{SOURCE}/build.sh")).arg(&new);
        let (status, text) = run(dir, &command, s(60));
        assert!(
            status.success(),
            "build.sh needs cc: apt install gcc\n{text}"
        );
        fs::rename(&new, &program).expect("the attacker's place");
    }
    program
}
