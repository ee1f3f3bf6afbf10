//! `crosspoint fdb`: forgets learned addresses, and puts addresses on ports.

use std::process::ExitCode;

use crosspoint_model::request::{FdbAdd, FdbAnswer, FdbFlush, FdbRemove, Request};

use crate::completions::{bridges, ports};
use crate::control;

/// Forget learned addresses of a running switch, or put addresses on ports
///
/// `crosspoint show fdb` shows what is known. A static address stays on its port: it does not age out, is not learned on
/// another port, and frames from it on another port are dropped (source_not_allowed). [[fdb]] tables of the configuration
/// have static addresses too. An address that is added here without --keep is in no file: it lasts until it is removed or the
/// switch ends. `crosspoint keep` writes such addresses to the files later.
#[derive(clap::Args)]
pub(crate) struct Fdb {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Forget learned addresses: all, or only those that all options name
    ///
    /// Frames for a forgotten address are flooded until it is learned again. Static addresses stay.
    Flush {
        /// Only this address
        mac: Option<String>,
        /// Only addresses on this port
        #[arg(long, value_name = "PORT", add = ports())]
        port: Option<String>,
        /// Only addresses in this VLAN; 0 for none
        #[arg(long, value_name = "VLAN", value_parser = clap::value_parser!(u16).range(0..=4094))]
        vlan: Option<u16>,
        /// Only addresses in this bridge
        #[arg(long, value_name = "BRIDGE", add = bridges())]
        bridge: Option<String>,
        #[command(flatten)]
        common: Common,
    },
    /// Put an address on a port
    Add {
        /// The address
        mac: String,
        /// The port's name
        #[arg(long, value_name = "PORT", add = ports())]
        port: String,
        /// The address's VLAN; without it, the VLAN of the port's untagged frames
        #[arg(long, value_name = "VLAN", value_parser = clap::value_parser!(u16).range(0..=4094))]
        vlan: Option<u16>,
        /// The address's bridge, if that is not the port's own: of an uplink with several
        #[arg(long, value_name = "BRIDGE", add = bridges())]
        bridge: Option<String>,
        /// Also write it to the files, so that it is still there after a restart: where it is, or to fdb.toml in `ports_dir`
        #[arg(long)]
        keep: bool,
        #[command(flatten)]
        common: Common,
    },
    /// Take a static address off its port, and forget it
    ///
    /// Without --keep, an entry of the configuration comes back with the next reload.
    Remove {
        /// The address
        mac: String,
        /// Only in this VLAN; 0 for none
        #[arg(long, value_name = "VLAN", value_parser = clap::value_parser!(u16).range(0..=4094))]
        vlan: Option<u16>,
        /// Only in this bridge
        #[arg(long, value_name = "BRIDGE", add = bridges())]
        bridge: Option<String>,
        /// Also remove it from the files
        #[arg(long)]
        keep: bool,
        /// Succeed if the address is not static
        #[arg(long)]
        if_exists: bool,
        #[command(flatten)]
        common: Common,
    },
}

#[derive(clap::Args)]
struct Common {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    socket: control::Socket,
}

impl Fdb {
    pub(crate) fn run(self) -> ExitCode {
        let (request, common) = self.action.request();
        let Some((value, answer)) = control::ask_as::<FdbAnswer>(&common.socket.socket, &request)
        else {
            return ExitCode::FAILURE;
        };
        control::print(common.json, &value, || text(&request, &answer));
        ExitCode::SUCCESS
    }
}

impl Action {
    fn request(self) -> (Request, Common) {
        match self {
            Action::Flush {
                mac,
                port,
                vlan,
                bridge,
                common,
            } => {
                let flush = FdbFlush {
                    mac,
                    port,
                    vlan,
                    bridge,
                };
                (Request::FdbFlush(flush), common)
            }
            Action::Add {
                mac,
                port,
                vlan,
                bridge,
                keep,
                common,
            } => {
                let add = FdbAdd {
                    mac,
                    port,
                    vlan,
                    bridge,
                    keep,
                };
                (Request::FdbAdd(add), common)
            }
            Action::Remove {
                mac,
                vlan,
                bridge,
                keep,
                if_exists,
                common,
            } => {
                let remove = FdbRemove {
                    mac,
                    vlan,
                    bridge,
                    keep,
                    if_exists,
                };
                (Request::FdbRemove(remove), common)
            }
        }
    }
}

fn text(request: &Request, answer: &FdbAnswer) -> String {
    match request {
        Request::FdbAdd(add) => match answer.vlan {
            Some(0) | None => format!("{} is on port {}\n", add.mac, add.port),
            Some(vlan) => format!("{} is on port {} in VLAN {vlan}\n", add.mac, add.port),
        },
        _ => match answer.removed {
            1 => "1 address is forgotten\n".to_owned(),
            count => format!("{count} addresses are forgotten\n"),
        },
    }
}
