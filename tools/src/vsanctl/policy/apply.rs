//! `policy apply`: volumes get another policy while they are in use, and who asked for it may watch.

use ferro_protocol::api::{
    Policy, ProvisionRequest, Redundancy, SetPolicyRequest, Status, VolumeInfo, VolumeList,
};
use ferro_protocol::ids::VolumeName;

use super::{Meant, PolicyChoice, resolve};
use crate::failure::{Failure, Result};
use crate::vsanctl::Context;
use crate::vsanctl::leaving::{LOOK_EVERY, progress, speed};
use crate::vsanctl::limits::put;
use crate::vsanctl::transfer::interrupted;
use crate::vsanctl::volume;

pub(super) async fn apply(
    context: &Context,
    choice: &PolicyChoice,
    names: &[VolumeName],
    no_wait: bool,
) -> Result<()> {
    let Meant { policy, reserve, force, limits } = resolve(context, choice).await?;
    // A name that is wrong is seen before anything changes.
    for name in names {
        volume::show(context, name).await?;
    }
    let mut changed: Vec<VolumeInfo> = Vec::new();
    for name in names {
        // Whether it may have fewer copies counts when they are sought, and what is kept when it is known how many there are to be.
        if force {
            volume::provision(
                context,
                name,
                &ProvisionRequest { force: Some(true), ..ProvisionRequest::default() },
            )
            .await?;
        }
        let request = SetPolicyRequest { policy: policy.into() };
        let path = format!("/v1/volumes/{name}/policy");
        let mut volume = context.client.post(&path, &request).await?;
        if reserve.is_some() {
            let request = ProvisionRequest { reserve_percent: reserve, force: None };
            volume = volume::provision(context, name, &request).await?;
        }
        if let Some(limits) = limits {
            volume = put(context, name, limits).await?;
        }
        changed.push(volume);
    }
    if !no_wait && !changed.iter().all(is_whole) {
        changed = wait(context, policy, names).await?;
    }
    let list = VolumeList { volumes: changed };
    context.terminal.done(&list, |list| {
        let line = |volume: &VolumeInfo| {
            let how = if is_whole(volume) {
                "all copies are there"
            } else {
                "copies are being made (`vsanctl resync list` says how far that is)"
            };
            format!("volume {} is {} now: {how}", volume.name, volume.policy)
        };
        list.volumes.iter().map(line).collect::<Vec<_>>().join("\n")
    })
}

fn is_whole(volume: &VolumeInfo) -> bool {
    volume.redundancy == Redundancy::Healthy
}

/// Waits until all copies are there.
async fn wait(context: &Context, policy: Policy, names: &[VolumeName]) -> Result<Vec<VolumeInfo>> {
    let bar = progress(context.terminal, "copying", 0);
    let watched = async {
        loop {
            let mut volumes = Vec::new();
            for name in names {
                volumes.push(volume::show(context, name).await?);
            }
            if let Some(other) = volumes.iter().find(|v| v.policy != policy) {
                return Err(Failure::aborted(
                    format!(
                        "volume {} is {} now: somebody has applied another policy",
                        other.name, other.policy
                    ),
                    "see `vsanctl status`; repeat it if it is to be so after all",
                ));
            }
            if volumes.iter().all(is_whole) {
                return Ok(volumes);
            }
            let status: Status = context.client.get("/v1/status").await?;
            bar.set_length(status.resync.total_bytes);
            bar.set_position(status.resync.done_bytes);
            bar.set_message(speed(&status.resync));
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let outcome = tokio::select! {
        outcome = watched => outcome,
        () = interrupted() => Err(Failure::aborted(
            format!("copies go on being made for {policy}; only the waiting has ended"),
            "`vsanctl resync list` says how far it is; the former policy, applied again, takes it back",
        )),
    };
    bar.finish_and_clear();
    outcome
}
