//! The command line: a folder or a file for each command, with all that only it needs.

mod capture;
mod check;
pub mod cli;
mod completions;
mod control;
#[cfg(test)]
mod docs;
pub mod doctor;
mod fdb;
mod health;
mod help;
mod keep;
mod man;
pub mod plan;
mod port;
mod reload;
mod report;
mod run;
mod set;
pub mod show;
mod supervise;
mod top;
mod trace;
