//! The configuration, from the outside: what files mean, what messages say, and what `configs/` promises.

// Integration tests are crates of their own: this is the only one of the configuration, so that it links once.
#[path = "config/arbitrary.rs"]
mod arbitrary;
#[path = "config/files.rs"]
mod files;
#[path = "config/folder.rs"]
mod folder;
#[path = "config/generated.rs"]
mod generated;
#[path = "config/load.rs"]
mod load;
#[path = "config/meaning.rs"]
mod meaning;
#[path = "config/messages.rs"]
mod messages;
#[path = "config/odd.rs"]
mod odd;
#[path = "config/plan.rs"]
mod plan;
