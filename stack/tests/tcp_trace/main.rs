//! The TCP, trace by trace: what arrives when, and what must be sent when. `script` says how a line is read.

mod script;

mod closing;
mod data;
mod defence;
mod loss;
mod opening;
