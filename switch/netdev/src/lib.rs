//! Network interfaces: their state, their changes and their settings, by rtnetlink and ethtool netlink, with blocking
//! calls; and the XDP program, attached. `unsafe` is confined to [`promiscuous`], for a socket option, to [`attach`], for bpf(2), to [`rss`]: netlink has
//! its function only since Linux 6.17, and older kernels need an ioctl; and to one line of [`request`], for a socket that
//! another process has opened.
//!
//! All calls use the network namespace of the calling thread.
//!
//! Kernel interface: Documentation/userspace-api/netlink, Documentation/networking/ethtool-netlink.rst.

pub mod attach;
mod below;
mod channels;
mod ethtool;
mod events;
mod features;
pub mod helper;
mod host_use;
mod interface;
mod namespace;
mod promiscuous;
mod reach;
mod request;
mod rss;
mod settings;
mod xdp;

pub use attach::{Attachment, XdpMode};
pub use channels::Channels;
pub use ethtool::Ethtool;
pub use events::{Changes, Events, Stopper, Wake};
pub use features::Feature;
pub use host_use::HostUse;
pub use interface::{Interface, Links, Peer};
pub use reach::Reach;
pub use request::LinkError;
pub use rss::IndirectionTable;
pub use settings::{Frames, Settings, SettingsRecord, Wanted};
pub use xdp::{Netdev, XdpSupport};
