//! The commands' texts, from the outside: tables, findings, plans.

#[path = "commands/doctor.rs"]
mod doctor;
#[path = "commands/generated.rs"]
mod generated;
#[path = "../daemon/tests/show/picture.rs"]
mod picture;
#[path = "commands/plan.rs"]
mod plan;
#[path = "commands/show.rs"]
mod show;
