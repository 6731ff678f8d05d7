//! Hosts in maintenance, and what it would mean to take out a host or a disk.
//!
//! What is decided by the directory alone is in [`vsand_core::directory::maintenance`]; here is added what only a look at the
//! cluster shows: which hosts and disks answer, and whether the directory keeps its quorum.

use std::collections::BTreeSet;

use ferro_protocol::api::{
    ApiError, ErrorCode, HostInfo, LOSS_VOLUMES_MAX, MaintenanceInfo, MaintenanceMode as ApiMode,
    PossibleAction, Safety,
};
use ferro_protocol::ids::{DiskId, HostId, ObjectId, VolumeName};
use ferro_protocol::units::EXTENT_BYTES;
use vsand_core::directory::{Command, Departure, LockKind, MaintenanceMode, ObjectRecord, Refused, State};

use super::capacity::{away, loss, names};
use super::cluster::{carry_out, latest, propose, settle, view};
use super::errors::{self, host_name};
use super::view::View;
use crate::api::control::Result;
use crate::api::fail;
use crate::member::Member;

/// The API's mode.
pub fn api_mode(mode: MaintenanceMode) -> ApiMode {
    match mode {
        MaintenanceMode::EnsureAccess => ApiMode::EnsureAccess,
        MaintenanceMode::Full => ApiMode::Full,
        MaintenanceMode::NoMove => ApiMode::None,
    }
}

/// The directory's mode.
fn core_mode(mode: ApiMode) -> MaintenanceMode {
    match mode {
        ApiMode::EnsureAccess => MaintenanceMode::EnsureAccess,
        ApiMode::Full => MaintenanceMode::Full,
        ApiMode::None => MaintenanceMode::NoMove,
    }
}

/// How a host is in maintenance.
pub(super) fn info(view: &View, host: HostId) -> Option<MaintenanceInfo> {
    let (mode, since_unix_s) = view.state.maintenance(host)?;
    let disks = view.state.disks_in(host);
    let ready = view.state.maintenance_ready(host) == Some(true) && lost_without(view, &disks).is_empty();
    Some(MaintenanceInfo {
        mode: api_mode(mode),
        since_unix_s,
        ready,
        remaining_bytes: bytes_to_move(view, &disks, mode),
    })
}

/// The volumes of which something could not be read without these disks, and can with them, by what answers now.
fn lost_without(view: &View, disks: &[DiskId]) -> BTreeSet<ObjectId> {
    view.state.lost_without(disks, &away(view))
}

/// How much a mode still has to move from these disks.
fn bytes_to_move(view: &View, disks: &[DiskId], mode: MaintenanceMode) -> u64 {
    let moves = |object: &ObjectRecord| mode.moves(object.policy);
    let mut bytes = 0;
    for disk in disks.iter().filter_map(|disk| view.state.disks.get(disk)) {
        let here = |object: &ObjectRecord| {
            object.chunks.values().flat_map(|c| &c.components).any(|c| c.disk == disk.id)
        };
        match view.disk_report(disk).filter(|report| report.failure.is_none()) {
            Some(report) => {
                for (object, extents) in &report.objects {
                    let object = view.state.objects.get(object);
                    if object.is_some_and(|object| moves(object) && here(object)) {
                        bytes += extents * EXTENT_BYTES;
                    }
                }
            }
            // It says nothing of its objects: all that it is known to hold, if anything of it goes.
            None if view.state.objects.values().any(|object| moves(object) && here(object)) => {
                bytes += disk.used_extents.saturating_mul(EXTENT_BYTES);
            }
            None => {}
        }
    }
    bytes
}

/// Whether the directory has a quorum without a host.
fn keeps_quorum(view: &View, host: HostId) -> bool {
    let others = view.voters.iter().filter(|voter| **voter != host && view.is_online(**voter)).count();
    !view.voters.contains(&host) || others * 2 > view.voters.len()
}

/// Refuses the removal of a host without which the directory could change nothing any more: found out before its data moves.
pub(super) fn check_voters(view: &View, host: HostId) -> Result<()> {
    let name = host_name(&view.state, host);
    let voters: Vec<HostId> = view.voters.iter().copied().filter(|voter| *voter != host).collect();
    let alive = voters.iter().filter(|voter| view.is_online(**voter)).count();
    // The only voter hands over to any other host.
    let heir = view.state.hosts.keys().any(|other| *other != host && view.is_online(*other));
    let enough = if voters.is_empty() { heir } else { alive * 2 > voters.len() };
    if enough || !view.voters.contains(&host) || view.state.hosts.len() < 2 {
        return Ok(());
    }
    let message = if voters.is_empty() {
        format!(
            "host {name} is the last voter of the cluster directory that answers: without it nothing could be changed any more"
        )
    } else {
        format!(
            "without host {name} the cluster directory would have {} voters, of which {alive} answer: that is no quorum",
            voters.len()
        )
    };
    let next = "bring the other hosts back first, or remove those that are gone for good; `vsanctl host list` says which are missing";
    Err(ApiError::new(ErrorCode::NoQuorum, message, next))
}

