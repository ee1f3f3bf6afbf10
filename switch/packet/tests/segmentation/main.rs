//! Segmentation in software: against etherparse, against Linux, and against anything at all.

mod fragments;
mod frames;
mod hostile;
mod kernel_gso;
mod kernel_reassembly;
mod properties;
mod tap;
