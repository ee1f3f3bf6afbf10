//! The configuration, from outside: the meaning of files, the messages, and what `configs/` promises.

// Each integration test is a crate; a single one for the configuration links only once.
#[path = "config/arbitrary.rs"]
mod arbitrary;
#[path = "config/bridges.rs"]
mod bridges;
#[path = "config/files.rs"]
mod files;
#[path = "config/folder.rs"]
mod folder;
#[path = "config/groups.rs"]
mod groups;
#[path = "config/keep.rs"]
mod keep;
#[path = "config/load.rs"]
mod load;
#[path = "config/meaning.rs"]
mod meaning;
#[path = "config/messages.rs"]
mod messages;
#[path = "config/odd.rs"]
mod odd;
#[path = "config/report.rs"]
mod report;