async fn host_in(member: &Member, host: HostId) -> Result<HostInfo> {
    let found = view(member).await.hosts().into_iter().find(|h| h.id == host);
    found.ok_or_else(|| fail::host_not_found(host))
}

/// Somebody is going to work on a host.
pub(super) async fn enter(member: &Member, host: HostId, mode: ApiMode) -> Result<HostInfo> {
    let view = view(member).await;
    let name = host_name(&view.state, host);
    let what = format!("letting host {name} enter maintenance");
    let state = latest(member, &what).await?;
    if !state.hosts.contains_key(&host) {
        return Err(fail::host_not_found(host));
    }
    let mode = core_mode(mode);
    live_check(&view, host, mode)?;
    // Who enters again in the same mode has been there all the time.
    let since_unix_s = match state.maintenance(host) {
        Some((known, since)) if known == mode => since,
        _ => view.unix_s,
    };
    let departure = Some(Departure::Maintenance { mode, since_unix_s });
    let answer = propose(member, &what, &Command::LeaveHost { host, departure }).await?;
    answer.map_err(|refused| refusal(&state, &refused))?;
    tracing::info!(%host, ?mode, "a host enters maintenance");
    settle(member).await;
    host_in(member, host).await
}

/// Of what the directory refused: here nothing can be forced, and less can be moved.
fn refusal(state: &State, refused: &Refused) -> ApiError {
    let mut error = errors::refused(state, refused);
    if matches!(refused, Refused::CantMove { .. } | Refused::NoSpaceElsewhere { .. }) {
        "add disks on other hosts first (`vsanctl disk add`), or choose a mode that moves less: ensure-access, or none"
            .clone_into(&mut error.next_step);
    }
    error
}

/// Refuses what would stop volumes or the directory, by which hosts and disks answer now.
fn live_check(view: &View, host: HostId, mode: MaintenanceMode) -> Result<()> {
    let name = host_name(&view.state, host);
    // What is moved away first is not lost.
    let mut lost = lost_without(view, &view.state.disks_in(host));
    lost.retain(|object| view.state.objects.get(object).is_some_and(|o| !mode.moves(o.policy)));
    if let Some(example) = names(&view.state, &lost).first() {
        return Err(ApiError::new(
            ErrorCode::WouldLoseData,
            format!(
                "without host {name}, {} volumes could not be read, {example} among them: their other good copies do not answer",
                lost.len()
            ),
            "bring back the hosts and disks that have them (`vsanctl status` names them) or wait for the resync to end; what never \
             had a second copy is moved by `--mode ensure-access`",
        ));
    }
    let stuck = view.state.immovable(&view.state.disks_in(host), mode, &away(view));
    if let Some(example) = names(&view.state, &stuck).first() {
        return Err(ApiError::new(
            ErrorCode::Conflict,
            format!(
                "host {name} can't be emptied: {} volumes can't be read now, {example} among them, so what it has of them can't be \
                 copied elsewhere",
                stuck.len()
            ),
            "switch on the hosts that have them (`vsanctl status` names them) and repeat",
        ));
    }
    if mode != MaintenanceMode::NoMove && !keeps_quorum(view, host) {
        return Err(ApiError::new(
            ErrorCode::WouldLoseData,
            format!(
                "without host {name} the cluster directory has no quorum: volumes that need a change would wait"
            ),
            "bring back the other voters, or add hosts: three can spare one. `--mode none` lets the host enter all the same",
        ));
    }
    Ok(())
}

/// The work is done.
pub(super) async fn exit(member: &Member, host: HostId) -> Result<HostInfo> {
    let what = "ending maintenance";
    let state = latest(member, what).await?;
    let record = state.hosts.get(&host).ok_or_else(|| fail::host_not_found(host))?;
    if state.maintenance(host).is_none() {
        let message = format!("host {} is not in maintenance", record.name);
        let next = "there is nothing to end; `vsanctl host list` shows which hosts are";
        return Err(ApiError::new(ErrorCode::Conflict, message, next));
    }
    carry_out(member, what, &state, &Command::LeaveHost { host, departure: None }).await?;
    tracing::info!(%host, "a host has left maintenance");
    host_in(member, host).await
}

/// The volumes that are open on a host.
fn open_on(state: &State, host: HostId) -> Vec<VolumeName> {
    let open = |o: &&std::sync::Arc<ObjectRecord>| {
        o.lock.is_some_and(|l| l.host == host && l.kind != LockKind::Background)
    };
    let mut names: Vec<VolumeName> = state.volumes().filter(open).map(|o| o.name.clone()).collect();
    names.sort();
    names.truncate(LOSS_VOLUMES_MAX);
    names
}

