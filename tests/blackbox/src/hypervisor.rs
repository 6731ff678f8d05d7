//! `hypervisord` on the hosts of the laboratory, asked over its API and with `vmctl`; and what it must not leave behind.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use ferro_protocol::api::vm::{VmInfo, VmState};
use ferro_protocol::api::{ApiError, Document};
use ferro_transport::client::LocalClient;
use serde_json::Value;

use crate::bare::Code;
use crate::daemon::Daemon;
use crate::host::Host;
use crate::lab::{Lab, bin_dir};
use crate::process::run;
use crate::wait::eventually;

/// How long a state may take to be seen everywhere.
pub const SEEN_MAX: Duration = Duration::from_secs(40);
/// How long an answer may take.
const ANSWER_MAX: Duration = Duration::from_secs(180);
/// The group of all VMs' groups, where systemd does not run.
const SLICE: &str = "ferrosphere-vms";

/// A host's hypervisord.
#[derive(Debug)]
pub struct Hypervisor<'a> {
    /// Its host.
    pub host: &'a Host,
    daemon: Daemon,
    dir: PathBuf,
    /// Every process that it was: groups are called after them.
    pids: Mutex<Vec<u32>>,
}

/// One on each host, started; each sees all others.
pub fn start(lab: &Lab) -> Result<Vec<Hypervisor<'_>>> {
    remove_groups(|pid| !Path::new("/proc").join(pid.to_string()).exists());
    let all = lab.hosts().iter().map(|host| Hypervisor::new(lab, host)).collect::<Result<Vec<_>>>()?;
    for one in &all {
        one.configure("")?;
        one.start()?;
    }
    eventually("every hypervisord sees all others", SEEN_MAX, || {
        for one in &all {
            let status = one.get("/v1/status")?;
            let hosts = status["hosts"].as_array().context("no hosts")?;
            let answering = hosts.iter().filter(|host| host["answers"] == true).count();
            ensure!(answering == all.len(), "{} sees {answering}: {status}", one.host.name());
        }
        Ok(())
    })?;
    Ok(all)
}

impl<'a> Hypervisor<'a> {
    fn new(lab: &Lab, host: &'a Host) -> Result<Self> {
        // Short, for there is little room in the path of a socket.
        let (bin, dir) = (bin_dir()?, host.dir().join("hv"));
        for program in ["hypervisord", "vmm", "vmctl"] {
            let path = bin.join(program);
            ensure!(
                path.exists(),
                "{} is not built: cargo build -p hypervisord -p vmm -p ferro-tools",
                path.display()
            );
        }
        for sub in ["state", "run"] {
            fs::create_dir_all(dir.join(sub))?;
        }
        let log = lab.log(&format!("hypervisor{}", host.number));
        fs::write(&log, "")?;
        let daemon = Daemon {
            name: format!("{}'s hypervisord", host.name()),
            namespace: host.namespace().to_owned(),
            program: dir.join("start"),
            tool: bin.join("vmctl"),
            config: dir.join("hypervisord.toml"),
            socket: dir.join("run/api.sock"),
            log,
            process: Mutex::new(None),
        };
        let new = Self { host, daemon, dir, pids: Mutex::default() };
        new.start_with("")?;
        Ok(new)
    }

    /// Writes its configuration, with these lines more.
    pub fn configure(&self, more: &str) -> Result<()> {
        let line = |key: &str, path: &Path| format!("{key} = \"{}\"\n", path.display());
        let mut text = line("state_dir", &self.dir.join("state")) + &line("run_dir", &self.dir.join("run"));
        text += &line("vsand_socket", self.host.socket());
        text += &line("vswitchd_socket", self.host.vswitchd().socket());
        text += "group = \"root\"\nhost_memory_mib = 512\n";
        if !more.contains("vmm = ") {
            text += &line("vmm", &bin_dir()?.join("vmm"));
        }
        Ok(fs::write(self.daemon.config(), text + more)?)
    }

