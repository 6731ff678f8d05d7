//! QUIC between hosts: data connections in the worker, control connections beside it.
