//! `crosspoint show`: wiring; the text is made in `crate::show`.

use std::io::{self, IsTerminal, Write, stdout};
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use clap::builder::PossibleValue;
use clap::{Args, ValueEnum};
use crosspoint_model::client::{Client, ClientError};
use crosspoint_model::request::{ConnectionsWanted, Request};
use crosspoint_model::topic::Topic;
use miette::Diagnostic;
use serde_json::Value;

use crate::completions::{names_to_show, ports};
use crate::show::format::time_of_day;
use crate::show::{Choice, FdbChoice, Misshapen, SortBy, Watch, part_of_mac};
use crate::{control, help, show};

/// Show the state of a running switch
///
/// Counts are since the daemon started; shares of workers' time are of the last seconds. With --watch, traffic, drops and
/// workers are shown per second instead, and completion times are those since the previous refresh.
#[derive(Args)]
#[command(after_long_help = help::SHOW)]
pub(crate) struct Show {
    /// What to show
    #[arg(value_name = "TOPIC")]
    what: Subject,
    /// With `port`: the port's name; with `ports`: a pattern of names, such as 'web-*'; with `fdb`: an address or a part of
    /// one; with `rules`: a group's name; with `sets`: a set's name, whose addresses are listed. The other topics, such as
    /// `workers`, take no name and no number
    #[arg(required_if_eq("what", "port"), add = names_to_show())]
    name: Option<String>,
    /// With `ports`: the column to sort by; numbers have the largest first
    #[arg(long, value_name = "COLUMN", ignore_case = true)]
    sort: Option<SortBy>,
    /// With `ports`: remarks about each port below its line: why it is not up, its settings and properties
    #[arg(long)]
    detail: bool,
    /// With `fdb`: only addresses on this port; with `connections`: only those of this port
    #[arg(long, value_name = "PORT", add = ports())]
    port: Option<String>,
    /// With `fdb`: only addresses in this VLAN; 0 for none
    #[arg(long, value_name = "VLAN", value_parser = clap::value_parser!(u16).range(0..=4094))]
    vlan: Option<u16>,
    /// With `connections`: only those with this address, or one of this prefix, at either end
    #[arg(long, value_name = "ADDRESS")]
    address: Option<String>,
    /// With `connections`: the most to show; without it 1000
    #[arg(long, value_name = "NUMBER")]
    limit: Option<usize>,
    /// Print JSON, whose keys are stable; with --watch, a line for each refresh
    #[arg(long)]
    json: bool,
    /// Repeat after this many seconds (1 if no number is given, 0.1 to 3600)
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1", value_parser = seconds)]
    watch: Option<Duration>,
    /// With `fdb`: the addresses that moved between ports recently, and where they stay for now
    #[arg(long)]
    moves: bool,
    #[command(flatten)]
    socket: crate::control::Socket,
}

/// What `show` shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    /// One topic of all ports.
    Topic(Topic),
    /// All topics of one port.
    Port,
    /// The running configuration, as a file.
    Config,
}

impl ValueEnum for Subject {
    fn value_variants<'a>() -> &'a [Subject] {
        const ALL: [Subject; Topic::ALL.len() + 2] = {
            let mut all = [Subject::Port; Topic::ALL.len() + 2];
            all[Topic::ALL.len() + 1] = Subject::Config;
            let mut i = 0;
            while i < Topic::ALL.len() {
                all[i] = Subject::Topic(Topic::ALL[i]);
                i += 1;
            }
            all
        };
        &ALL
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(match self {
            Subject::Topic(topic) => PossibleValue::new(topic.name()).help(topic.help()),
            Subject::Port => PossibleValue::new("port").help("everything about port NAME"),
            Subject::Config => {
                PossibleValue::new("config").help("the running configuration, as a file")
            }
        })
    }
}

/// Reads an interval in seconds.
pub(crate) fn seconds(word: &str) -> Result<Duration, String> {
    let seconds = word.parse::<f64>().ok();
    seconds
        .filter(|seconds| (0.1..=3600.0).contains(seconds))
        .map(Duration::from_secs_f64)
        .ok_or_else(|| {
            "this must be a number of seconds from 0.1 to 3600; a topic comes before --watch"
                .to_owned()
        })
}

impl Show {
    /// Asks the running switch, and prints the answer.
    pub(crate) fn run(self) -> ExitCode {
        if let Err(Misuse { error, help }) = self.check() {
            eprintln!("error: {error}\nhelp: {help}");
            return ExitCode::from(control::MISUSE);
        }
        let mut client = Client::new(&self.socket.socket);
        match self.watch {
            None => match self.once(&mut client) {
                Ok(text) => print(&text).map_or(ExitCode::FAILURE, |()| ExitCode::SUCCESS),
                Err(why) => why.say(),
            },
            Some(every) => self.again_and_again(&mut client, every),
        }
    }

