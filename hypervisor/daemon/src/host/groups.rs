//! The control groups that VMs are in: a scope each of systemd's, where systemd runs; else a group each of our own, where
//! cgroup v2 is mounted; else none, and that is said.
//!
//! A VM's group outlives this daemon. It is ended with the VM: what is left in it then is killed with it.
//!
//! What it must not know: what the values mean (the core does), which VMs there are.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use ferro_protocol::api::vm::VmName;
use hypervisor_core::cgroup::Limits;

/// The slice of all VMs' scopes, and our group's name.
const SLICE: &str = "ferrosphere-vms";
/// What has to be there for limits to be kept.
const CONTROLLERS: [&str; 2] = ["cpu", "memory"];
/// A group whose processes were killed is empty after a while.
const EMPTY_MAX: Duration = Duration::from_secs(5);

/// How VMs are grouped on this host.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Groups {
    /// Scopes of systemd.
    Systemd,
    /// Groups below this one of ours; whether its controllers keep limits.
    Own {
        /// Our group.
        root: PathBuf,
        /// The controllers that it lacks.
        missing: Vec<&'static str>,
    },
    /// None, and why.
    None(String),
}

/// One VM's group.
#[derive(Clone, PartialEq, Eq, Debug, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// A scope of this name.
    Scope(String),
    /// A folder.
    Folder(PathBuf),
}

impl Groups {
    /// Finds out what this host has.
    pub fn find() -> Self {
        if Path::new("/run/systemd/system").is_dir() {
            return Self::Systemd;
        }
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let Some(mount) = v2_mount(&mounts) else {
            return Self::None("cgroup v2 is not mounted".to_owned());
        };
        let root = mount.join(SLICE);
        if let Err(error) = fs::create_dir_all(&root) {
            return Self::None(format!("{} can't be made: {error}", root.display()));
        }
        let missing = CONTROLLERS.into_iter().filter(|name| !enable(&mount, &root, name)).collect();
        // Not needed for what is promised, but for affinity.
        enable(&mount, &root, "cpuset");
        Self::Own { root, missing }
    }

    /// How it is, for people; and whether shares, reservations and limits are kept.
    pub fn describe(&self) -> (String, bool) {
        match self {
            Self::Systemd => ("a systemd scope for each VM".to_owned(), true),
            Self::Own { root, missing } if missing.is_empty() => {
                (format!("a group for each VM in {}", root.display()), true)
            }
            Self::Own { root, missing } => (
                format!(
                    "a group for each VM in {}, without the controllers {}: shares, reservations and limits are not kept",
                    root.display(),
                    missing.join(" and ")
                ),
                false,
            ),
            Self::None(why) => {
                (format!("{why}: VMs have no group, and shares, reservations and limits are not kept"), false)
            }
        }
    }

    /// Makes a VM's group.
    pub fn make(&self, vm: &VmName, incarnation: u64) -> io::Result<Option<Group>> {
        match self {
            // It is made with its first process.
            Self::Systemd => Ok(Some(Group::Scope(format!("ferro-vm-{vm}-{incarnation}.scope")))),
            Self::Own { root, .. } => {
                // Told apart from one that is still being ended, and from those of another daemon on the same machine.
                let folder = root.join(format!("{vm}.{incarnation}.{}", std::process::id()));
                fs::create_dir_all(&folder)?;
                Ok(Some(Group::Folder(folder)))
            }
            Self::None(_) => Ok(None),
        }
    }

