//! Segmentation in software: against etherparse, against Linux, and against anything at all.

mod frames;
mod hostile;
mod kernel_gso;
mod properties;
