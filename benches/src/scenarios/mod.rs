//! What is measured: a module for each subcommand.
//!
//! | module | what |
//! |---|---|
//! | [`suite`], [`suite_options`] | `suite`: scenarios of guests |
//! | [`nic`] | `nic`: scenarios with NICs |
//! | [`compare`] | `compare`: any switches and any measuring command |
//! | [`idle`] | `idle`: the cost of an idle worker, and how soon it wakes |
//! | [`churn`] | `churn`: the cost of guests and interfaces that come and go to those that stay |
//! | [`fairness`] | `fairness`: how much hostile guests take from other guests of their worker |
//! | [`lines`] | `lines`: cache lines that cross between cores, and what they cost |
//! | [`scrape`] | `scrape`: how long a scrape takes |
//! | [`soak`] | `soak`: all that can happen, in random order, for as long as one likes |
//! | [`outage`] | `outage`: what two guests notice while something is done to their switch |
//! | [`feature_filter`] | `mask`: hides features between a vhost-user front end and a back end |

pub mod churn;
pub mod compare;
pub mod fairness;
pub mod feature_filter;
pub mod idle;
pub mod lines;
pub mod nic;
pub mod outage;
pub mod scrape;
pub mod soak;
pub mod suite;
pub mod suite_options;
