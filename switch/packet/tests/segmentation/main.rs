//! Tests of software segmentation: against etherparse, against Linux, and with arbitrary input.

mod fragments;
mod frames;
mod hostile;
mod kernel_gso;
mod kernel_reassembly;
mod netns;
mod properties;
mod tap;
