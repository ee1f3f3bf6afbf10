//! Builds the attacker of switch/tests/attacker, lists its attacks, and controls it.

use crate::error::BenchError;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use tempfile::TempDir;

const NAME: &str = "the attacker";

/// The attacker's program.
pub struct Program {
    path: PathBuf,
    /// Holds the program.
    _directory: TempDir,
}

/// One of its attacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attack {
    /// The name by which it is started.
    pub name: String,
    /// Queue pairs of the port that attacks.
    pub queue_pairs: u16,
    /// Ports that receive.
    pub sinks: usize,
    /// Queue pairs of each.
    pub sink_queue_pairs: u16,
    /// Whether its frames could reach the victim: both are in one VLAN.
    pub is_beside_victim: bool,
    /// Whether it is a single frame, which takes nothing from others.
    pub is_once: bool,
    /// A description.
    pub about: String,
}

/// The attacker's report, over all attacks of one process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// Frames that the switch was offered.
    pub offered: u64,
    /// Frames that the switch took.
    pub taken: u64,
    /// Checks of the ring during the attack.
    pub looks: u64,
    /// Checks that found nothing left to take: the switch was faster than the attacker.
    pub dry: u64,
    /// Entries of the sinks' receive rings that were used.
    pub received: u64,
    /// Whether the switch hung up.
    pub closed: bool,
}

/// A running attacker. It does nothing until ordered to attack. When dropped, it is killed.
pub struct Attacker {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Program {
    /// Builds the program with its build.sh, in the folder that is given or in that of the source tree.
    pub fn build(given: Option<&PathBuf>) -> Result<Self, BenchError> {
        let tree = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../switch/tests/attacker");
        let script = given.cloned().unwrap_or_else(tree).join("build.sh");
        let directory = TempDir::with_prefix("crosspoint-bench-")
            .map_err(BenchError::io("temporary directory"))?;
        let path = directory.path().join("attacker");
        let status = Command::new("sh").arg(&script).arg(&path).status();
        let status = status.map_err(BenchError::io("sh"))?;
        if !status.success() {
            let needs = "it needs cc (apt install gcc); --attacker names its folder";
            let what = format!("{} fails: {needs}", script.display());
            return Err(BenchError::backend(NAME, what));
        }
        Ok(Self {
            path,
            _directory: directory,
        })
    }

    /// All attacks of the program.
    pub fn attacks(&self) -> Result<Vec<Attack>, BenchError> {
        let output = Command::new(&self.path).arg("--list").output();
        let output = output.map_err(BenchError::io(NAME))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let attack = |line| {
            Attack::parse(line)
                .ok_or_else(|| BenchError::backend(NAME, format!("--list says {line:?}")))
        };
        text.lines().map(attack).collect()
    }

    /// Starts `attack` on `core`, from the port of the first of `sockets` to the ports of the others, and waits until all
    /// are attached. It does not attack yet.
    pub fn start(
        &self,
        attack: &Attack,
        core: usize,
        priority: i32,
        sockets: &[PathBuf],
    ) -> Result<Attacker, BenchError> {
        let [own, sinks @ ..] = sockets else {
            return Err(BenchError::backend(NAME, "has no port"));
        };
        let mut command = Command::new(&self.path);
        command.args(["--orders", "--attack", &attack.name, "--socket"]);
        command.arg(own);
        for sink in sinks {
            command.arg("--sink").arg(sink);
        }
        command.args(["--core", &core.to_string(), "--fifo", &priority.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(BenchError::io(NAME))?;
        let pipes = child.stdin.take().zip(child.stdout.take());
        let (orders, answers) = pipes.expect("both were asked for");
        let mut attacker = Attacker {
            child,
            orders,
            answers: BufReader::new(answers),
        };
        attacker.expect("ready")?;
        Ok(attacker)
    }
}

impl Attack {
    /// A line of `--list`.
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.splitn(6, ' ');
        let mut next = || words.next();
        let name = next()?.to_owned();
        let queue_pairs = next()?.parse().ok()?;
        let sinks = next()?.parse().ok()?;
        let sink_queue_pairs = next()?.parse().ok()?;
        let kind = next()?;
        Some(Self {
            name,
            queue_pairs,
            sinks,
            sink_queue_pairs,
            is_beside_victim: kind == "beside",
            is_once: kind == "once",
            about: next()?.to_owned(),
        })
    }
}

impl Attacker {
    /// Starts the attack.
    pub fn attack(&mut self) -> Result<(), BenchError> {
        self.order("attack")
    }

    /// Pauses the attack, and waits until the switch has taken what it was offered, or has stopped taking any.
    pub fn hold(&mut self) -> Result<(), BenchError> {
        self.order("hold")
    }

    /// Ends the attacker. Returns its report.
    pub fn end(mut self) -> Result<Done, BenchError> {
        self.say("end")?;
        let line = self.line()?;
        serde_json::from_str(&line)
            .map_err(|why| BenchError::backend(NAME, format!("ends with {line:?}: {why}")))
    }

    fn order(&mut self, word: &str) -> Result<(), BenchError> {
        self.say(word)?;
        self.expect(word)
    }

    fn say(&mut self, word: &str) -> Result<(), BenchError> {
        writeln!(self.orders, "{word}").map_err(BenchError::io(NAME))
    }

    fn expect(&mut self, wanted: &str) -> Result<(), BenchError> {
        let line = self.line()?;
        if line == wanted {
            return Ok(());
        }
        let what = format!("says {line:?}, and not {wanted:?}");
        Err(BenchError::backend(NAME, what))
    }

    fn line(&mut self) -> Result<String, BenchError> {
        let mut line = String::new();
        let read = self.answers.read_line(&mut line);
        read.map_err(BenchError::io(NAME))?;
        Ok(line.trim_end().to_owned())
    }
}

impl Drop for Attacker {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it has ended already
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_list_is_an_attack() {
        let attack = Attack::parse("queues-16 16 1 4 beside 60 bytes from 16 queues").unwrap();
        assert_eq!((attack.queue_pairs, attack.sink_queue_pairs), (16, 4));
        assert!(attack.is_beside_victim && attack.about == "60 bytes from 16 queues");
        assert_eq!(Attack::parse("plain-60 1 1"), None);
    }

    /// The program builds, and every attack has what a row needs.
    #[test]
    fn the_program_lists_its_attacks() {
        let attacks = Program::build(None).unwrap().attacks().unwrap();
        assert!(attacks.iter().any(|attack| attack.name == "plain-60"));
        assert!(attacks.iter().all(|a| a.queue_pairs > 0 && a.sinks > 0));
    }
}
