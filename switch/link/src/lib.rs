//! Network interfaces, as the kernel's administrators see them: what there is, what becomes of it, and how it is
//! set. By rtnetlink and ethtool netlink, with blocking calls. `unsafe` is confined to [`rss`], since what it needs
//! is in netlink only since Linux 6.17, and in older kernels behind an ioctl.
//!
//! Everything is about the network namespace of the thread that calls.
//!
//! Kernel interface: Documentation/userspace-api/netlink, Documentation/networking/ethtool-netlink.rst.

mod below;
mod channels;
mod ethtool;
mod events;
mod features;
mod interface;
mod namespace;
mod reach;
mod request;
mod rss;
mod settings;
mod xdp;

pub use channels::Channels;
pub use ethtool::Ethtool;
pub use events::{Changes, Events, Stopper, Wake};
pub use features::Feature;
pub use interface::{Interface, Links, Peer};
pub use reach::Reach;
pub use request::LinkError;
pub use rss::IndirectionTable;
pub use settings::{Frames, Settings, Wanted};
pub use xdp::{Netdev, XdpSupport};
