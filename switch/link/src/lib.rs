//! Network interfaces: their state, their changes and their settings. By rtnetlink and ethtool netlink, with blocking
//! calls. `unsafe` is confined to [`rss`]: netlink has its function only since Linux 6.17, and older kernels need an
//! ioctl.
//!
//! All calls use the network namespace of the calling thread.
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