    /// Whether the options go with the topic.
    fn check(&self) -> Result<(), Misuse> {
        let misuse = |error: String, help: String| Err(Misuse { error, help });
        let is = |topic: Topic| self.what == Subject::Topic(topic);
        let (is_ports, is_fdb) = (is(Topic::Ports), is(Topic::Fdb));
        let has_names =
            is_ports || is_fdb || is(Topic::Rules) || is(Topic::Sets) || is(Topic::Bridges);
        if let (Subject::Topic(topic), Some(name), false) = (self.what, &self.name, has_names) {
            return misuse(
                format!("`show {topic}` takes no name and no number"),
                format!("show port {name}"),
            );
        }
        if let (Subject::Config, Some(_)) = (self.what, &self.name) {
            return misuse(
                "`show config` takes no name".to_owned(),
                "crosspoint show config".to_owned(),
            );
        }
        let of_fdb = [
            (self.moves, "--moves"),
            (self.port.is_some() && !is(Topic::Connections), "--port"),
            (self.vlan.is_some(), "--vlan"),
        ];
        let of_connections = [
            (self.address.is_some(), "--address"),
            (self.limit.is_some(), "--limit"),
        ];
        let of_ports = [(self.sort.is_some(), "--sort"), (self.detail, "--detail")];
        let of_fdb = of_fdb
            .into_iter()
            .map(|(is, name)| (is && !is_fdb, name, "fdb"));
        let of_ports = of_ports
            .into_iter()
            .map(|(is, name)| (is && !is_ports, name, "ports"));
        let of_connections = of_connections
            .into_iter()
            .map(|(given, name)| (given && !is(Topic::Connections), name, "connections"));
        let all = of_fdb.chain(of_ports).chain(of_connections);
        let wrong = all.into_iter().find(|(is_wrong, ..)| *is_wrong);
        if let Some((_, option, topic)) = wrong {
            return misuse(
                format!("{option} goes with `show {topic}`"),
                format!("show {topic} {option}"),
            );
        }
        if let (true, Some(word)) = (is_fdb, &self.name)
            && let Err(why) = part_of_mac(word)
        {
            return misuse(why, format!("show fdb --port {word}"));
        }
        Ok(())
    }

    /// Which ports are shown.
    fn ports(&self) -> Choice {
        Choice {
            names: self.name.clone(),
            sort: self.sort,
            detail: self.detail,
        }
    }

    /// Which addresses are shown.
    fn addresses(&self) -> FdbChoice {
        FdbChoice {
            mac: self.name.as_ref().and_then(|word| part_of_mac(word).ok()),
            port: self.port.clone(),
            vlan: self.vlan,
            moves: self.moves,
        }
    }

    /// Asks for the topic, and keeps what is to be shown.
    fn answer(&self, client: &mut Client) -> Result<Value, Failed> {
        let value: Value = client.request(&self.request())?;
        Ok(match self.what {
            Subject::Topic(Topic::Ports) => self.ports().of_json(value)?,
            Subject::Topic(Topic::Fdb) => {
                let value = self.addresses().of_json(value);
                let is_found = |key| value.get(key).is_some_and(|all| !is_empty(all));
                // The answer for an unknown port is an error that names the ports.
                if let Some(port) = &self.port
                    && !is_found("addresses")
                    && !is_found("movers")
                {
                    let _: Value = client.request(&Request::Port(port.clone()))?;
                }
                value
            }
            Subject::Topic(Topic::Rules) => self.named(value, "group"),
            Subject::Topic(Topic::Sets | Topic::Bridges) => self.named(value, "name"),
            Subject::Topic(Topic::Connections) => {
                let is_empty = value.get("connections").is_none_or(is_empty);
                // The answer for an unknown port is an error that names the ports.
                if let Some(port) = self.port.as_ref().filter(|_| is_empty) {
                    let _: Value = client.request(&Request::Port(port.clone()))?;
                }
                value
            }
            _ => value,
        })
    }

    /// Keeps the rows whose `key` is the name of the command line, if it has one.
    fn named(&self, value: Value, key: &str) -> Value {
        match (value, &self.name) {
            (Value::Array(rows), Some(name)) => {
                let is_it = |row: &Value| row.get(key).and_then(Value::as_str) == Some(name);
                rows.into_iter().filter(is_it).collect()
            }
            (value, _) => value,
        }
    }

    fn request(&self) -> Request {
        match self.what {
            Subject::Topic(Topic::Connections) => Request::Connections(ConnectionsWanted {
                port: self.port.clone(),
                address: self.address.clone(),
                limit: self.limit,
            }),
            Subject::Topic(topic) => Request::Show(topic),
            Subject::Port => Request::Port(self.name.clone().unwrap_or_default()),
            Subject::Config => Request::Config {},
        }
    }

    fn once(&self, client: &mut Client) -> Result<String, Failed> {
        let value = self.answer(client)?;
        if self.json {
            return Ok(format!("{value:#}"));
        }
        Ok(self.render(&value)?)
    }

