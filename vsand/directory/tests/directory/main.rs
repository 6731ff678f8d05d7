//! The directory as a group: real databases, real elections, a network that fails on request.

mod chaos;
mod commands;
mod harness;
mod hostile;
mod membership;
mod recovery;
