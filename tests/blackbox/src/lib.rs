//! The black box: real daemons, each in a network namespace with its own address and disks, made to die, freeze and lose
//! their links while clients write, and a checker that knows what each sector may hold.
//!
//! ```text
//!   test ── faults ──▶ lab: host 1, host 2, host 3 (vsand each)        vsanctl ◀── what the cluster says
//!     │                      ▲ vhost-user-blk sockets
//!     └── workload (own thread) ── every read ──▶ checker               vm: QEMU with `fio --verify`
//! ```
//!
//! * [`lab`] makes hosts and ends them; [`host`] is one of them; [`daemon`] is one daemon of it, [`process`] any program.
//! * [`disk`] is a real file system on a loop device, which can freeze and fail; [`held`] is a file of it that does not answer.
//! * [`checker`] keeps the possible values of every sector; [`workload`] reads and writes a volume against it; [`endure`] has
//!   it live through faults; [`mebibytes`] fills a volume until there is no room.
//! * [`vm`] is a virtual machine on a volume; [`front_end`] is a device of our own vmm without a machine around it. [`network`]
//!   is switches, machines on them, and traffic between those; [`cabling`] is the physical network that a switch's uplinks lead to.
//! * [`hypervisor`] is `hypervisord` on a host, [`bare`] what its virtual machines boot.
//! * [`bridge`] is one switch with frames in hand, ours or Open vSwitch; [`frames`] makes such frames.
//!
//! Everything here stands outside the daemons: it sees their sockets, their command line tool, their logs and their exit
//! codes, and nothing of their insides. Programs are taken from `FERRO_BIN_DIR`, or beside the test's own program; those of the former
//! release from `FERRO_FORMER_DIR`.
#![forbid(unsafe_code)]

pub mod bare;
pub mod bridge;
pub mod cabling;
pub mod checker;
pub mod daemon;
pub mod disk;
pub mod endure;
pub mod frames;
pub mod front_end;
pub mod held;
pub mod host;
pub mod hypervisor;
pub mod lab;
pub mod mebibytes;
pub mod network;
pub mod process;
pub mod vm;
pub mod wait;
pub mod workload;

pub use host::Host;
pub use lab::{Lab, LabOptions, with_lab};
pub use wait::{eventually, while_holding};
