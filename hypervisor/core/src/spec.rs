//! What makes a VM's specification right. A specification is checked as a whole and every fault of it is named, so that whoever
//! wrote it can put all of them right at once.
//!
//! What it must not know: volumes, port groups and hosts that there are. Whether a name leads to something shows when the VM is
//! started.

use std::collections::BTreeSet;

use ferro_protocol::api::vm::VmName;
use ferro_protocol::api::vm::spec::{
    BootSpec, CMDLINE_BYTES_MAX, CPUS_MAX, DISKS_MAX, DiskSpec, FilesBoot, HugePages, MEMORY_BYTES_MAX,
    MEMORY_BYTES_MIN, NICS_MAX, NicSpec, RestartSpec, SHARES_MAX, VmSpec, VmmSpec,
};
use ferro_protocol::api::{FaultLine, format_size};
use ferro_protocol::ids::VolumeName;
use ferro_protocol::net::{Mac, NetName};

use crate::cpus::Affinity;

/// The longest path of a file, in bytes (`PATH_MAX` with its zero).
const PATH_BYTES_MAX: usize = 4095;
/// The longest title of a boot entry, in bytes.
const ENTRY_BYTES_MAX: usize = 255;

/// A VM, checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vm {
    /// Its name.
    pub name: VmName,
    /// Virtual processors, 1 to 64.
    pub cpus: u32,
    /// Memory in bytes: whole MiB.
    pub memory_bytes: u64,
    /// Its disks.
    pub disks: Vec<Disk>,
    /// Its network cards.
    pub nics: Vec<Nic>,
    /// What it boots.
    pub boot: BootSpec,
    /// Its part of the processors.
    pub cpu: CpuPart,
    /// Its part of the memory.
    pub memory: MemoryPart,
    /// What becomes of it when it fails.
    pub restart: RestartSpec,
    /// What runs it.
    pub vmm: VmmSpec,
}

/// A disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Disk {
    /// The volume.
    pub volume: VolumeName,
    /// The guest may only read.
    pub read_only: bool,
}

/// A network card.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Nic {
    /// The port group.
    pub group: NetName,
    /// The switch port.
    pub port: NetName,
    /// Its address.
    pub mac: Mac,
}

/// A part of a host's processors.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CpuPart {
    /// Shares of what is not reserved.
    pub shares: u32,
    /// Percent of one processor that it gets at least.
    pub reservation_percent: u32,
    /// Percent of one processor that it gets at most.
    pub limit_percent: Option<u32>,
    /// Where it runs.
    pub affinity: Option<Affinity>,
}

/// A part of a host's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryPart {
    /// Shares of the protection of what is not reserved.
    pub shares: u32,
    /// Bytes that are never taken.
    pub reservation_bytes: u64,
    /// Bytes that it has at most, where that is less than its memory.
    pub limit_bytes: Option<u64>,
    /// Pages of another size.
    pub huge_pages: Option<HugePages>,
    /// Whether it has a balloon. Never with huge pages: they can't be given back in pieces.
    pub balloon: bool,
}

/// What was left to us is chosen: ports' names, and addresses. `draw` gives random bytes, and other ones each time.
pub fn complete(spec: &mut VmSpec, mut draw: impl FnMut() -> [u8; 5]) {
    let taken: BTreeSet<String> = spec.nics.iter().filter_map(|nic| nic.port.clone()).collect();
    let mut free = (0..).map(|number| format!("{}.{number}", spec.name)).filter(|name| !taken.contains(name));
    for nic in &mut spec.nics {
        if nic.port.is_none() {
            nic.port = free.next();
        }
        if nic.mac.is_none() {
            // Local, of one card (IEEE 802, clause 8.2).
            let mut mac = [0x02; 6];
            mac[1..].copy_from_slice(&draw());
            nic.mac = Some(Mac(mac).to_string());
        }
    }
}

struct Faults(Vec<FaultLine>);

impl Faults {
    fn add(&mut self, kind: &str, name: &str, problem: impl Into<String>) {
        self.0.push(FaultLine { kind: kind.to_owned(), name: name.to_owned(), problem: problem.into() });
    }

    /// What was read, or what is wrong with it as a fault.
    fn read<T, E: ToString>(&mut self, kind: &str, name: &str, read: Result<T, E>) -> Option<T> {
        read.map_err(|bad| self.add(kind, name, bad.to_string())).ok()
    }
}

