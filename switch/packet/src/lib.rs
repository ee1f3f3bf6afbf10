//! Parses and changes frames: headers, VLAN tags, checksums, flow hash, segmentation, and the list of drop reasons. No
//! `unsafe`, no allocation, no C library.
#![forbid(unsafe_code)]

pub mod checksum;
mod drop_reason;
pub mod filter;
mod flow;
mod fragment;
pub mod gro;
pub mod headers;
mod mac;
pub mod offload;
mod parse;
pub mod partial;
mod pieces;
pub mod segment;

pub use drop_reason::{DropReason, Side};
pub use flow::FlowHasher;
pub use headers::{L4, parse_l4};
pub use ipnet::IpNet;
pub use mac::Mac;
pub use parse::{
    ETHERNET_LEN, ETHERTYPE_QINQ, ETHERTYPE_VLAN, MAX_FRAME_LEN, PROTO_TCP, Parsed, TAG_LEN,
    TAGS_MAX,
};
