//! The command line of `ferro-bench`.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use ferro_bench::coding::{CodingArgs, coding};
use ferro_bench::congestion::{CongestionArgs, ProbeArgs, congestion};
use ferro_bench::idle::{IdleArgs, idle};
use ferro_bench::memory::{MemoryArgs, memory};
use ferro_bench::process::Stop;
use ferro_bench::rebuild::{RebuildArgs, rebuild};
use ferro_bench::storage::{SocketArgs, StorageArgs, socket, storage};
use ferro_bench::switch::{SwitchArgs, UdpArgs, switch};
use ferro_bench::tunnel::{QuinnArgs, quinn};
use ferro_bench::vm::{VmArgs, vm};

/// Measures Ferrosphere's storage, switch and hypervisor beside their peers, in one run, on one machine.
#[derive(Debug, Parser)]
#[command(name = "ferro-bench", version)]
struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Three daemons on loopback under the workloads, then a peer, and the ratios.
    Storage(StorageArgs),
    /// What daemons use while their volumes do nothing.
    Idle(IdleArgs),
    /// What a large volume's metadata costs the daemons.
    Memory(MemoryArgs),
    /// How fast what a dead host held is rebuilt, and what that costs a guest.
    Rebuild(RebuildArgs),
    /// The workloads on a vhost-user-blk socket that is there already. Overwrites what is on it.
    Socket(SocketArgs),
    /// The switch's tunnels beside bare quinn, over loopback.
    Quinn(QuinnArgs),
    /// The switch under frames, super-frames and pings, then its peers, and the ratios.
    Switch(SwitchArgs),
    /// A guest's own TCP through tunnels with each congestion controller, and through VXLAN.
    Congestion(CongestionArgs),
    /// Our virtual machine monitor beside QEMU: how fast a guest starts, and what the monitor itself takes.
    Vm(VmArgs),
    /// The erasure code beside another crate's and ISA-L's.
    Coding(CodingArgs),
    /// Sends UDP packets back: the other end of a latency measurement.
    #[command(hide = true)]
    UdpEcho(UdpArgs),
    /// Measures round trips to it.
    #[command(hide = true)]
    UdpPing(UdpArgs),
    /// Measures them under load.
    #[command(hide = true)]
    UdpProbe(ProbeArgs),
}

fn main() -> ExitCode {
    let args = Args::parse();
    let done = Stop::on_signals().and_then(|stop| match &args.what {
        What::Storage(args) => storage(args, &stop),
        What::Idle(args) => idle(args, &stop),
        What::Memory(args) => memory(args, &stop),
        What::Rebuild(args) => rebuild(args, &stop),
        What::Socket(args) => socket(args, &stop).map(|()| true),
        What::Quinn(args) => quinn(args, &stop),
        What::Switch(args) => switch(args, &stop),
        What::Congestion(args) => congestion(args, &stop).map(|()| true),
        What::Vm(args) => vm(args, &stop),
        What::Coding(args) => coding(args, &stop),
        What::UdpEcho(args) => args.echo(&stop).map(|()| true),
        What::UdpPing(args) => args.ping().map(|()| true),
        What::UdpProbe(args) => args.send().map(|()| true),
    });
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("ferro-bench: a target was missed");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("ferro-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}
