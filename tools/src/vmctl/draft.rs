//! Options become a specification, or a change of one.

use ferro_protocol::api::vm::VmSpec;
use ferro_protocol::api::vm::spec::{BootSpec, FilesBoot, VolumeBoot};

use super::args::CreateOptions;
use super::options::{BootOptions, MachineOptions};
use crate::failure::{Failure, Result};
use crate::values::OrNone;

/// The memory of a VM that is made without any being named.
const MEMORY_BYTES_DEFAULT: u64 = 512 << 20;

/// The specification that `create` asks for.
pub(super) fn make(options: CreateOptions) -> Result<VmSpec> {
    let mut spec = VmSpec::named(options.name.as_str(), MEMORY_BYTES_DEFAULT);
    spec.disks = options.volumes.into_iter().map(|word| word.0).collect();
    spec.nics = options.portgroups.into_iter().map(|word| word.0).collect();
    apply(&mut spec, options.machine)?;
    Ok(spec)
}

/// Changes what the options name.
pub(super) fn apply(spec: &mut VmSpec, options: MachineOptions) -> Result<()> {
    let MachineOptions { cpus, memory, restart, vmm, boot, cpu, ram } = options;
    replace(&mut spec.cpus, cpus);
    replace(&mut spec.memory_bytes, memory);
    replace(&mut spec.restart, restart.map(Into::into));
    replace(&mut spec.vmm, vmm.map(Into::into));
    replace(&mut spec.cpu.shares, cpu.cpu_shares);
    replace(&mut spec.cpu.reservation_percent, cpu.cpu_reservation);
    replace(&mut spec.cpu.limit_percent, cpu.cpu_limit.map(OrNone::get));
    replace(&mut spec.cpu.affinity, cpu.cpu_affinity.map(OrNone::get));
    replace(&mut spec.memory.reservation_bytes, ram.memory_reservation);
    replace(&mut spec.memory.limit_bytes, ram.memory_limit.map(OrNone::get));
    replace(&mut spec.memory.shares, ram.memory_shares);
    replace(&mut spec.memory.huge_pages, ram.huge_pages.map(|word| word.get().map(|word| word.0)));
    if ram.no_balloon {
        spec.memory.balloon = false;
    }
    if ram.balloon {
        spec.memory.balloon = true;
    }
    apply_boot(spec, boot)
}

fn replace<T>(place: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *place = value;
    }
}

fn apply_boot(spec: &mut VmSpec, options: BootOptions) -> Result<()> {
    let BootOptions { kernel, initrd, cmdline, boot_entry } = options;
    match kernel {
        None => {}
        Some(OrNone::None) => {
            if let BootSpec::Files(_) = &spec.boot {
                spec.boot = BootSpec::default();
            }
        }
        Some(OrNone::Some(path)) => {
            let kernel = absolute(&path)?;
            match &mut spec.boot {
                BootSpec::Files(files) => files.kernel = kernel,
                BootSpec::Volume(_) => {
                    spec.boot = BootSpec::Files(FilesBoot { kernel, initrd: None, cmdline: String::new() });
                }
            }
        }
    }
    let name = &spec.name;
    match &mut spec.boot {
        BootSpec::Files(files) => {
            if boot_entry.is_some() {
                let message = format!("VM {name} boots a kernel from a file: it has no boot menu");
                return Err(Failure::usage(message, "leave out --boot-entry, or give --kernel none"));
            }
            if let Some(initrd) = initrd {
                files.initrd = initrd.get().map(|path| absolute(&path)).transpose()?;
            }
            replace(&mut files.cmdline, cmdline);
        }
        BootSpec::Volume(VolumeBoot { entry, cmdline_append }) => {
            if let Some(OrNone::Some(_)) = initrd {
                let message = format!(
                    "VM {name} boots what its first volume brings: an --initrd has no kernel to go with"
                );
                return Err(Failure::usage(message, "give the --kernel, too"));
            }
            replace(entry, boot_entry.map(OrNone::get));
            replace(cmdline_append, cmdline.map(|text| (!text.is_empty()).then_some(text)));
        }
    }
    Ok(())
}