/// Checks a specification that is complete ([`complete`]). All that is wrong with it, if anything is.
pub fn check(spec: &VmSpec) -> Result<Vm, Vec<FaultLine>> {
    let mut faults = Faults(Vec::new());
    let name = faults.read("VM", &spec.name, spec.name.parse::<VmName>());
    if !(1..=CPUS_MAX).contains(&spec.cpus) {
        faults.add("VM", &spec.name, format!("{} processors: choose from 1 to {CPUS_MAX}", spec.cpus));
    }
    check_memory_size(spec, &mut faults);
    let disks = check_disks(spec, &mut faults);
    let nics = check_nics(spec, &mut faults);
    check_boot(spec, &mut faults);
    let cpu = check_cpu(spec, &mut faults);
    let memory = check_memory(spec, &mut faults);
    match name {
        Some(name) if faults.0.is_empty() => Ok(Vm {
            name,
            cpus: spec.cpus,
            memory_bytes: spec.memory_bytes,
            disks,
            nics,
            boot: spec.boot.clone(),
            cpu,
            memory,
            restart: spec.restart,
            vmm: spec.vmm,
        }),
        _ => Err(faults.0),
    }
}

fn check_memory_size(spec: &VmSpec, faults: &mut Faults) {
    let bytes = spec.memory_bytes;
    if !(MEMORY_BYTES_MIN..=MEMORY_BYTES_MAX).contains(&bytes) {
        let problem = format!("memory of {}: choose from 16 MiB to 1 TiB", format_size(bytes));
        faults.add("VM", &spec.name, problem);
    } else if !bytes.is_multiple_of(1 << 20) {
        faults.add("VM", &spec.name, format!("memory of {bytes} bytes: choose whole MiB"));
    }
}

fn check_disks(spec: &VmSpec, faults: &mut Faults) -> Vec<Disk> {
    if spec.disks.len() > DISKS_MAX {
        faults.add("VM", &spec.name, format!("{} disks: at most {DISKS_MAX} are possible", spec.disks.len()));
    }
    let mut seen = BTreeSet::new();
    let mut disks = Vec::new();
    for DiskSpec { volume, read_only } in &spec.disks {
        if !seen.insert(volume) {
            faults.add("disk", volume, "the volume is there twice");
        }
        if let Some(volume) = faults.read("disk", volume, volume.parse()) {
            disks.push(Disk { volume, read_only: *read_only });
        }
    }
    disks
}

fn check_nics(spec: &VmSpec, faults: &mut Faults) -> Vec<Nic> {
    const KIND: &str = "network card";
    if spec.nics.len() > NICS_MAX {
        let problem = format!("{} network cards: at most {NICS_MAX} are possible", spec.nics.len());
        faults.add("VM", &spec.name, problem);
    }
    let (mut ports, mut macs) = (BTreeSet::new(), BTreeSet::new());
    let mut nics = Vec::new();
    for (index, NicSpec { portgroup, mac, port }) in spec.nics.iter().enumerate() {
        let which = index.to_string();
        let group = faults.read(KIND, &which, portgroup.parse::<NetName>());
        let port = if let Some(port) = port {
            faults.read(KIND, &which, port.parse::<NetName>())
        } else {
            faults.add(KIND, &which, "it has no port");
            None
        };
        let mac = if let Some(mac) = mac {
            faults.read(KIND, &which, mac.parse::<Mac>())
        } else {
            faults.add(KIND, &which, "it has no address");
            None
        };
        if let Some(mac) = mac {
            if !mac.is_station() {
                faults.add(KIND, &which, format!("{mac} is not the address of one card"));
            }
            if !macs.insert(mac) {
                faults.add(KIND, &which, format!("{mac} is the address of another card of this VM"));
            }
        }
        if let Some(port) = &port
            && !ports.insert(port.clone())
        {
            faults.add(KIND, &which, format!("{port} is the port of another card of this VM"));
        }
        if let (Some(group), Some(port), Some(mac)) = (group, port, mac) {
            nics.push(Nic { group, port, mac });
        }
    }
    nics
}

