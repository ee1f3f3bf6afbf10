//! `crosspoint port`: adds, removes, disables or changes one port.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use crosspoint_config as config;
use crosspoint_config::PortTable;
use crosspoint_model::request::{PortAdd, PortRemove, PortSet, Request};

use crate::completions::ports;
use crate::{control, reload};

/// Add, change or remove a port of a running switch
///
/// Other ports are not disturbed. Without --keep, the configuration's files do not change: the next reload sets the ports in
/// the files to what the files say, and an added port stays until it is removed, or the switch ends. With --keep, the port
/// is written to its file, which may be the main file, or removed from it; comments and all other lines stay.
#[derive(clap::Args)]
pub(crate) struct Port {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Add a port
    ///
    /// A port that exists with the same keys is no error. Keys are those of a [[port]] table. A value is read as TOML, or else
    /// as text: type=vhost socket=/run/crosspoint/guests/web-1.sock vlan.access=5
    Add {
        /// The port's name
        #[arg(required_unless_present = "file")]
        name: Option<String>,
        /// Its other keys, such as type=vhost
        #[arg(value_name = "KEY=VALUE", conflicts_with = "file")]
        keys: Vec<String>,
        /// Read them from a file with one [[port]] table
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        /// Change a port of this name, if there is one with other keys, instead of refusing
        #[arg(long)]
        may_exist: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Change keys of a port
    ///
    /// Values are written as for `port add`. KEY= without a value is the key's default. A dotted key such as vlan.native changes
    /// that key of a table; a table such as vlan={access=5} is replaced as a whole. KEY+=VALUE adds to a list and KEY-=VALUE
    /// removes from it: vlan.trunk+=300 vlan.trunk-=100-199
    Set {
        /// The port's name
        #[arg(add = ports())]
        name: String,
        /// The keys, such as mac_limit=10
        #[arg(value_name = "KEY=VALUE", required = true)]
        keys: Vec<String>,
        #[command(flatten)]
        common: Common,
    },
    /// Take a port off the network; what is attached to it stays attached
    ///
    /// Nothing is taken from it, and nothing is sent to it, until `port enable`. The same as `port set NAME admin=down`.
    Disable {
        /// The port's name
        #[arg(add = ports())]
        name: String,
        #[command(flatten)]
        common: Common,
    },
    /// Let a disabled port take part again
    ///
    /// The same as `port set NAME admin=up`.
    Enable {
        /// The port's name
        #[arg(add = ports())]
        name: String,
        #[command(flatten)]
        common: Common,
    },
    /// Remove a port
    Remove {
        /// The port's name
        #[arg(add = ports())]
        name: String,
        /// Succeed if there is no such port
        #[arg(long)]
        if_exists: bool,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(clap::Args)]
struct Common {
    /// Change the port's file too; a new port gets a file in `ports_dir`, or is added to the main file if there is no `ports_dir`
    #[arg(long)]
    keep: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: control::Socket,
}

impl Port {
    pub(crate) fn run(self) -> ExitCode {
        match self.action.request() {
            Ok((request, common)) => reload::change(&common.socket.socket, &request, common.json),
            Err(Refused { why, status }) => {
                eprintln!("error: {why}");
                // What is wrong with a file comes with its own help.
                if !why.contains("\nhelp: ") {
                    eprintln!("help: see `crosspoint port --help`");
                }
                ExitCode::from(status)
            }
        }
    }
}

/// Why nothing is asked of the switch.
struct Refused {
    why: String,
    status: u8,
}

/// The command line is wrong.
impl From<String> for Refused {
    fn from(why: String) -> Refused {
        let status = control::MISUSE;
        Refused { why, status }
    }
}

impl Action {
    fn request(self) -> Result<(Request, Common), Refused> {
        Ok(match self {
            Action::Add {
                name,
                keys,
                file,
                may_exist,
                common,
            } => {
                let mut port = match file {
                    Some(path) => read(&path).map_err(|why| Refused { why, status: 1 })?,
                    None => config::parse_assignments(&keys)?,
                };
                if let Some(name) = name {
                    let other = port.insert("name".to_owned(), name.clone().into());
                    if other.is_some_and(|other| other != name.as_str()) {
                        let why = format!("the file gives the port another name than {name:?}");
                        return Err(why.into());
                    }
                }
                let keep = common.keep;
                let add = PortAdd {
                    keep,
                    may_exist,
                    port,
                };
                (Request::PortAdd(add), common)
            }
            Action::Set { name, keys, common } => {
                let (set, keep) = (config::parse_changes(&keys)?, common.keep);
                (Request::PortSet(PortSet { name, set, keep }), common)
            }
            Action::Disable { name, common } => (admin(name, "down", common.keep), common),
            Action::Enable { name, common } => (admin(name, "up", common.keep), common),
            Action::Remove {
                name,
                if_exists,
                common,
            } => {
                let remove = PortRemove {
                    name,
                    keep: common.keep,
                    if_exists,
                };
                (Request::PortRemove(remove), common)
            }
        })
    }
}

fn admin(name: String, state: &str, keep: bool) -> Request {
    let set = PortTable::from_iter([("admin".to_owned(), state.into())]);
    Request::PortSet(PortSet { name, set, keep })
}

fn read(path: &Path) -> Result<PortTable, String> {
    let text = config::read_named(path)?;
    config::parse_port_file(&path.display().to_string(), &text)
}
