//! Processors, memory, huge pages and KVM, as the kernel tells them.

use std::fs::{self, OpenOptions};
use std::path::Path;

use ferro_protocol::api::vm::KvmSupport;
use hypervisor_core::admission::Room;
use hypervisor_core::cpus::CpuSet;
use rustix::thread::sched_getaffinity;

use crate::config::Config;

/// What this host has for VMs now.
pub fn room(config: &Config) -> Room {
    let memory_bytes = memory_bytes(&fs::read_to_string("/proc/meminfo").unwrap_or_default());
    Room {
        cpus: cpus(),
        memory_bytes,
        kept_bytes: config.kept_bytes(memory_bytes),
        overcommit_percent: config.memory_overcommit_percent,
        huge_2m_free_bytes: huge_free(2048),
        huge_1g_free_bytes: huge_free(1 << 20),
    }
}

/// The processors that this process may use: what is kept from it is kept from VMs.
fn cpus() -> CpuSet {
    match sched_getaffinity(None) {
        Ok(set) => CpuSet::new((0..1024).filter(|cpu| set.is_set(*cpu as usize))),
        Err(error) => {
            tracing::warn!(%error, "the processors can't be asked for; one is assumed");
            CpuSet::new([0])
        }
    }
}

fn memory_bytes(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

fn huge_free(kib: u64) -> u64 {
    let file = format!("/sys/kernel/mm/hugepages/hugepages-{kib}kB/free_hugepages");
    let pages = fs::read_to_string(file).ok().and_then(|text| text.trim().parse::<u64>().ok());
    pages.unwrap_or(0).saturating_mul(kib << 10)
}

/// Whether KVM can be used, and for what. Where the processor has no virtualisation extension, a `/dev/kvm` that answers all
/// the same emulates a guest's kernel instruction by instruction, and no ordinary one gets through that.
pub fn kvm() -> KvmSupport {
    kvm_of(Path::new("/dev/kvm"), &fs::read_to_string("/proc/cpuinfo").unwrap_or_default())
}

fn kvm_of(device: &Path, cpuinfo: &str) -> KvmSupport {
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags")).unwrap_or_default();
    let extension = flags.split_whitespace().find(|flag| matches!(*flag, "vmx" | "svm"));
    match (OpenOptions::new().read(true).write(true).open(device), extension) {
        (Ok(_), Some(extension)) => {
            let detail = format!("{} with the processor's {extension}", device.display());
            KvmSupport { usable: true, stock_kernels: true, detail }
        }
        (Ok(_), None) => KvmSupport {
            usable: true,
            stock_kernels: false,
            detail: format!(
                "{} answers, but the processor has neither vmx nor svm: ordinary kernels do not run under it",
                device.display()
            ),
        },
        (Err(error), _) => {
            let why = match error.kind() {
                std::io::ErrorKind::NotFound => {
                    "there is none: load kvm_intel or kvm_amd, and see that virtualisation is on in the firmware".to_owned()
                }
                _ => format!("{error}: hypervisord has to be root, or of the group kvm"),
            };
            let detail = format!("{} can't be opened: {why}", device.display());
            KvmSupport { usable: false, stock_kernels: false, detail }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_is_understood() {
        assert_eq!(memory_bytes("MemTotal:       24578 kB\nMemFree: 1 kB\n"), 24578 << 10);
        assert_eq!(memory_bytes("nonsense"), 0);
        let file = tempfile::NamedTempFile::new().unwrap();
        let amd = "processor : 0\nflags\t\t: fpu svm sse\n";
        assert!(kvm_of(file.path(), amd).stock_kernels);
        let plain = kvm_of(file.path(), "flags : fpu svmx\n");
        assert!(plain.usable && !plain.stock_kernels && plain.detail.contains("neither"));
        assert!(!kvm_of(Path::new("/nowhere/kvm"), amd).usable);
        assert!(!cpus().is_empty());
    }
}