/// A path that means the same wherever the daemon stands.
fn absolute(path: &str) -> Result<String> {
    let fail = |error: std::io::Error| {
        Failure::usage(format!("{path:?} is no path: {error}"), "give the whole path")
    };
    let whole = std::path::absolute(path).map_err(fail)?;
    // It came in as UTF-8, and so did nothing but the working directory.
    whole.into_os_string().into_string().map_err(|_| {
        Failure::usage(
            format!("{path:?} can't be told to the daemon: the working directory is not UTF-8"),
            "give the whole path",
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use ferro_protocol::api::vm::spec::{DiskSpec, HugePages, NicSpec, RestartSpec, VmmSpec};

    fn options(words: &[&str]) -> MachineOptions {
        let all = ["vmctl", "set", "web1"].iter().chain(words);
        match super::super::args::Args::try_parse_from(all).unwrap().verb {
            super::super::args::Verb::Set { options, .. } => *options,
            _ => unreachable!(),
        }
    }

    fn changed(spec: &VmSpec, words: &[&str]) -> VmSpec {
        let mut spec = spec.clone();
        apply(&mut spec, options(words)).unwrap();
        spec
    }

    #[test]
    fn what_is_not_given_has_its_default() {
        let all = [
            "vmctl",
            "create",
            "web1",
            "--volume",
            "root",
            "--volume",
            "iso,ro",
            "--portgroup",
            "blue,mac=52:54:00:00:00:01",
        ];
        let super::super::args::Verb::Create(options) =
            super::super::args::Args::try_parse_from(all).unwrap().verb
        else {
            unreachable!()
        };
        let made = make(*options).unwrap();
        let mut wanted = VmSpec::named("web1", 512 << 20);
        wanted.disks = vec![
            DiskSpec { volume: "root".to_owned(), read_only: false },
            DiskSpec { volume: "iso".to_owned(), read_only: true },
        ];
        let mac = Some("52:54:00:00:00:01".to_owned());
        wanted.nics = vec![NicSpec { portgroup: "blue".to_owned(), mac, port: None }];
        assert_eq!(made, wanted);
    }

    #[test]
    fn every_option_arrives_and_none_takes_it_back() {
        let plain = VmSpec::named("web1", 1 << 30);
        assert_eq!(changed(&plain, &[]), plain);
        let full = changed(
            &plain,
            &[
                "--cpus",
                "4",
                "--memory",
                "2G",
                "--restart",
                "never",
                "--vmm",
                "qemu",
                "--cpu-shares",
                "2000",
                "--cpu-reservation",
                "150%",
                "--cpu-limit",
                "300",
                "--cpu-affinity",
                "0-3,8;4",
                "--memory-reservation",
                "1G",
                "--memory-limit",
                "1.5G",
                "--memory-shares",
                "500",
                "--huge-pages",
                "2M",
                "--no-balloon",
            ],
        );
        assert_eq!((full.cpus, full.memory_bytes), (4, 2 << 30));
        assert_eq!((full.restart, full.vmm), (RestartSpec::Never, VmmSpec::Qemu));
        let cpu = &full.cpu;
        assert_eq!((cpu.shares, cpu.reservation_percent, cpu.limit_percent), (2000, 150, Some(300)));
        assert_eq!(cpu.affinity.as_deref(), Some("0-3,8;4"));
        let memory = &full.memory;
        assert_eq!(
            (memory.reservation_bytes, memory.limit_bytes, memory.shares),
            (1 << 30, Some(3 << 29), 500)
        );
        assert_eq!((memory.huge_pages, memory.balloon), (Some(HugePages::TwoMib), false));
        let less = changed(
            &full,
            &[
                "--cpu-limit",
                "none",
                "--cpu-affinity",
                "none",
                "--memory-limit",
                "none",
                "--huge-pages",
                "none",
                "--balloon",
            ],
        );
        assert_eq!((less.cpu.limit_percent, &less.cpu.affinity, less.cpu.shares), (None, &None, 2000));
        assert_eq!(
            (less.memory.limit_bytes, less.memory.huge_pages, less.memory.balloon),
            (None, None, true)
        );
    }

    #[test]
    fn it_boots_from_the_volume_or_from_files() {
        let plain = VmSpec::named("web1", 1 << 30);
        let by_volume = changed(&plain, &["--boot-entry", "Debian, rescue", "--cmdline", "single"]);
        let volume = VolumeBoot {
            entry: Some("Debian, rescue".to_owned()),
            cmdline_append: Some("single".to_owned()),
        };
        assert_eq!(by_volume.boot, BootSpec::Volume(volume));
        assert_eq!(changed(&by_volume, &["--boot-entry", "none", "--cmdline", ""]), plain);

        let files = changed(
            &by_volume,
            &["--kernel", "/boot/vmlinuz", "--initrd", "/boot/initrd", "--cmdline", "-- ro"],
        );
        let wanted = |initrd: Option<&str>, cmdline: &str| {
            BootSpec::Files(FilesBoot {
                kernel: "/boot/vmlinuz".to_owned(),
                initrd: initrd.map(str::to_owned),
                cmdline: cmdline.to_owned(),
            })
        };
        assert_eq!(files.boot, wanted(Some("/boot/initrd"), "-- ro"));
        assert_eq!(changed(&files, &["--initrd", "none"]).boot, wanted(None, "-- ro"));
        assert_eq!(changed(&files, &["--kernel", "none"]), plain);
        let BootSpec::Files(here) = changed(&plain, &["--kernel", "vmlinuz"]).boot else { unreachable!() };
        assert!(here.kernel.starts_with('/') && here.kernel.ends_with("/vmlinuz"), "{here:?}");

        assert!(apply(&mut plain.clone(), options(&["--initrd", "/boot/initrd"])).is_err());
        assert!(apply(&mut files.clone(), options(&["--boot-entry", "x"])).is_err());
    }
}