/// Whether a command would be accepted: it is tried on a copy of the directory.
fn tried(
    view: &View,
    command: String,
    moved_bytes: u64,
    change: Command,
    live: Result<()>,
) -> PossibleAction {
    let mut copy = State::clone(&view.state);
    let index = copy.revision.saturating_add(1);
    let maintenance =
        matches!(change, Command::LeaveHost { departure: Some(Departure::Maintenance { .. }), .. });
    let tried = copy.apply(index, change).map(drop).map_err(|refused| {
        if maintenance { refusal(&view.state, &refused) } else { errors::refused(&view.state, &refused) }
    });
    match live.and(tried) {
        Ok(()) => PossibleAction { command, possible: true, moved_bytes, refusal: None, next_step: None },
        Err(error) => PossibleAction {
            command,
            possible: false,
            moved_bytes,
            refusal: Some(error.message),
            next_step: Some(error.next_step),
        },
    }
}

fn without(view: &View, name: String, disks: &[DiskId]) -> Safety {
    let away = away(view);
    let forecast = loss(&view.state, &away, &view.state.without(&away), disks);
    let unavailable = lost_without(view, disks);
    let used = disks.iter().filter_map(|d| view.state.disks.get(d)).map(|d| view.used_bytes_of_disk(d)).sum();
    Safety {
        name,
        safe: unavailable.is_empty(),
        used_bytes: used,
        volumes: u32::try_from(forecast.touched.len()).unwrap_or(u32::MAX),
        rebuild_bytes: forecast.extents.saturating_mul(EXTENT_BYTES),
        unavailable_volumes: names(&view.state, &unavailable),
        unplaced_volumes: names(&view.state, &forecast.homeless),
        open_volumes: Vec::new(),
        keeps_quorum: true,
        actions: Vec::new(),
    }
}

/// What it would mean if a host went now.
pub(super) fn of_host(view: &View, host: HostId) -> Result<Safety> {
    let record = view.state.hosts.get(&host).ok_or_else(|| fail::host_not_found(host))?;
    let (name, disks) = (&record.name, view.state.disks_in(host));
    let mut safety = without(view, format!("host {name}"), &disks);
    safety.open_volumes = open_on(&view.state, host);
    safety.keeps_quorum = keeps_quorum(view, host);
    safety.safe &= safety.keeps_quorum && safety.open_volumes.is_empty();
    for mode in [MaintenanceMode::NoMove, MaintenanceMode::EnsureAccess, MaintenanceMode::Full] {
        let departure = Some(Departure::Maintenance { mode, since_unix_s: view.unix_s });
        safety.actions.push(tried(
            view,
            format!("vsanctl host maintenance enter {name} --mode {}", api_mode(mode)),
            bytes_to_move(view, &disks, mode),
            Command::LeaveHost { host, departure },
            live_check(view, host, mode),
        ));
    }
    for (departure, force) in [(Departure::WhenEmpty, ""), (Departure::AtOnce, " --force")] {
        let moved = if force.is_empty() { bytes_to_move(view, &disks, MaintenanceMode::Full) } else { 0 };
        let command = format!("vsanctl host remove {name}{force}");
        let change = Command::LeaveHost { host, departure: Some(departure) };
        safety.actions.push(tried(view, command, moved, change, check_voters(view, host)));
    }
    Ok(safety)
}