fn check_boot(spec: &VmSpec, faults: &mut Faults) {
    const KIND: &str = "boot";
    let mut line = |what: &str, text: &str, bytes_max: usize| {
        if text.len() > bytes_max {
            faults.add(KIND, what, format!("it has {} bytes: at most {bytes_max} are possible", text.len()));
        }
        if text.chars().any(char::is_control) {
            faults.add(KIND, what, "it has a control character, such as a line's end");
        }
    };
    match &spec.boot {
        BootSpec::Volume(boot) => {
            line("entry", boot.entry.as_deref().unwrap_or("-"), ENTRY_BYTES_MAX);
            line("cmdline_append", boot.cmdline_append.as_deref().unwrap_or_default(), CMDLINE_BYTES_MAX);
            if boot.entry.as_deref() == Some("") {
                faults.add(KIND, "entry", "it is empty: leave it out for the menu's own choice");
            }
            if spec.disks.is_empty() {
                let problem =
                    "the VM boots what its first disk brings, and has no disk: give it a volume, or a kernel";
                faults.add(KIND, "", problem);
            }
        }
        BootSpec::Files(FilesBoot { kernel, initrd, cmdline }) => {
            line("cmdline", cmdline, CMDLINE_BYTES_MAX);
            line("kernel", kernel, PATH_BYTES_MAX);
            line("initrd", initrd.as_deref().unwrap_or_default(), PATH_BYTES_MAX);
            for (what, path) in [("kernel", Some(kernel)), ("initrd", initrd.as_ref())] {
                if let Some(path) = path.filter(|path| !path.starts_with('/')) {
                    faults.add(KIND, what, format!("{path:?} is not an absolute path"));
                }
            }
        }
    }
}

fn check_shares(kind: &str, shares: u32, faults: &mut Faults) {
    if !(1..=SHARES_MAX).contains(&shares) {
        faults.add(kind, "shares", format!("{shares}: choose from 1 to {SHARES_MAX}"));
    }
}

fn check_cpu(spec: &VmSpec, faults: &mut Faults) -> CpuPart {
    const KIND: &str = "cpu";
    let cpu = &spec.cpu;
    check_shares(KIND, cpu.shares, faults);
    let whole = spec.cpus.saturating_mul(100);
    if cpu.reservation_percent > whole {
        let problem = format!(
            "{} % of a processor, and {} virtual ones use at most {whole} %",
            cpu.reservation_percent, spec.cpus
        );
        faults.add(KIND, "reservation_percent", problem);
    }
    if let Some(limit) = cpu.limit_percent {
        if !(1..=whole.max(1)).contains(&limit) {
            faults.add(KIND, "limit_percent", format!("{limit} %: choose from 1 to {whole}"));
        } else if limit < cpu.reservation_percent {
            let problem = format!("{limit} % is below the reservation of {} %", cpu.reservation_percent);
            faults.add(KIND, "limit_percent", problem);
        }
    }
    let affinity = cpu.affinity.as_deref();
    let affinity = affinity.and_then(|text| faults.read(KIND, "affinity", text.parse::<Affinity>()));
    if let Some(affinity) = &affinity {
        let lists = affinity.sets().len();
        if lists != 1 && lists != spec.cpus as usize {
            let problem = format!(
                "{lists} lists for {} virtual processors: give one for all, or one for each",
                spec.cpus
            );
            faults.add(KIND, "affinity", problem);
        }
    }
    CpuPart {
        shares: cpu.shares,
        reservation_percent: cpu.reservation_percent,
        limit_percent: cpu.limit_percent,
        affinity,
    }
}

fn check_memory(spec: &VmSpec, faults: &mut Faults) -> MemoryPart {
    const KIND: &str = "memory";
    let (memory, whole) = (&spec.memory, spec.memory_bytes);
    check_shares(KIND, memory.shares, faults);
    if memory.reservation_bytes > whole {
        let problem =
            format!("{} is more than the VM's {}", format_size(memory.reservation_bytes), format_size(whole));
        faults.add(KIND, "reservation_bytes", problem);
    }
    let balloon = memory.balloon && memory.huge_pages.is_none();
    if let Some(limit) = memory.limit_bytes {
        if limit > whole || limit < MEMORY_BYTES_MIN {
            let problem =
                format!("{}: choose from 16 MiB to the VM's {}", format_size(limit), format_size(whole));
            faults.add(KIND, "limit_bytes", problem);
        } else if limit < memory.reservation_bytes {
            let reserved = format_size(memory.reservation_bytes);
            faults.add(
                KIND,
                "limit_bytes",
                format!("{} is below the reservation of {reserved}", format_size(limit)),
            );
        } else if limit < whole && !balloon {
            faults.add(
                KIND,
                "limit_bytes",
                "it is below the VM's memory, and without a balloon nothing takes the rest",
            );
        }
    }
    if let Some(pages) = memory.huge_pages
        && !whole.is_multiple_of(pages.bytes())
    {
        let problem =
            format!("{} is not made of whole pages of {}", format_size(whole), format_size(pages.bytes()));
        faults.add(KIND, "huge_pages", problem);
    }
    MemoryPart {
        shares: memory.shares,
        reservation_bytes: memory.reservation_bytes,
        limit_bytes: memory.limit_bytes.filter(|limit| *limit < whole),
        huge_pages: memory.huge_pages,
        balloon,
    }
}