    fn render(&self, value: &Value) -> Result<String, Misshapen> {
        match self.what {
            Subject::Topic(Topic::Fdb) if self.moves => show::render_movers(value),
            Subject::Topic(Topic::Fdb) if !self.addresses().is_all() => {
                show::render_addresses(value)
            }
            Subject::Topic(Topic::Ports) if self.name.is_some() && is_empty(value) => {
                Ok("No port has such a name.\n".to_owned())
            }
            Subject::Topic(Topic::Rules) if self.name.is_some() && is_empty(value) => {
                Ok("No group with rules has such a name.\n".to_owned())
            }
            Subject::Topic(Topic::Bridges) if self.name.is_some() && is_empty(value) => {
                Ok("No bridge has such a name.\n".to_owned())
            }
            Subject::Topic(Topic::Sets) if self.name.is_some() && is_empty(value) => {
                Ok("No set has such a name.\n".to_owned())
            }
            Subject::Topic(Topic::Sets) if self.name.is_some() => show::render_set(value),
            Subject::Topic(Topic::Ports) => show::render_ports(value, self.detail),
            Subject::Topic(topic) => show::render(topic, value),
            Subject::Port => show::render_port(value),
            Subject::Config => show::render_config(value),
        }
    }

    /// Repeats until the reader closes the pipe, or a signal comes. A daemon must be there only at the beginning: later it
    /// may be restarted.
    fn again_and_again(&self, client: &mut Client, every: Duration) -> ExitCode {
        let in_place = stdout().is_terminal() && !self.json;
        let mut watch = Watch::of(self.ports());
        let mut first = true;
        loop {
            let text = match self.refresh(client, &mut watch) {
                Ok(text) => text,
                Err(why) if first => return why.say(),
                Err(why) if in_place => format!("{why}\ntrying again\n"),
                Err(why) => {
                    why.say();
                    String::new()
                }
            };
            let heading = format!(
                "show {}, every {every:?}; {}",
                self.title(),
                time_of_day(SystemTime::now())
            );
            let printed = match (in_place, text.is_empty()) {
                (true, _) => print_in_place(&heading, &text, first),
                (false, true) => Ok(()),
                (false, false) if first || self.json => print(&text),
                (false, false) => print(&format!("\n{text}")),
            };
            if printed.is_err() {
                // The reader has closed the pipe.
                return ExitCode::SUCCESS;
            }
            first = false;
            std::thread::sleep(every);
        }
    }

    fn title(&self) -> String {
        match self.what {
            Subject::Topic(topic) => topic.name().to_owned(),
            Subject::Config => "config".to_owned(),
            Subject::Port => show::printable(&format!(
                "port {}",
                self.name.as_deref().unwrap_or_default()
            )),
        }
    }

    /// The text of one refresh.
    fn refresh(&self, client: &mut Client, watch: &mut Watch) -> Result<String, Failed> {
        match self.what {
            Subject::Topic(topic) if !self.json && Watch::has_rates(topic) => {
                let snapshot = client.request(&Request::Snapshot {})?;
                Ok(watch.render(topic, snapshot))
            }
            Subject::Port if !self.json => {
                // An unknown port is an error at the first request.
                if watch.is_new() {
                    let _: Value = client.request(&self.request())?;
                }
                let snapshot = client.request(&Request::Snapshot {})?;
                let name = self.name.as_deref().unwrap_or_default();
                Ok(watch.render_port(name, snapshot))
            }
            _ => {
                let value = self.answer(client)?;
                if self.json {
                    return Ok(value.to_string());
                }
                Ok(self.render(&value)?)
            }
        }
    }
}

/// Options that do not go together.
struct Misuse {
    error: String,
    help: String,
}

fn is_empty(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty)
}

/// Why nothing can be shown.
#[derive(Debug, thiserror::Error)]
enum Failed {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Misshapen(#[from] Misshapen),
}

impl Failed {
    fn say(&self) -> ExitCode {
        let help = match self {
            Failed::Client(why) => why.help(),
            Failed::Misshapen(why) => why.help(),
        };
        eprintln!("error: {self}");
        if let Some(help) = help {
            eprintln!("help: {help}");
        }
        ExitCode::FAILURE
    }
}

fn print(text: &str) -> io::Result<()> {
    let mut out = stdout().lock();
    writeln!(out, "{}", text.trim_end())?;
    out.flush()
}

/// Prints over the previous output. Lines that do not fit the screen are left out, since they would scroll it.
fn print_in_place(heading: &str, text: &str, first: bool) -> io::Result<()> {
    let height = rustix::termios::tcgetwinsize(stdout()).map_or(0, |size| size.ws_row);
    // Some terminals do not know their size, and say 0.
    let height = if height == 0 { 24 } else { height };
    // One line for the heading, and one for the cursor.
    let room = usize::from(height).saturating_sub(2).max(1);
    let lines = text.trim_end().lines().count();
    let shown = if lines > room { room - 1 } else { lines };
    let mut screen = String::from(if first { "\x1b[2J\x1b[H" } else { "\x1b[H" });
    let more = format!("... {} more lines", lines - shown);
    let more = Some(more.as_str()).filter(|_| lines > shown);
    let lines = text.lines().take(shown);
    for line in std::iter::once(heading).chain(lines).chain(more) {
        screen.push_str(line);
        screen.push_str("\x1b[K\n");
    }
    screen.push_str("\x1b[J");
    let mut out = stdout().lock();
    out.write_all(screen.as_bytes())?;
    out.flush()
}
