//! The metrics: what is exported, and how the server behaves.

#[path = "metrics/access.rs"]
mod access;
#[path = "metrics/certificates.rs"]
mod certificates;
#[path = "metrics/exposition.rs"]
mod exposition;
#[path = "show/picture.rs"]
mod picture;
#[path = "metrics/server.rs"]
mod server;