    fn start_with(&self, before: &str) -> Result<()> {
        let (script, program) = (self.dir.join("start"), bin_dir()?.join("hypervisord"));
        let text = format!("#!/bin/sh\n{before}exec {} \"$@\"\n", program.display());
        fs::write(&script, text)?;
        run("chmod", &["+x", &script.display().to_string()]).map(drop)
    }

    /// From its next start on it is on a host whose `/dev/kvm` can't be opened.
    pub fn hide_kvm(&self) -> Result<()> {
        // In a mount namespace of its own; what is mounted read-only can't be opened for writing.
        self.start_with(
            "[ \"$1\" = hidden ] || exec unshare --mount \"$0\" hidden \"$@\"\nshift\n\
             mount --bind \"$0\" /dev/kvm && mount -o remount,bind,ro /dev/kvm || exit 1\n",
        )
    }

    /// Starts it and returns when its API answers.
    pub fn start(&self) -> Result<()> {
        self.daemon.start()?;
        let pid = self.daemon.pid().context("it has no process")?;
        self.pids.lock().unwrap_or_else(PoisonError::into_inner).push(pid);
        Ok(())
    }

    /// `kill -9`, and another one.
    pub fn kill9_and_start(&self) -> Result<()> {
        self.daemon.kill9()?;
        self.start()
    }

    /// The daemon.
    pub fn daemon(&self) -> &Daemon {
        &self.daemon
    }

    /// `vmctl`, whose answer does not matter.
    pub fn vmctl(&self, arguments: &[&str]) -> Result<()> {
        self.daemon.ctl_ok(arguments)
    }

    /// `vmctl console`: sends this and gives what was printed until the VM ended, or these seconds were over.
    pub fn console(&self, name: &str, input: &[u8], seconds: u32) -> Result<String> {
        let mut child = std::process::Command::new(&self.daemon.tool)
            .arg("--socket")
            .arg(self.daemon.socket())
            .args(["console", name, "--seconds", &seconds.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        child.stdin.take().context("no input")?.write_all(input)?;
        let output = child.wait_with_output()?;
        let (said, errors) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "vmctl console {name}: {}: {errors}", output.status);
        Ok(said.into_owned())
    }

    /// The folder with a VM's sockets.
    pub fn run_dir(&self, name: &str) -> PathBuf {
        self.dir.join("run/vms").join(name)
    }

    /// A file with a guest that VMs can boot, on any host of the laboratory.
    pub fn guest(&self, name: &str, code: Code) -> Result<String> {
        let file = self.dir.join(name);
        fs::write(&file, code.image())?;
        Ok(file.display().to_string())
    }

    fn ask(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<std::result::Result<Value, ApiError>> {
        let body = body.map(ToString::to_string);
        let body = body.as_deref().map(|body| (body, "application/json"));
        let (status, answer) = ask(self.daemon.socket(), method, path, body)?;
        if status {
            return Ok(Ok(if answer.is_empty() { Value::Null } else { serde_json::from_slice(&answer)? }));
        }
        let error: ApiError = serde_json::from_slice(&answer)?;
        ensure!(
            !error.message.is_empty() && !error.next_step.is_empty(),
            "{path}: says too little: {error:?}"
        );
        ensure!(!error.message.contains('\n'), "{path}: says more than a line: {error:?}");
        Ok(Err(error))
    }

    /// Asks for what must be done.
    pub fn done(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let asked = format!("{}: {method} {path}", self.host.name());
        self.ask(method, path, body)?.map_err(|error| anyhow!("{asked}: {error}: {error:?}"))
    }

    /// Gets something.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.done("GET", path, None)
    }

    /// Sends something.
    pub fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.done("POST", path, Some(body))
    }

    /// Deletes something.
    pub fn delete(&self, path: &str) -> Result<()> {
        self.done("DELETE", path, None).map(drop)
    }

