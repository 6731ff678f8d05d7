//! Whole block devices: what is on them, making a file system, mounting it.
//!
//! Done with util-linux and xfsprogs, the tools that administrators know and can repeat by hand. Everything here waits; it is
//! called on a thread that may.
//!
//! ```text
//!   probe ──holds something──▶ refused unless its name was typed back
//!     │
//!     ▼
//!   wipefs, mkfs.xfs (label `vsand`) ──▶ mounted at <state>/disks/<disk id> by UUID, now and at each start
//! ```
//!
//! What it must not know: what a disk of vsand looks like inside.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

/// The label of a file system that vsand made.
const LABEL: &str = "vsand";
/// A guest's data can't be executed, make devices or raise rights.
const MOUNT_OPTIONS: &str = "noatime,nodev,nosuid,noexec";

/// Why a device can't be used.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// A tool could not be started.
    #[error("{tool} could not be run: {source}; install the package {package}")]
    NoTool {
        /// The tool.
        tool: &'static str,
        /// What it is part of.
        package: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A tool failed.
    #[error("{tool} failed on {target}: {message}")]
    Tool {
        /// The tool.
        tool: &'static str,
        /// What it was to work on.
        target: String,
        /// What it said.
        message: String,
    },
    /// A tool's answer is not what it was.
    #[error("{tool} gave an answer that is not understood: {message}")]
    Answer {
        /// The tool.
        tool: &'static str,
        /// What is wrong.
        message: String,
    },
    /// Something uses it: it is mounted, swap, part of a RAID or a volume group.
    #[error("{path} is in use: {how}")]
    InUse {
        /// The device.
        path: PathBuf,
        /// By what.
        how: String,
    },
    /// It holds something and its name was not typed back.
    #[error("{path} holds {found}")]
    NotEmpty {
        /// The device.
        path: PathBuf,
        /// What is to be typed back.
        device: String,
        /// What it holds.
        found: String,
    },
    /// A file or directory.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What was found on a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Probe {
    /// What it is called: what a person types back.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// File systems, partition tables and the like.
    pub found: Vec<String>,
    /// The UUID of the file system, if vsand made it.
    pub ours: Option<String>,
}

#[derive(Deserialize)]
struct Lsblk {
    blockdevices: Vec<LsblkDevice>,
}

#[derive(Deserialize)]
struct LsblkDevice {
    name: String,
    #[serde(default)]
    size: u64,
    #[serde(default)]
    mountpoints: Vec<Option<String>>,
    #[serde(default)]
    children: Vec<LsblkDevice>,
}

#[derive(Deserialize)]
struct Wipefs {
    #[serde(default)]
    signatures: Vec<Signature>,
}

#[derive(Deserialize)]
struct Signature {
    #[serde(rename = "type")]
    kind: String,
    uuid: Option<String>,
    label: Option<String>,
}

/// Whether there is a block device.
pub fn is_device(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|m| m.file_type().is_block_device())
}

/// Says what a device holds; refuses one that is in use.
pub fn probe(path: &Path) -> Result<Probe, DeviceError> {
    let target = path.display().to_string();
    let listed = run("lsblk", "util-linux", &["-J", "-b", "-o", "NAME,SIZE,MOUNTPOINTS", &target], &target)?;
    let lsblk: Lsblk = parse("lsblk", &listed)?;
    let Some(device) = lsblk.blockdevices.into_iter().next() else {
        return Err(DeviceError::Answer { tool: "lsblk", message: format!("it knows no device {target}") });
    };
    let in_use = |how: String| Err(DeviceError::InUse { path: path.to_owned(), how });
    if let Some(mounted) = mounted(&device) {
        return in_use(format!("mounted at {mounted}"));
    }
    // Exclusive on a block device: refused while anything of the system holds it, such as swap, RAID or LVM.
    let mut exclusive = std::fs::OpenOptions::new();
    let exclusive = exclusive.read(true).custom_flags(rustix::fs::OFlags::EXCL.bits().cast_signed());
    match exclusive.open(path) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
            return in_use(
                "something of this host holds it (swap, RAID, LVM, a mount elsewhere?)".to_owned(),
            );
        }
        Err(source) => return Err(DeviceError::Io { path: path.to_owned(), source }),
    }
    let signed = run("wipefs", "util-linux", &["-n", "-J", &target], &target)?;
    // It says nothing at all about an empty device.
    let signatures =
        if signed.trim().is_empty() { Vec::new() } else { parse::<Wipefs>("wipefs", &signed)?.signatures };
    Ok(describe(device, signatures))
}

