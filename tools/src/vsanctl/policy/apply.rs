//! `policy apply`: volumes get another policy while they are in use, and who asked for it may watch.

use ferro_protocol::api::{
    Policy, ProvisionRequest, Redundancy, SetPolicyRequest, Status, VolumeInfo, VolumeList,
};
use ferro_protocol::ids::VolumeName;

use super::{Meant, PolicyChoice, resolve};
use crate::failure::{Failure, Result};
use crate::text::printable;
use crate::vsanctl::Context;
use crate::vsanctl::leaving::{LOOK_EVERY, progress, speed};
use crate::vsanctl::limits::put;
use crate::vsanctl::transfer::interrupted;
use crate::vsanctl::{place, volume};

pub(super) async fn apply(
    context: &Context,
    choice: &PolicyChoice,
    names: &[VolumeName],
    no_wait: bool,
) -> Result<()> {
    let Meant { policy, reserve, force, limits, placement } = resolve(context, choice).await?;
    // A name that is wrong is seen before anything changes.
    let mut named: Vec<VolumeInfo> = Vec::new();
    for name in names {
        named.push(volume::show(context, name).await?);
    }
    let mut changed: Vec<VolumeInfo> = Vec::new();
    for before in &named {
        let name = &before.name;
        // Whether it may have fewer copies, and where they are rather to be, counts when they are sought, and what is kept when it is
        // known how many there are to be.
        if let Some(placement) = &placement {
            place::put(context, name, placement).await?;
        }
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
        let asked: Result<VolumeInfo> = context.client.post(&path, &request).await;
        let mut volume = match asked {
            Ok(volume) => volume,
            Err(mut refused) => {
                if let Err(failed) = put_back(context, before, force, placement.is_some()).await {
                    refused.message = format!(
                        "{}; where volume {name} is to be could not be put back: {}",
                        refused.message, failed.message
                    );
                }
                return Err(refused);
            }
        };
        if reserve.is_some() {
            let request = ProvisionRequest { reserve_percent: reserve, force: None };
            volume = volume::provision(context, name, &request).await?;
        }
        if let Some(limits) = limits {
            volume = put(context, name, limits).await?;
        }
        changed.push(volume);
    }
    let is_done = |volume: &VolumeInfo| is_done(volume, policy);
    if !no_wait && !changed.iter().all(is_done) {
        changed = wait(context, policy, names).await?;
    }
    let list = VolumeList { volumes: changed };
    context.terminal.done(&list, |list| {
        let line = |volume: &VolumeInfo| {
            if let Some(conversion) = &volume.conversion {
                return format!(
                    "volume {name} is {} and becomes {} (`vsanctl volume show {name}` says how far that is; `vsanctl policy apply {} {name}` stops it)",
                    volume.policy,
                    volume::conversion_text(conversion),
                    volume.policy,
                    name = volume.name,
                );
            }
            let how = if is_done(volume) {
                "all of it is there"
            } else {
                "copies are being made (`vsanctl resync list` says how far that is)"
            };
            format!("volume {} is {} now: {how}", volume.name, volume.policy)
        };
        list.volumes.iter().map(line).collect::<Vec<_>>().join("\n")
    })
}

/// A volume that does not get the policy is kept as it was before.
async fn put_back(context: &Context, before: &VolumeInfo, force: bool, placed: bool) -> Result<()> {
    if placed {
        place::put(context, &before.name, &before.placement).await?;
    }
    if force && !before.force_provisioning {
        let request = ProvisionRequest { force: Some(false), ..ProvisionRequest::default() };
        volume::provision(context, &before.name, &request).await?;
    }
    Ok(())
}

fn is_done(volume: &VolumeInfo, policy: Policy) -> bool {
    volume.policy == policy && volume.conversion.is_none() && volume.redundancy == Redundancy::Healthy
}

/// What it is, or is being made into.
fn aim(volume: &VolumeInfo) -> Policy {
    volume.conversion.as_ref().map_or(volume.policy, |conversion| conversion.policy)
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
            if let Some(other) = volumes.iter().find(|v| aim(v) != policy) {
                return Err(Failure::aborted(
                    format!(
                        "volume {} is {} now: somebody has applied another policy",
                        other.name,
                        aim(other)
                    ),
                    "see `vsanctl status`; repeat it if it is to be so after all",
                ));
            }
            if volumes.iter().all(|volume| is_done(volume, policy)) {
                return Ok(volumes);
            }
            let status: Status = context.client.get("/v1/status").await?;
            let conversions = || volumes.iter().filter_map(|volume| volume.conversion.as_ref());
            let total: u64 = conversions().map(|conversion| conversion.total_bytes).sum();
            let copied: u64 = conversions().filter_map(|conversion| conversion.copied_bytes).sum();
            bar.set_length(status.resync.total_bytes + total);
            bar.set_position(status.resync.done_bytes + copied);
            match conversions().find_map(|conversion| conversion.waits.as_deref()) {
                Some(why) => bar.set_message(format!("waits: {}", printable(why))),
                None => bar.set_message(speed(&status.resync)),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let outcome = tokio::select! {
        outcome = watched => outcome,
        () = interrupted() => Err(Failure::aborted(
            format!("it goes on without being waited for, to {policy}"),
            "`vsanctl volume show` and `vsanctl resync list` say how far it is; the former policy, applied again, takes it back",
        )),
    };
    bar.finish_and_clear();
    outcome
}
