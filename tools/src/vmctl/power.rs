//! What a VM is to do: `start`, `stop`, `kill`, `reset`, `pause`, `resume`.
//!
//! The daemon writes down what is wanted, and the VM's host does it. Where that is another host it takes a moment, so what was
//! asked for is waited for here, as long as `--timeout` says.

use std::time::Duration;

use ferro_protocol::api::vm::{ResetVm, StartVm, StopVm, VmInfo, VmName, VmState, VmStatus};
use tokio::time::Instant;

use super::Context;
use super::args::{StartOptions, StopOptions};
use super::machine::{host_name, kind_name};
use crate::failure::{Exit, Failure, Result};

/// How often it is looked whether a VM does what was asked for.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// The longest that the daemon waits for a guest to shut down.
const STOP_SECONDS_MAX: u64 = 3600;
/// An answer that says that the time is up needs time too, and so does the plug after it.
const GRACE: Duration = Duration::from_secs(30);

pub(super) async fn start(context: &Context, options: StartOptions) -> Result<()> {
    let StartOptions { name, host, no_wait } = options;
    let vm = start_now(context, &name, host, no_wait).await?;
    context.terminal.done(&vm, |vm| started(vm, no_wait))?;
    if vm.here && vm.status.state == VmState::Running {
        context.terminal.hint(&format!("`vmctl console {name}` talks to it"));
    }
    Ok(())
}

pub(super) fn started(vm: &VmInfo, no_wait: bool) -> String {
    if no_wait && vm.status.state != VmState::Running {
        return format!("VM {} is to run on host {}", vm.name, host_name(vm));
    }
    let by = vm.status.process.as_ref().map_or(String::new(), |process| {
        let why = process.why.as_ref().map_or(String::new(), |why| format!(": {why}"));
        format!(", under {}{why}", kind_name(process.kind))
    });
    format!("VM {} runs on host {}{by}", vm.name, host_name(vm))
}

/// Starts it, and waits until it runs.
pub(super) async fn start_now(
    context: &Context,
    name: &VmName,
    host: Option<String>,
    no_wait: bool,
) -> Result<VmInfo> {
    let before = context.vm(name).await?.status;
    let asked: VmInfo = context.client.post(&format!("/v1/vms/{name}/start"), &StartVm { host }).await?;
    if no_wait {
        return Ok(asked);
    }
    wait(context, asked, &before, "start", |state| state == VmState::Running).await
}

pub(super) async fn stop(context: &Context, options: StopOptions) -> Result<()> {
    let StopOptions { name, force } = options;
    let seconds =
        context.timeout.map_or(STOP_SECONDS_MAX, |limit| limit.as_secs().clamp(1, STOP_SECONDS_MAX));
    let request = StopVm { timeout_s: Some(seconds as u32), force };
    let limit = Duration::from_secs(seconds) + GRACE;
    let before = context.vm(&name).await?.status;
    let asked: VmInfo =
        context.client_for(Some(limit)).post(&format!("/v1/vms/{name}/stop"), &request).await?;
    let vm = wait(context, asked, &before, "stop", |state| !state.is_active()).await?;
    context.terminal.done(&vm, |vm| format!("VM {} is off", vm.name))
}

pub(super) async fn kill(context: &Context, name: &VmName) -> Result<()> {
    let warning = format!("VM {name} ends at once: what its guest has not written to its disks is lost.");
    context.terminal.confirm(&warning, &format!("killing VM {name}"))?;
    let before = context.vm(name).await?.status;
    let asked: VmInfo = context.client.post(&format!("/v1/vms/{name}/kill"), &()).await?;
    let vm = wait(context, asked, &before, "kill", |state| !state.is_active()).await?;
    context.terminal.done(&vm, |vm| format!("VM {} is off", vm.name))
}

pub(super) async fn reset(context: &Context, name: &VmName) -> Result<()> {
    let warning = format!("VM {name} begins anew: what its guest has not written to its disks is lost.");
    context.terminal.confirm(&warning, &format!("resetting VM {name}"))?;
    let vm: VmInfo = context.client.post(&format!("/v1/vms/{name}/reset"), &ResetVm {}).await?;
    context.terminal.done(&vm, |vm| format!("VM {} was reset", vm.name))
}

pub(super) async fn pause(context: &Context, name: &VmName) -> Result<()> {
    let before = context.vm(name).await?.status;
    let asked: VmInfo = context.client.post(&format!("/v1/vms/{name}/pause"), &()).await?;
    let vm = wait(context, asked, &before, "pause", |state| state == VmState::Paused).await?;
    context
        .terminal
        .done(&vm, |vm| format!("VM {} stands still; `vmctl resume {}` has it go on", vm.name, vm.name))
}

pub(super) async fn resume(context: &Context, name: &VmName) -> Result<()> {
    let before = context.vm(name).await?.status;
    let asked: VmInfo = context.client.post(&format!("/v1/vms/{name}/resume"), &()).await?;
    let vm = wait(context, asked, &before, "resume", |state| state == VmState::Running).await?;
    context.terminal.done(&vm, |vm| format!("VM {} goes on", vm.name))
}

/// Looks until the VM is in such a state. One that failed since it was asked is not waited for.
async fn wait(
    context: &Context,
    mut vm: VmInfo,
    before: &VmStatus,
    verb: &str,
    is_done: impl Fn(VmState) -> bool,
) -> Result<VmInfo> {
    let end = context.timeout.map(|limit| Instant::now() + limit);
    loop {
        let status = &vm.status;
        let changed = (status.state, status.incarnation, status.since_unix_s)
            != (before.state, before.incarnation, before.since_unix_s);
        if is_done(status.state) && !(status.state == VmState::Failed && verb == "start") {
            return Ok(vm);
        }
        if changed && matches!(status.state, VmState::Failed | VmState::Crashed) {
            return Err(failed(&vm, verb));
        }
        if end.is_some_and(|end| Instant::now() >= end) {
            return Err(late(&vm, verb));
        }
        tokio::time::sleep(LOOK_EVERY).await;
        vm = context.vm(&vm.name).await?;
    }
}

fn failed(vm: &VmInfo, verb: &str) -> Failure {
    let why =
        vm.status.detail.clone().or_else(|| vm.status.last_exit.as_ref().map(|exit| exit.detail.clone()));
    let why = why.unwrap_or_else(|| format!("it is {}", vm.status.state.as_str()));
    let message = format!("VM {} did not {verb} on host {}: {why}", vm.name, host_name(vm));
    let next = format!(
        "see `vmctl show {0}` and `vmctl logs {0} --previous`, and `journalctl -u hypervisord` there",
        vm.name
    );
    let mut failure = Failure::new(Exit::Failure, "vmm_failed", message, next);
    failure.details.insert("state".to_owned(), vm.status.state.as_str().to_owned());
    failure
}

fn late(vm: &VmInfo, verb: &str) -> Failure {
    let state = vm.status.state;
    let detail = vm.status.detail.as_ref().map_or(String::new(), |detail| format!(", {detail}"));
    let message = format!(
        "VM {} was told to {verb}, and is {}{detail} on host {}; it may still do it",
        vm.name,
        state.as_str(),
        host_name(vm)
    );
    let next = format!("look with `vmctl show {}` whether it did; --timeout sets how long to wait", vm.name);
    Failure::new(Exit::TimedOut, "timed_out", message, next)
}