fn mounted(device: &LsblkDevice) -> Option<String> {
    let here = device.mountpoints.iter().flatten().next().cloned();
    here.or_else(|| device.children.iter().find_map(mounted))
}

fn describe(device: LsblkDevice, signatures: Vec<Signature>) -> Probe {
    let mut found: Vec<String> = signatures
        .iter()
        .map(|s| match &s.label {
            Some(label) => format!("{} ({label})", s.kind),
            None => s.kind.clone(),
        })
        .collect();
    found.dedup();
    if !device.children.is_empty() {
        let names: Vec<&str> = device.children.iter().map(|c| c.name.as_str()).collect();
        found.push(format!("the partitions {}", names.join(", ")));
    }
    let made_here =
        |s: &&Signature| s.label.as_deref() == Some(LABEL) && matches!(s.kind.as_str(), "xfs" | "ext4");
    let ours = if device.children.is_empty() {
        signatures.iter().find(made_here).and_then(|s| s.uuid.clone())
    } else {
        None
    };
    Probe { name: device.name, bytes: device.size, found, ours }
}

/// Erases the device and makes a file system; returns its UUID.
pub fn make_file_system(path: &Path, probe: &Probe, confirm: Option<&str>) -> Result<String, DeviceError> {
    let target = path.display().to_string();
    if !probe.found.is_empty() {
        // Its name as it stands in /dev, or the path that was given.
        let confirmed = confirm.is_some_and(|typed| typed == probe.name || typed == target);
        if !confirmed {
            let (path, device, found) = (path.to_owned(), probe.name.clone(), probe.found.join(", "));
            return Err(DeviceError::NotEmpty { path, device, found });
        }
        tracing::warn!(device = %target, found = %probe.found.join(", "), "a device is erased as a person has confirmed");
        run("wipefs", "util-linux", &["-a", "-q", &target], &target)?;
    }
    match run("mkfs.xfs", "xfsprogs", &["-q", "-f", "-L", LABEL, &target], &target) {
        Ok(_) => tracing::info!(device = %target, "an XFS file system was made"),
        Err(DeviceError::NoTool { .. }) => {
            run("mkfs.ext4", "e2fsprogs", &["-q", "-F", "-m", "0", "-L", LABEL, &target], &target)?;
            tracing::warn!(device = %target, "mkfs.xfs is not installed: an ext4 file system was made");
        }
        Err(error) => return Err(error),
    }
    let uuid = run("blkid", "util-linux", &["-p", "-o", "value", "-s", "UUID", &target], &target)?;
    match uuid.trim() {
        "" => Err(DeviceError::Answer { tool: "blkid", message: format!("{target} has no UUID") }),
        uuid => Ok(uuid.to_owned()),
    }
}

/// Whether something is mounted at the directory.
pub fn is_mounted(dir: &Path) -> Result<bool, DeviceError> {
    let failed = |source| DeviceError::Io { path: dir.to_owned(), source };
    let device = |path: &Path| std::fs::metadata(path).map(|m| m.dev());
    match device(dir) {
        Ok(here) => Ok(here != device(dir.parent().unwrap_or(Path::new("/"))).map_err(failed)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed(error)),
    }
}

/// Mounts the file system of this UUID at the directory, which is made; nothing to do if something is mounted there.
pub fn mount(uuid: &str, dir: &Path) -> Result<(), DeviceError> {
    if is_mounted(dir)? {
        return Ok(());
    }
    std::fs::create_dir_all(dir).map_err(|source| DeviceError::Io { path: dir.to_owned(), source })?;
    let at = dir.display().to_string();
    run("mount", "util-linux", &["-o", MOUNT_OPTIONS, &format!("UUID={uuid}"), &at], &at).map(drop)
}

/// Unmounts the directory and removes it.
pub fn unmount(dir: &Path) -> Result<(), DeviceError> {
    let at = dir.display().to_string();
    if is_mounted(dir)? {
        run("umount", "util-linux", &[&at], &at)?;
    }
    match std::fs::remove_dir(dir) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(DeviceError::Io { path: dir.to_owned(), source })
        }
        _ => Ok(()),
    }
}