/// What it would mean if a disk went now.
pub(super) fn of_disk(view: &View, disk: DiskId) -> Result<Safety> {
    let record = view.state.disks.get(&disk).ok_or_else(|| fail::disk_not_found(disk))?;
    let name = format!("disk {} of host {}", record.path, host_name(&view.state, record.host));
    let mut safety = without(view, name, &[disk]);
    for (departure, force) in [(Departure::WhenEmpty, ""), (Departure::AtOnce, " --force")] {
        let moved = if force.is_empty() { bytes_to_move(view, &[disk], MaintenanceMode::Full) } else { 0 };
        let command = format!("vsanctl disk remove {disk}{force}");
        let change = Command::LeaveDisk { disk, departure: Some(departure) };
        safety.actions.push(tried(view, command, moved, change, Ok(())));
    }
    Ok(safety)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vsand_core::directory::Policy;

    use super::super::view::tests::{disk_id, healthy, host_id, kill, stale};
    use super::*;

    fn rest(view: &mut View, n: u8, mode: MaintenanceMode) {
        let departure = Departure::Maintenance { mode, since_unix_s: 1_990 };
        Arc::make_mut(&mut view.state).leaving_hosts.insert(host_id(n), departure);
    }

    #[test]
    fn what_could_be_done_with_a_host() {
        let view = healthy();
        let safety = of_host(&view, host_id(2)).unwrap();
        assert!(safety.safe && safety.keeps_quorum && safety.volumes == 1, "{safety:?}");
        assert_eq!(safety.unplaced_volumes.len(), 1, "the third copy has no other place");
        let possible: Vec<bool> = safety.actions.iter().map(|action| action.possible).collect();
        assert_eq!(possible, [true, true, false, false, true], "{safety:#?}");
        assert!(safety.actions[2].refusal.as_ref().unwrap().contains("3 fault domains"));
        assert_eq!(safety.actions[2].moved_bytes, 12 << 20);
        // Host 1 has the volume open.
        let safety = of_host(&view, host_id(1)).unwrap();
        assert!(!safety.safe && safety.open_volumes.len() == 1, "{safety:?}");
        assert!(safety.actions[0].possible && !safety.actions[1].possible);
        assert!(of_host(&view, host_id(9)).is_err() && of_disk(&view, disk_id(9)).is_err());
        assert!(of_disk(&view, disk_id(3)).unwrap().safe);
    }

    #[test]
    fn the_last_copy_and_the_quorum_are_kept() {
        let mut view = healthy();
        kill(&mut view, 3);
        stale(&mut view, 1, 5);
        let safety = of_host(&view, host_id(2)).unwrap();
        assert!(!safety.safe && !safety.keeps_quorum, "{safety:?}");
        assert_eq!(safety.unavailable_volumes.len(), 1);
        assert!(safety.actions.iter().take(2).all(|action| !action.possible), "{safety:#?}");
        let mut view = healthy();
        kill(&mut view, 3);
        let error = live_check(&view, host_id(2), MaintenanceMode::EnsureAccess).unwrap_err();
        assert!(error.message.contains("no quorum"), "{error:?}");
        assert!(live_check(&view, host_id(2), MaintenanceMode::NoMove).is_ok());
    }

    #[test]
    fn what_can_not_be_read_is_not_waited_for() {
        let mut view = healthy();
        let there = view.state.disks_in(host_id(3));
        for object in Arc::make_mut(&mut view.state).objects.values_mut() {
            let record = Arc::make_mut(object);
            record.policy = Policy::Mirror { copies: 1 };
            let all = record.chunks.values_mut().map(|chunk| &mut chunk.components);
            all.for_each(|components| components.retain(|c| there.contains(&c.disk)));
        }
        assert!(live_check(&view, host_id(3), MaintenanceMode::EnsureAccess).is_ok(), "it moves");
        kill(&mut view, 3);
        let error = live_check(&view, host_id(3), MaintenanceMode::EnsureAccess).unwrap_err();
        assert!(error.message.contains("can't be emptied"), "{error:?}");
        assert!(live_check(&view, host_id(3), MaintenanceMode::Full).is_err());
        // Not even in the mode that moves nothing: it is the only one that has it.
        let error = live_check(&view, host_id(3), MaintenanceMode::NoMove).unwrap_err();
        assert_eq!(error.code, ErrorCode::WouldLoseData, "{error:?}");
    }

    #[test]
    fn a_host_is_removed_only_if_the_voters_that_stay_are_a_quorum() {
        let mut view = healthy();
        assert!((1..=3).all(|n| check_voters(&view, host_id(n)).is_ok()));
        kill(&mut view, 3);
        let error = check_voters(&view, host_id(2)).unwrap_err();
        assert!(
            error.code == ErrorCode::NoQuorum && error.message.contains("2 voters, of which 1"),
            "{error:?}"
        );
        check_voters(&view, host_id(3)).expect("who is gone may be given up");
        view.voters = [host_id(2)].into();
        check_voters(&view, host_id(2)).expect("another takes over");
        check_voters(&view, host_id(1)).expect("it does not vote");
        kill(&mut view, 1);
        view.me = host_id(2);
        assert!(check_voters(&view, host_id(2)).unwrap_err().message.contains("last voter"));
    }

    #[test]
    fn a_host_is_ready_when_it_can_be_spared() {
        let mut view = healthy();
        rest(&mut view, 3, MaintenanceMode::NoMove);
        assert!(info(&view, host_id(3)).unwrap().ready && info(&view, host_id(2)).is_none());
        kill(&mut view, 3);
        assert!(info(&view, host_id(3)).unwrap().ready, "it is away, and the others are there");
        stale(&mut view, 1, 5);
        stale(&mut view, 2, 5);
        assert!(!info(&view, host_id(3)).unwrap().ready, "it has the only good copy");
        let mut view = healthy();
        rest(&mut view, 3, MaintenanceMode::Full);
        let info = info(&view, host_id(3)).unwrap();
        assert!(!info.ready && info.remaining_bytes == 12 << 20, "{info:?}");
    }
}
