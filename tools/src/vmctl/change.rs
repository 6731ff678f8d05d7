//! What VMs are made of: `create`, `set`, `attach`, `detach`, `delete`.

use ferro_protocol::api::format_size;
use ferro_protocol::api::vm::{AttachDisk, AttachNic, VmInfo, VmName};
use hyper::Method;

use super::args::{AttachOptions, CreateOptions, DetachOptions};
use super::options::MachineOptions;
use super::{Context, draft, power};
use crate::failure::{Exit, Failure, Result};
use crate::text::count;

/// Somebody else may change a VM at the same time: so often it is tried again.
const ATTEMPTS: u32 = 5;

pub(super) async fn create(context: &Context, options: CreateOptions) -> Result<()> {
    let (name, start) = (options.name.clone(), options.start);
    let spec = draft::make(options)?;
    let made: VmInfo = context.client.post("/v1/vms", &spec).await?;
    if !start {
        return context.terminal.done(&made, created);
    }
    // Said before it is started: if that fails, the VM is there nevertheless.
    if !context.terminal.is_json() {
        context.terminal.done(&made, created)?;
    }
    let vm = power::start_now(context, &name, None, false).await?;
    context.terminal.done(&vm, |vm| power::started(vm, false))
}

fn created(vm: &VmInfo) -> String {
    let spec = &vm.spec;
    format!(
        "created VM {} with {}, {}, {} and {}",
        vm.name,
        count(u64::from(spec.cpus), "processor"),
        format_size(spec.memory_bytes),
        count(spec.disks.len() as u64, "disk"),
        count(spec.nics.len() as u64, "network card")
    )
}

pub(super) async fn set(context: &Context, name: &VmName, options: MachineOptions) -> Result<()> {
    if options == MachineOptions::default() {
        let message = format!("VM {name}: nothing was given to change");
        return Err(Failure::usage(message, "see `vmctl set --help` for what can be"));
    }
    let mut attempt = 1;
    loop {
        let before = context.vm(name).await?;
        let mut spec = before.spec.clone();
        draft::apply(&mut spec, options.clone())?;
        if spec == before.spec {
            return context
                .terminal
                .done(&before, |vm| format!("nothing to do: VM {} is like that already", vm.name));
        }
        let path = format!("/v1/vms/{name}?basis={}", before.revision);
        match context.client.put::<VmInfo>(&path, &spec).await {
            Ok(vm) => return context.terminal.done(&vm, |vm| format!("changed VM {}", vm.name)),
            // Somebody else was quicker: their change is kept.
            Err(failure) if failure.code == "conflict" && attempt < ATTEMPTS => attempt += 1,
            Err(failure) => return Err(failure),
        }
    }
}

pub(super) async fn attach(context: &Context, options: AttachOptions) -> Result<()> {
    let AttachOptions { name, volume, portgroup } = options;
    if let Some(disk) = volume {
        let what = format!("volume {}", disk.0.volume);
        let request = AttachDisk { disk: disk.0 };
        let vm: VmInfo = context.client.post(&format!("/v1/vms/{name}/disks"), &request).await?;
        return context.terminal.done(&vm, |vm| {
            format!("VM {} has {what} as its disk {}", vm.name, vm.spec.disks.len().saturating_sub(1))
        });
    }
    let Some(nic) = portgroup else { return Err(neither()) };
    let what = format!("port group {}", nic.0.portgroup);
    let request = AttachNic { nic: nic.0 };
    let vm: VmInfo = context.client.post(&format!("/v1/vms/{name}/nics"), &request).await?;
    context.terminal.done(&vm, |vm| {
        let at = vm.spec.nics.len().saturating_sub(1);
        let mac = vm
            .spec
            .nics
            .last()
            .and_then(|nic| nic.mac.as_ref())
            .map_or(String::new(), |mac| format!(", {mac}"));
        format!("VM {} has network card {at} in {what}{mac}", vm.name)
    })
}

/// The arguments' own rules leave no way here.
fn neither() -> Failure {
    Failure::usage("neither a disk nor a network card was named", "see `vmctl attach --help`")
}

pub(super) async fn detach(context: &Context, options: DetachOptions) -> Result<()> {
    let DetachOptions { name, volume, nic } = options;
    let (path, what) = match (volume, nic) {
        (Some(volume), _) => {
            let volume: ferro_protocol::ids::VolumeName =
                volume.parse().map_err(|bad: ferro_protocol::ids::BadVolumeName| {
                    Failure::new(
                        Exit::Usage,
                        "bad_name",
                        bad.to_string(),
                        format!("see `vmctl show {name}` for its disks"),
                    )
                })?;
            (format!("/v1/vms/{name}/disks/{volume}"), format!("volume {volume}; its data stay"))
        }
        (None, Some(at)) => (format!("/v1/vms/{name}/nics/{at}"), format!("network card {at}")),
        (None, None) => return Err(neither()),
    };
    let vm: VmInfo = context.client.delete(&path).await?;
    context.terminal.done(&vm, |vm| format!("VM {} no longer has {what}", vm.name))
}

pub(super) async fn delete(context: &Context, name: &VmName) -> Result<()> {
    let vm = context.vm(name).await?;
    let what = format!("deleting VM {name}");
    if vm.status.state.is_active() {
        // The daemon refuses it too; there is no point in asking first.
        let message = format!("{what}: it is {}", vm.status.state.as_str());
        return Err(Failure::new(
            Exit::Conflict,
            "vm_not_off",
            message,
            format!("`vmctl stop {name}` first"),
        ));
    }
    let volumes: Vec<&str> = vm.spec.disks.iter().map(|disk| disk.volume.as_str()).collect();
    let stays = match volumes.as_slice() {
        [] => String::new(),
        [one] => format!(" Its volume {one} stays."),
        several => format!(" Its volumes {} stay.", several.join(", ")),
    };
    let warning = format!("VM {name} is no longer known, and the logs of its console are removed.{stays}");
    context.terminal.confirm_name(&warning, name.as_str(), &what)?;
    context.client.empty(Method::DELETE, &format!("/v1/vms/{name}"), None::<&()>).await?;
    context.terminal.done(&vm, |vm| format!("deleted VM {}", vm.name))
}