    /// Asks for what must be refused with this code, and gives the refusal.
    pub fn refused(&self, method: &str, path: &str, body: Option<&Value>, code: &str) -> Result<ApiError> {
        let asked = format!("{}: {method} {path}", self.host.name());
        match self.ask(method, path, body)? {
            Ok(answer) => bail!("{asked} was not refused: {answer}"),
            Err(error) => {
                let said = serde_json::to_value(error.code)?;
                ensure!(said == code, "{asked}: {code} was expected: {error:?}");
                Ok(error)
            }
        }
    }

    /// A VM, as this host sees it.
    pub fn vm(&self, name: &str) -> Result<VmInfo> {
        Ok(serde_json::from_value(self.get(&format!("/v1/vms/{name}"))?)?)
    }

    /// Waits until this host sees a VM like this.
    pub fn sees(&self, name: &str, what: &str, test: impl Fn(&VmInfo) -> bool) -> Result<VmInfo> {
        eventually(&format!("{} sees {name} {what}", self.host.name()), SEEN_MAX, || {
            let info = self.vm(name)?;
            ensure!(test(&info), "{info:?}");
            Ok(info)
        })
    }

    /// Waits until this host sees a VM in this state.
    pub fn sees_state(&self, name: &str, state: VmState) -> Result<VmInfo> {
        self.sees(name, state.as_str(), |info| info.status.state == state)
    }

    /// What the console of a VM of this host has printed; of the run before the last failure, if `previous`.
    pub fn log(&self, name: &str, previous: bool) -> Result<String> {
        let log = self.get(&format!("/v1/vms/{name}/log?previous={previous}&lines=1000"))?;
        Ok(log["text"].as_str().unwrap_or_default().to_owned())
    }

    /// Waits until a VM of this host has printed this.
    pub fn prints(&self, name: &str, words: &str) -> Result<()> {
        eventually(&format!("{name} prints {words:?}"), SEEN_MAX, || {
            let log = self.log(name, false)?;
            ensure!(log.contains(words), "{log:?}");
            Ok(())
        })
    }

    /// Nothing of a VM is on this host: no process, socket, folder, group or port.
    pub fn has_nothing_of(&self, name: &str) -> Result<()> {
        let folder = self.run_dir(name);
        ensure!(!folder.exists(), "its folder is left: {}", folder.display());
        let ports: Value = self.host.vswitchd().ctl(&["port", "list"])?;
        let all = ports["ports"].as_array().context("no ports")?;
        let begins =
            |port: &&Value| port["name"].as_str().is_some_and(|it| it.starts_with(&format!("{name}.")));
        let left = all.iter().find(begins);
        ensure!(left.is_none(), "a port is left: {left:?}");
        let pids = self.pids.lock().unwrap_or_else(PoisonError::into_inner);
        for (group, pid) in groups() {
            let is_its =
                group.file_name().is_some_and(|it| it.to_string_lossy().starts_with(&format!("{name}.")));
            ensure!(!(is_its && pids.contains(&pid)), "a control group is left: {}", group.display());
        }
        let words = format!("{}/", folder.display());
        let running = processes(|command| command.contains(&words));
        ensure!(running.is_empty(), "processes are left: {running:?}");
        Ok(())
    }
}

