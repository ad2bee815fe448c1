//! The TCP, trace by trace: what arrives when, and what must be sent when. `script` says how a line is read.

mod script;

mod acks;
mod alive;
mod blind;
mod closing;
mod data;
mod defence;
mod ecn;
mod loss;
mod opening;
mod options;
mod path;
mod recovery;
mod spurious;
mod timeouts;
mod windows;
mod wrap;
