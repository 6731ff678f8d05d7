//! Seeing off disks and hosts that are leaving: what is empty, or goes at once, is taken out of the directory.
//!
//! Who moves the data is each volume's owner. Here is only the last step, by the host that has the disk, or, for a host or a
//! disk whose host is away, by the first of the others. Each step may be repeated, so it does no harm when two hosts do it or
//! when one stops half-way.

use std::sync::Arc;
use std::time::Duration;

use ferro_protocol::ids::{DiskId, HostId};
use vsand_core::directory::{Command, Departure, Refused, State};

use super::Member;
use super::disks::DiskError;
use crate::data::clock;

/// How often it is looked at what is leaving.
const EVERY: Duration = Duration::from_secs(1);
/// A refusal is logged when it is another one than before.
type LastRefusal = Option<String>;

/// Takes out what has nothing left to wait for.
pub async fn see_off(member: Arc<Member>) {
    let mut last = LastRefusal::None;
    loop {
        tokio::time::sleep(EVERY).await;
        let state = member.state();
        if state.leaving_disks.is_empty() && !state.leaving_hosts.keys().any(|h| state.is_host_leaving(*h)) {
            complete_removals(&member, &state).await;
            continue;
        }
        for (disk, departure) in &state.leaving_disks {
            if *departure == Departure::WhenEmpty && state.holds_components(&[*disk]) {
                continue;
            }
            let Some(host) = state.disks.get(disk).map(|d| d.host) else { continue };
            if host == member.host() {
                take_out(&member, *disk, &mut last).await;
            } else if !member.hears_from(host) && is_first(&member, &state) {
                let command = Command::RemoveDisk { disk: *disk, unix_s: clock::unix_s() };
                match member.propose(&command).await {
                    Ok(Ok(_)) => tracing::info!(%disk, "a disk of a host that is away has left the cluster"),
                    Ok(Err(refused)) => say(&mut last, &format!("disk {disk}"), &refused.to_string()),
                    Err(error) => tracing::debug!(%disk, %error, "the disk could not be taken out yet"),
                }
            }
        }
        for (host, departure) in state.leaving_hosts.iter().filter(|(h, _)| state.is_host_leaving(**h)) {
            let full = state.holds_components(&state.disks_in(*host));
            if (*departure == Departure::WhenEmpty && full) || !is_first(&member, &state) {
                continue;
            }
            match remove_host(&member, *host).await {
                Ok(()) => {}
                Err(RemoveError::Refused(refused)) => {
                    say(&mut last, &format!("host {host}"), &refused.to_string());
                }
                Err(RemoveError::Directory(error)) => {
                    tracing::debug!(%host, %error, "the host could not be taken out yet");
                }
            }
        }
    }
}

/// Hosts that are out of the directory but still in its group: their removal was cut off half-way.
async fn complete_removals(member: &Member, state: &State) {
    if state.hosts.is_empty() || !is_first(member, state) {
        return;
    }
    let left: Vec<HostId> =
        member.directory.status().members.keys().copied().filter(|h| !state.hosts.contains_key(h)).collect();
    for host in left {
        // What this host knows may be old: a host that has just joined is in the directory first.
        match member.directory.linearizable_state().await {
            Ok(state) if !state.hosts.contains_key(&host) => {}
            _ => return,
        }
        if let Err(error) = member.directory.remove_host(host).await {
            tracing::debug!(%host, %error, "a removed host could not be taken out of the directory's group yet");
        }
    }
}

fn say(last: &mut LastRefusal, what: &str, refused: &str) {
    let line = format!("{what}: {refused}");
    if last.as_ref() != Some(&line) {
        tracing::warn!(what, refused, "it can't leave the cluster yet");
        *last = Some(line);
    }
}

async fn take_out(member: &Member, disk: DiskId, last: &mut LastRefusal) {
    match member.disks.take_out(member, disk).await {
        Ok(()) => tracing::info!(%disk, "a disk has left the cluster"),
        Err(DiskError::Refused(refused)) => say(last, &format!("disk {disk}"), &refused.to_string()),
        Err(error) => tracing::warn!(%disk, %error, "a disk that is leaving could not be given up yet"),
    }
}

/// Whether this host is the first of those that stay and are there.
fn is_first(member: &Member, state: &State) -> bool {
    let mut staying = state.hosts.keys().filter(|h| !state.is_host_leaving(**h));
    staying.find(|host| member.hears_from(**host)) == Some(&member.host())
}

/// Why a host could not be removed.
#[derive(Debug, thiserror::Error)]
pub enum RemoveError {
    /// The directory said no.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// The directory did not answer.
    #[error(transparent)]
    Directory(#[from] vsand_directory::DirectoryError),
}

/// Takes a host out of the directory, and then out of the group that keeps it.
pub async fn remove_host(member: &Member, host: HostId) -> Result<(), RemoveError> {
    match member.propose(&Command::RemoveHost { host, unix_s: clock::unix_s() }).await? {
        Ok(_) => {}
        // A removal that was cut off half-way is completed.
        Err(Refused::NoHost(_)) if member.directory.status().members.contains_key(&host) => {}
        Err(refused) => return Err(refused.into()),
    }
    // The data is safe without it by now; should this fail, it can be repeated.
    member.directory.remove_host(host).await?;
    tracing::info!(%host, "a host was removed from the cluster");
    Ok(())
}
