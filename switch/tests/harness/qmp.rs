//! QEMU's control socket, as far as a migration needs it (QEMU Machine Protocol: one JSON object per line).

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};

use super::{s, wait_until};

/// A connection, past the greeting.
pub struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects as soon as QEMU listens.
    pub fn connect(path: &Path) -> Self {
        let stream = wait_until("QEMU's control socket", s(20), || {
            UnixStream::connect(path).ok()
        });
        stream.set_read_timeout(Some(s(20))).expect("a timeout");
        let mut qmp = Self {
            stream: BufReader::new(stream),
        };
        let greeting = qmp.line();
        assert!(greeting.get("QMP").is_some(), "{greeting}");
        qmp.must("qmp_capabilities", json!({}));
        qmp
    }

    fn line(&mut self) -> Value {
        let mut text = String::new();
        self.stream.read_line(&mut text).expect("QEMU answers");
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text:?}"))
    }

    /// Executes a command. Returns its result, or QEMU's error. Events in between are ignored.
    ///
    /// # Errors
    /// QEMU refuses the command.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, String> {
        let request = json!({ "execute": command, "arguments": arguments });
        writeln!(self.stream.get_mut(), "{request}").expect("QEMU listens");
        loop {
            let mut answer = self.line();
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                return Err(error["desc"].as_str().unwrap_or_default().to_owned());
            }
        }
    }

    /// Like [`Qmp::execute`], for a command that must succeed.
    pub fn must(&mut self, command: &str, arguments: Value) -> Value {
        let answer = self.execute(command, arguments);
        answer.unwrap_or_else(|reason| panic!("{command}: {reason}"))
    }
}
