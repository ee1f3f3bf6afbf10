//! The end of `--help` and of the manual pages that are made from it: examples and exit statuses.

pub(crate) const ALL: &str = "\
Exit status:
  0  success
  1  an error; the message says how to fix it
  2  the command line is wrong
  Some commands have more exit statuses; see their own help.

Environment:
  CROSSPOINT_SOCKET  the control socket, if --socket does not name one
  CROSSPOINT_LOG     what `run` logs: error, warn, info (default), debug, trace
  NO_COLOR           if it is not empty, output has no colours

Files:
  /etc/crosspoint/crosspoint.toml  the packaged service's configuration
  /run/crosspoint/control.sock     the control socket, unless it names another";

pub(crate) const RUN: &str = "\
Examples:
  crosspoint run --config /etc/crosspoint/crosspoint.toml
  CROSSPOINT_LOG=debug crosspoint run --config demo.toml

Exit status:
  0  it was ended by SIGTERM or SIGINT
  1  it could not start; the message gives the reason
  2  the command line is wrong";

pub(crate) const SUPERVISE: &str = "\
Examples:
  crosspoint supervise --config /etc/crosspoint/crosspoint.toml
  crosspoint upgrade

Exit status:
  0  it was ended by SIGTERM or SIGINT
  1  the switch could not start, or crashes again and again; the message gives the reason
  2  the command line is wrong";

pub(crate) const UPGRADE: &str = "\
Examples:
  crosspoint upgrade --dry-run
  crosspoint upgrade
  crosspoint upgrade --back

Exit status:
  0  the new process serves the guests; with --dry-run, it would
  1  nothing has changed; the message gives the reason
  2  the command line is wrong";

pub(crate) const CHECK: &str = "\
Examples:
  crosspoint check --config /etc/crosspoint/crosspoint.toml
  crosspoint check --host --config /etc/crosspoint/crosspoint.toml

Exit status:
  0  the configuration is fine; with --host, there may be warnings about this host
  1  it has mistakes, each reported with its place; or with --host, an error of this host
  2  the command line is wrong";

pub(crate) const DOCTOR: &str = "\
Examples:
  crosspoint doctor
  crosspoint doctor --config /etc/crosspoint/crosspoint.toml
  crosspoint doctor --all --json | jq '.findings[] | select(.severity == \"error\")'

Exit status:
  0  all is well
  3  a note
  4  a warning
  5  an error
  1  the configuration cannot be read
  2  the command line is wrong";

pub(crate) const MOVE: &str = "\
Examples:
  crosspoint show workers
  crosspoint move web-1 0 1

Exit status:
  0  the worker polls the queue
  1  it does not; the message gives the reason
  2  the command line is wrong";

pub(crate) const SHOW: &str = "\
Examples:
  crosspoint show ports
  crosspoint show ports 'web-*' --sort drops --detail
  crosspoint show port web-1
  crosspoint show port web-1 --watch
  crosspoint show fdb 52:54:00 --vlan 100
  crosspoint show fdb --moves --port web-1
  crosspoint show rules web
  crosspoint show connections --port web-1 --address 192.0.2.0/24
  crosspoint show drops --watch
  crosspoint show queues --watch 5
  crosspoint show ports --json | jq -r '.[] | select(.state != \"up\") | .name'

Exit status:
  0  it was shown
  1  there is no answer; the message gives the reason
  2  the command line is wrong";

pub(crate) const SET: &str = "\
Examples:
  crosspoint set add admins 192.0.2.7
  crosspoint set add blocked 198.51.100.0/24 2001:db8:bad::/48 --keep
  crosspoint set remove admins 192.0.2.7

Exit status:
  0  the set is as it should be, whether or not it was so before
  1  it is not; the message gives the reason
  2  the command line is wrong";

pub(crate) const TOP: &str = "\
Examples:
  crosspoint top
  crosspoint top --view latency --sort P99 --interval 5
  crosspoint top --batch -n 1 --view drops

Exit status:
  0  it was ended by a key, or all refreshes are printed
  1  there is no terminal, or, with --batch, no daemon
  2  the command line is wrong
  128 plus the signal's number, if a signal ended it";

pub(crate) const COMPLETIONS: &str = "\
Examples:
  crosspoint completions bash > /usr/share/bash-completion/completions/crosspoint
  crosspoint completions zsh > /usr/share/zsh/vendor-completions/_crosspoint
  crosspoint completions fish > /usr/share/fish/vendor_completions.d/crosspoint.fish
  source <(crosspoint completions bash)

Exit status:
  0  always
  2  the command line is wrong";

pub(crate) const MAN: &str = "\
Examples:
  crosspoint man | man -l -
  crosspoint man --dir /usr/local/share/man/man1

Exit status:
  0  the pages are written
  1  they cannot be written
  2  the command line is wrong";