impl Drop for Hypervisor<'_> {
    fn drop(&mut self) {
        self.daemon.kill9_if_running();
        // VMs outlive their daemon. What a test leaves of them is known by the folder that they use.
        let words = format!("{}/", self.dir.join("run/vms").display());
        for (pid, _) in processes(|command| command.contains(&words)) {
            let _gone = run("kill", &["-KILL", &pid.to_string()]);
        }
        let pids = self.pids.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for _ in 0..50 {
            if remove_groups(|pid| pids.contains(&pid)) == 0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Asks a daemon: whether it did it, and its answer. A body has a type.
fn ask(
    socket: &Path,
    method: &str,
    path: &str,
    body: Option<(&str, &'static str)>,
) -> Result<(bool, Vec<u8>)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let body = body.map(|(text, kind)| (text.as_bytes().to_vec().into(), kind));
    let method = method.parse().map_err(|_| anyhow!("{method} is no method"))?;
    let client = LocalClient::new(socket);
    let asked = async { tokio::time::timeout(ANSWER_MAX, client.exchange(method, path, body)).await };
    let (status, bytes) = runtime.block_on(asked).with_context(|| format!("{path} was not answered"))??;
    Ok((status.is_success(), bytes.to_vec()))
}

/// The names of the cluster directory's documents of VMs.
pub fn documents(host: &Host) -> Result<Vec<String>> {
    let (done, answer) = ask(host.socket(), "GET", "/v1/documents?prefix=vm/", None)?;
    ensure!(done, "{}", String::from_utf8_lossy(&answer));
    let list: Value = serde_json::from_slice(&answer)?;
    let all = list["documents"].as_array().context("no documents")?;
    Ok(all.iter().filter_map(|document| Some(document["name"].as_str()?.to_owned())).collect())
}

/// A document of the cluster directory: its revision and its text.
pub fn document(host: &Host, name: &str) -> Result<(u64, String)> {
    let (done, answer) = ask(host.socket(), "GET", &format!("/v1/documents/{name}"), None)?;
    ensure!(done, "{}", String::from_utf8_lossy(&answer));
    let document: Document = serde_json::from_slice(&answer)?;
    Ok((document.revision, document.content))
}

/// Writes a document, in place of that revision.
pub fn put_document(host: &Host, name: &str, revision: u64, text: &str) -> Result<()> {
    let path = format!("/v1/documents/{name}?basis={revision}");
    let (done, answer) = ask(host.socket(), "PUT", &path, Some((text, "text/plain; charset=utf-8")))?;
    ensure!(done, "{}", String::from_utf8_lossy(&answer));
    Ok(())
}

/// Where control groups of version 2 are, if they are mounted.
pub fn group_mount() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mut lines = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    lines.find(|words| words.get(2) == Some(&"cgroup2")).map(|words| PathBuf::from(words[1]))
}

/// The control group of version 2 that a process is in.
pub fn group_of(pid: u32) -> Result<PathBuf> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::/")).context("it is in none")?;
    Ok(group_mount().context("cgroup v2 is not mounted")?.join(own))
}

/// The groups of VMs that there are, and the daemons that made them.
fn groups() -> Vec<(PathBuf, u32)> {
    let Some(mount) = group_mount() else { return Vec::new() };
    let folders = fs::read_dir(mount.join(SLICE)).into_iter().flatten().flatten().map(|entry| entry.path());
    folders
        .filter_map(|folder| {
            let pid = folder.extension()?.to_str()?.parse().ok()?;
            Some((folder, pid))
        })
        .filter(|(folder, _)| folder.is_dir())
        .collect()
}

/// Removes the empty groups of these daemons; how many there were that are not empty.
fn remove_groups(of: impl Fn(u32) -> bool) -> usize {
    let mine = groups().into_iter().filter(|(_, pid)| of(*pid));
    mine.filter(|(folder, _)| fs::remove_dir(folder).is_err()).count()
}

/// The processes whose command line is like this.
fn processes(test: impl Fn(&str) -> bool) -> Vec<(u32, String)> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let words = fs::read(entry.path().join("cmdline")).ok()?;
        let words = String::from_utf8_lossy(&words).replace('\0', " ");
        test(&words).then_some((pid, words))
    })
    .collect()
}

/// The children of a process.
pub fn children(pid: u32) -> Result<Vec<u32>> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    text.split_whitespace().map(|word| Ok(word.parse()?)).collect()
}

/// Whether a thread of a process may run on these processors and no others.
pub fn pinned(pid: u32, cpus: &str) -> Result<bool> {
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let status = fs::read_to_string(thread?.path().join("status"))?;
        let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        if allowed.is_some_and(|list| list.trim() == cpus) {
            return Ok(true);
        }
    }
    Ok(false)
}