    /// Sets a VM's group to these values, as far as the host keeps any.
    pub fn set(&self, group: &Group, limits: &Limits) -> io::Result<()> {
        match (self, group) {
            (Self::Systemd, Group::Scope(scope)) => run(Command::new("systemctl")
                .args(["set-property", "--runtime", scope])
                .args(limits.properties())),
            (Self::Own { .. }, Group::Folder(folder)) => {
                for (file, value) in limits.files() {
                    let path = folder.join(file);
                    // Whose controller is missing has no file; that is said in the status.
                    if path.exists() && !(value.is_empty() && fs::read(&path)?.is_empty()) {
                        fs::write(&path, value).map_err(|error| {
                            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
                        })?;
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }
}

impl Group {
    /// What a command is put behind so that its process is in the group; and the folder that it has to enter itself.
    pub fn entrance(&self, limits: &Limits) -> (Vec<String>, Option<&Path>) {
        match self {
            Self::Scope(scope) => {
                let mut command: Vec<String> =
                    ["systemd-run", "--scope", "--quiet", "--collect"].map(str::to_owned).to_vec();
                command.push(format!("--slice={SLICE}.slice"));
                command.push(format!("--unit={scope}"));
                for property in limits.properties().into_iter().filter(|p| !p.ends_with('=')) {
                    command.extend(["-p".to_owned(), property]);
                }
                command.push("--".to_owned());
                (command, None)
            }
            Self::Folder(folder) => (Vec::new(), Some(folder)),
        }
    }

    /// Ends the group with whatever is left in it. One that is gone is as good.
    pub fn end(&self) -> io::Result<()> {
        match self {
            Self::Scope(scope) => {
                let loaded = Command::new("systemctl")
                    .args(["is-active", "--quiet", scope])
                    .stdin(Stdio::null())
                    .status()?
                    .success();
                if !loaded {
                    return Ok(());
                }
                run(Command::new("systemctl").args(["kill", "--signal=KILL", scope]))
            }
            Self::Folder(folder) => end_folder(folder),
        }
    }

    /// The processor time that the group has used, in microseconds, and its memory in bytes, where they are counted.
    pub fn usage(&self) -> (Option<u64>, Option<u64>) {
        let Self::Folder(folder) = self else { return (None, None) };
        let text = fs::read_to_string(folder.join("cpu.stat")).unwrap_or_default();
        let cpu = text.lines().find_map(|line| line.strip_prefix("usage_usec ")?.parse().ok());
        let memory = fs::read_to_string(folder.join("memory.current")).ok();
        (cpu, memory.and_then(|text| text.trim().parse().ok()))
    }
}

fn end_folder(folder: &Path) -> io::Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    let kill = folder.join("cgroup.kill");
    if kill.exists() {
        fs::write(kill, "1")?;
    } else {
        kill_each(folder)?;
    }
    let began = std::time::Instant::now();
    loop {
        match fs::remove_dir(folder) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if began.elapsed() > EMPTY_MAX => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Before Linux 5.14 a group is killed process by process.
fn kill_each(folder: &Path) -> io::Result<()> {
    for pid in fs::read_to_string(folder.join("cgroup.procs"))?.lines() {
        if let Some(pid) = pid.parse().ok().and_then(rustix::process::Pid::from_raw) {
            // One that is gone already is as good.
            let _gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    Ok(())
}

fn run(command: &mut Command) -> io::Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(io::Error::other(format!("{}: {said}", command.get_program().display())))
}

fn v2_mount(mounts: &str) -> Option<PathBuf> {
    let lines = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    lines
        .filter(|words| words.get(2) == Some(&"cgroup2"))
        .find_map(|words| Some(PathBuf::from(words.get(1)?)))
}

/// Hands a controller down to our group and to those in it; whether they have it.
fn enable(mount: &Path, root: &Path, controller: &str) -> bool {
    let has = |folder: &Path, file: &str| {
        fs::read_to_string(folder.join(file))
            .is_ok_and(|text| text.split_whitespace().any(|it| it == controller))
    };
    for folder in [mount, root] {
        if !has(folder, "cgroup.controllers") {
            return false;
        }
        if !has(folder, "cgroup.subtree_control")
            && let Err(error) = fs::write(folder.join("cgroup.subtree_control"), format!("+{controller}"))
        {
            tracing::warn!(controller, folder = %folder.display(), %error, "a controller can't be handed down");
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_is_found_wherever_it_is() {
        let hybrid = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n\
                      cgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        assert_eq!(v2_mount(hybrid), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(v2_mount("cgroup /sys/fs/cgroup/cpu cgroup rw 0 0\n"), None);
    }

    #[test]
    fn a_group_is_set_as_far_as_its_controllers_are_there() {
        let (dir, cpus) = (tempfile::tempdir().unwrap(), "0-1".parse().unwrap());
        for file in ["cpu.weight", "cpu.max", "memory.min", "memory.low", "memory.max"] {
            fs::write(dir.path().join(file), "").unwrap();
        }
        let limits = Limits {
            cpu_weight: 500,
            cpu_max_percent: Some(150),
            cpus: Some(cpus),
            memory_min: 1 << 20,
            memory_low: 2 << 20,
            memory_max: None,
        };
        let own = Groups::Own { root: "/x".into(), missing: Vec::new() };
        own.set(&Group::Folder(dir.path().to_owned()), &limits).unwrap();
        let read = |file: &str| fs::read_to_string(dir.path().join(file)).unwrap();
        let all = ["cpu.weight", "cpu.max", "memory.min", "memory.low", "memory.max"].map(read);
        assert_eq!(all, ["500", "150000 100000", "1048576", "2097152", "max"]);
        assert!(!dir.path().join("cpuset.cpus").exists(), "there is no such controller");
    }

    #[test]
    fn what_is_not_kept_is_said() {
        let (words, kept) = Groups::None("no".to_owned()).describe();
        assert!(!kept && words.contains("not kept"));
        let own = Groups::Own { root: "/x".into(), missing: vec!["memory"] };
        let (words, kept) = own.describe();
        assert!(!kept && words.contains("memory"));
    }
}