fn run(
    tool: &'static str,
    package: &'static str,
    arguments: &[&str],
    target: &str,
) -> Result<String, DeviceError> {
    // Daemons are often started without the directories of the administrator's tools.
    let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    let output = Command::new(tool)
        .args(arguments)
        .env("PATH", path)
        .env("LC_ALL", "C")
        .stdin(std::process::Stdio::null())
        .output()
        .map_err(|source| DeviceError::NoTool { tool, package, source })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let message =
            said.lines().map(str::trim).filter(|l| !l.is_empty()).take(5).collect::<Vec<_>>().join("; ");
        let message = if message.is_empty() { output.status.to_string() } else { message };
        return Err(DeviceError::Tool { tool, target: target.to_owned(), message });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn parse<T: serde::de::DeserializeOwned>(tool: &'static str, text: &str) -> Result<T, DeviceError> {
    serde_json::from_str(text).map_err(|error| DeviceError::Answer { tool, message: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(text: &str) -> LsblkDevice {
        parse::<Lsblk>("lsblk", text).unwrap().blockdevices.remove(0)
    }

    fn signatures(text: &str) -> Vec<Signature> {
        parse::<Wipefs>("wipefs", text).unwrap().signatures
    }

    #[test]
    fn a_mount_anywhere_below_is_found() {
        let text = r#"{"blockdevices":[{"name":"sdb","size":1000,"mountpoints":[null],
            "children":[{"name":"sdb1","size":900,"mountpoints":[null,"/home"]}]}]}"#;
        assert_eq!(mounted(&device(text)).as_deref(), Some("/home"));
    }

    #[test]
    fn what_a_device_holds_is_said_and_ours_is_known() {
        let plain = r#"{"blockdevices":[{"name":"loop3","size":1000,"mountpoints":[null]}]}"#;
        let probe = describe(device(plain), Vec::new());
        assert_eq!((probe.found.len(), probe.ours), (0, None));
        let xfs =
            r#"{"signatures":[{"device":"loop3","offset":"0x0","type":"xfs","uuid":"u-1","label":"vsand"}]}"#;
        let probe = describe(device(plain), signatures(xfs));
        assert_eq!((probe.found, probe.ours), (vec!["xfs (vsand)".to_owned()], Some("u-1".to_owned())));
        let gpt =
            r#"{"signatures":[{"device":"sdb","offset":"0x200","type":"gpt","uuid":null,"label":null}]}"#;
        let parts = r#"{"blockdevices":[{"name":"sdb","size":9,"mountpoints":[null],"children":[{"name":"sdb1","size":8}]}]}"#;
        let probe = describe(device(parts), signatures(gpt));
        assert_eq!((probe.found.join("; "), probe.ours), ("gpt; the partitions sdb1".to_owned(), None));
    }

    /// A file behind a loop device; detached when dropped.
    struct Loop(String, tempfile::TempDir);

    impl Loop {
        fn new() -> Result<Self, DeviceError> {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("image");
            std::fs::File::create(&file).unwrap().set_len(2 << 30).unwrap();
            let file = file.display().to_string();
            let name = run("losetup", "mount", &["-f", "--show", &file], &file)?;
            Ok(Self(name.trim().to_owned(), dir))
        }
    }

    impl Drop for Loop {
        fn drop(&mut self) {
            let _best_effort = run("losetup", "mount", &["-d", &self.0], &self.0);
        }
    }

    #[test]
    fn a_real_device_is_made_mounted_and_protected() {
        let device = match Loop::new() {
            Ok(device) => device,
            Err(error) => {
                eprintln!(
                    "SKIPPED: loop devices can't be used here ({error}); run as root on a host that has them"
                );
                return;
            }
        };
        let path = Path::new(&device.0);
        assert!(is_device(path));
        let empty = probe(path).unwrap();
        assert_eq!((empty.bytes, empty.found.len()), (2 << 30, 0));
        let uuid = make_file_system(path, &empty, None).unwrap();

        let full = probe(path).unwrap();
        assert_eq!(full.ours.as_deref(), Some(uuid.as_str()), "{full:?}");
        let refused = make_file_system(path, &full, None).unwrap_err();
        assert!(
            matches!(&refused, DeviceError::NotEmpty { device, .. } if *device == full.name),
            "{refused}"
        );
        let refused = make_file_system(path, &full, Some("sda")).unwrap_err();
        assert!(matches!(refused, DeviceError::NotEmpty { .. }), "another name confirms nothing");
        let again = make_file_system(path, &full, Some(&full.name)).unwrap();
        assert_ne!(again, uuid);

        let at = device.1.path().join("mounted");
        match mount(&again, &at) {
            Ok(()) => {
                assert!(is_mounted(&at).unwrap());
                mount(&again, &at).unwrap();
                assert!(matches!(probe(path), Err(DeviceError::InUse { .. })));
                unmount(&at).unwrap();
                assert!(!at.exists());
            }
            Err(error) => eprintln!("SKIPPED the mount: {error}"),
        }
    }
}
