//! The command line, and how it becomes a [`VmConfig`].

use std::path::PathBuf;

use clap::Parser;

use crate::config::{CPUS_MAX, ConsoleTarget, CpuCount, VmConfig};
use crate::layout::{LayoutError, MemorySize};

/// Runs one virtual machine and ends with it.
///
/// The status tells how it ended: 0 the guest switched it off, 3 the guest reset it, 4 the guest crashed its processor,
/// 5 KVM could not go on, 6 a signal ended it; 1 it could not be started, 2 the arguments are wrong.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Arguments {
    /// Virtual processors, 1 to 64.
    #[arg(long, default_value_t = 1, value_name = "NUMBER")]
    cpus: u8,
    /// Memory, with a suffix of K, M or G.
    #[arg(long, default_value = "256M", value_name = "SIZE", value_parser = parse_size)]
    memory: u64,
    /// The kernel: a bzImage (vmlinuz) or an ELF image with a PVH entry.
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// The kernel's initial RAM disk.
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// The kernel's command line.
    #[arg(long, default_value = "console=ttyS0", value_name = "TEXT")]
    cmdline: String,
    /// Where the serial console is: "stdio", "socket:PATH" or "none".
    #[arg(long, default_value = "stdio", value_name = "WHERE", value_parser = parse_console)]
    console: ConsoleTarget,
}

/// Why arguments make no VM.
#[derive(Debug, thiserror::Error)]
pub enum ArgumentsError {
    /// The number of processors.
    #[error("--cpus {0}: a VM has 1 to {CPUS_MAX} processors")]
    Cpus(u8),
    /// The memory.
    #[error("--memory: {0}")]
    Memory(#[from] LayoutError),
}

impl Arguments {
    /// The VM that they describe.
    pub fn config(self) -> Result<VmConfig, ArgumentsError> {
        Ok(VmConfig {
            cpus: CpuCount::new(self.cpus).ok_or(ArgumentsError::Cpus(self.cpus))?,
            memory: MemorySize::new(self.memory)?,
            kernel: self.kernel,
            initrd: self.initrd,
            command_line: self.cmdline,
            console: self.console,
        })
    }
}

fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.strip_suffix(['K', 'M', 'G']) {
        Some(digits) if text.ends_with('K') => (digits, 10),
        Some(digits) if text.ends_with('M') => (digits, 20),
        Some(digits) => (digits, 30),
        None => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| format!("{text:?} is no size like 512M"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text} is too large"))
}

fn parse_console(text: &str) -> Result<ConsoleTarget, String> {
    match text {
        "stdio" => Ok(ConsoleTarget::Standard),
        "none" => Ok(ConsoleTarget::Nowhere),
        _ => match text.strip_prefix("socket:") {
            Some(path) if !path.is_empty() => Ok(ConsoleTarget::Socket(path.into())),
            _ => Err(format!("{text:?} is none of stdio, none and socket:PATH")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(arguments: &[&str]) -> Result<VmConfig, String> {
        let all = ["vmm"].iter().chain(arguments);
        let parsed = Arguments::try_parse_from(all).map_err(|error| error.to_string())?;
        parsed.config().map_err(|error| error.to_string())
    }

    #[test]
    fn arguments_become_a_vm() {
        let vm = config(&["--kernel", "k", "--cpus", "64", "--memory", "3G", "--console", "socket:/run/c"])
            .unwrap();
        assert_eq!((vm.cpus.get(), vm.memory.bytes()), (64, 3 << 30));
        assert_eq!(vm.console, ConsoleTarget::Socket("/run/c".into()));
        assert_eq!(vm.command_line, "console=ttyS0");
    }

    #[test]
    fn what_makes_no_vm_is_refused_with_its_name() {
        for (arguments, word) in [
            (&["--kernel", "k", "--cpus", "0"][..], "--cpus 0"),
            (&["--kernel", "k", "--cpus", "65"], "--cpus 65"),
            (&["--kernel", "k", "--memory", "1M"], "too few"),
            (&["--kernel", "k", "--memory", "4194305"], "no whole pages"),
            (&["--kernel", "k", "--memory", "99999999999G"], "too large"),
            (&["--kernel", "k", "--memory", "lots"], "no size"),
            (&["--kernel", "k", "--console", "socket:"], "none of stdio"),
            (&[], "--kernel"),
        ] {
            let error = config(arguments).unwrap_err();
            assert!(error.contains(word), "{arguments:?}: {error}");
        }
    }
}
