//! `ferro-bench`: our storage beside a peer's, in one run, on one machine.
//!
//! It drives a vhost-user-blk socket from outside, as a virtual machine monitor would, with a driver nobody here
//! wrote (the `blkio` crate), and compares what it sees with Ceph (`--peer ceph`) or with `qemu-storage-daemon`
//! (`--peer qsd`). `docs/benchmarks.md` says what each figure means.
//!
//! What it must not know: anything of the inside of `vsand`. It starts the daemons as an operator would, with a
//! configuration file and `vsanctl`, and measures only what a guest or `/proc` can see.
#![deny(unsafe_code)]

#[allow(unsafe_code)]
pub mod client;
pub mod cluster;
pub mod coding;
pub mod congestion;
pub mod disk_limit;
pub mod idle;
pub mod measure;
pub mod memory;
pub mod netns;
pub mod peer_ceph;
pub mod peer_qsd;
pub mod process;
pub mod rebuild;
pub mod report;
pub mod storage;
pub mod switch;
pub mod tunnel;
pub mod usage;
pub mod vm;
pub mod workload;
