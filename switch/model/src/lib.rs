//! What the daemon and its clients say to each other: status, rows, requests, plans, captured frames; and the client's end of
//! the control socket.

pub mod capture;
pub mod client;
pub mod completion;
pub mod health;
pub mod plan;
pub mod request;
pub mod rows;
pub mod schema;
pub mod status;
pub mod topic;
pub mod trace;
