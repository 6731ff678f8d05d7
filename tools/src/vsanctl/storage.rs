//! `disk`, `object` and `lock`.

use std::path::Path;

use ferro_protocol::api::{
    AddDiskRequest, AddedDisk, BrokenLock, ComponentState, DiskInfo, DiskList, DiskState, LockInfo, LockList,
    ObjectDetails, ObjectInfo, ObjectList, Policy, format_size,
};
use ferro_protocol::ids::VolumeName;

use super::args::{DiskVerb, LockVerb, ObjectVerb};
use super::leaving::{Leaver, Thing};
use super::volume::{owner_name, redundancy_cell};
use super::{Context, resolve};
use crate::failure::{Failure, Result};
use crate::text::{Cell, Paint, Style, Table, duration, facts, percent, printable};

pub(super) async fn disk(context: &Context, verb: DiskVerb) -> Result<()> {
    let terminal = context.terminal;
    match verb {
        DiskVerb::Add { path, size, confirm } => add_disk(context, &path, size, confirm).await,
        DiskVerb::List => {
            let list: DiskList = context.client.get("/v1/disks").await?;
            terminal.answer(&list, |list, paint| disk_table(&list.disks, terminal.is_wide()).render(paint, 0))
        }
        DiskVerb::Show { disk } => {
            let info = resolve::disk(context, &disk).await?;
            terminal.answer(&info, one_disk)
        }
        DiskVerb::Remove { disk, options } => {
            let info = resolve::disk(context, &disk).await?;
            let leaver = Leaver {
                thing: Thing::Disk(info.id),
                name: format!("disk {} on host {}", info.path, info.host_name),
                command: format!("vsanctl disk remove {}", info.id),
                used_bytes: info.used_bytes,
                with: String::new(),
            };
            leaver.remove(context, &options).await
        }
        DiskVerb::Revive { disk } => {
            let info = resolve::disk(context, &disk).await?;
            let revived: DiskInfo =
                context.client.post(&format!("/v1/disks/{}/revive", info.id), &()).await?;
            terminal.done(&revived, |disk| {
                format!("disk {} at {} is used again; what it missed is copied to it", disk.id, disk.path)
            })
        }
    }
}

async fn add_disk(context: &Context, path: &Path, size: Option<u64>, confirm: Option<String>) -> Result<()> {
    let absolute =
        std::path::absolute(path).map_err(|error| Failure::file("adding the disk", path, &error))?;
    let text = absolute.to_str().ok_or_else(|| {
        let message = format!("the path {} is not UTF-8", absolute.display());
        Failure::usage(message, "use a path of ordinary characters")
    })?;
    let mut request = AddDiskRequest { path: text.to_owned(), size_bytes: size, confirm };
    let added: Result<AddedDisk> = context.client.post("/v1/disks", &request).await;
    let added = match added {
        Err(failure) if failure.code == "disk_not_empty" && request.confirm.is_none() => {
            request.confirm = Some(name_typed_back(context, text, failure)?);
            context.client.post("/v1/disks", &request).await?
        }
        other => other?,
    };
    context.terminal.done(&added, |added| {
        let disk = &added.disk;
        let kept = if added.adopted { "; it is a disk of this cluster and keeps its data" } else { "" };
        format!("added disk {} at {} with {}{kept}", disk.id, disk.path, format_size(disk.capacity_bytes))
    })
}

/// A person at a terminal may type the device's name; everybody else gets the refusal, whose next step is `--confirm`.
/// `--yes` is not enough to erase a disk.
fn name_typed_back(context: &Context, path: &str, refusal: Failure) -> Result<String> {
    use std::io::IsTerminal;
    let Some(device) = refusal.details.get("device").cloned() else { return Err(refusal) };
    if !std::io::stdin().is_terminal() {
        return Err(refusal);
    }
    let warning = format!("{}. All of it will be erased.", refusal.message);
    let what = format!("adding the disk {path}");
    context.terminal.typed_name(&warning, &device, &what, &format!("--confirm {device}"))
}

fn state_style(state: DiskState) -> (Style, &'static str) {
    match state {
        DiskState::Online => (Style::Good, "online"),
        DiskState::Offline => (Style::Bad, "offline"),
        DiskState::Failed => (Style::Bad, "failed"),
        DiskState::Leaving => (Style::Warn, "leaving"),
    }
}

/// In words. A disk that leaves and has failed meanwhile is both.
fn state_words(disk: &DiskInfo) -> (Style, String) {
    let (style, state) = state_style(disk.state);
    let hidden = disk.leaving_bytes.is_some() && disk.state != DiskState::Leaving;
    (style, if hidden { format!("{state}, leaving") } else { state.to_owned() })
}

fn disk_table(disks: &[DiskInfo], wide: bool) -> Table {
    let mut head = vec!["ID", "HOST", "PATH", "STATE", ">USED", ">CAPACITY", ">USE%"];
    if wide {
        head.extend([">COMPONENTS", ">BAD BLOCKS", "REASON"]);
    }
    let mut table = Table::new(&head);
    for disk in disks {
        let (style, state) = state_words(disk);
        let id = disk.id.to_string();
        let shown = if wide { &id[..] } else { &id[..8] };
        let mut row: Vec<Cell> = vec![
            shown.into(),
            (&disk.host_name).into(),
            (&disk.path).into(),
            Cell::styled(style, state),
            format_size(disk.used_bytes).into(),
            format_size(disk.capacity_bytes).into(),
            percent(disk.used_bytes, disk.capacity_bytes).into(),
        ];
        if wide {
            row.push(disk.components.to_string().into());
            row.push(disk.checksum_errors.to_string().into());
            row.push(disk.reason.as_deref().unwrap_or("-").into());
        }
        table.row(row);
    }
    table
}

fn one_disk(disk: &DiskInfo, paint: Paint) -> String {
    let (style, state) = state_words(disk);
    let reason = disk.reason.as_ref().map_or(String::new(), |reason| format!(": {}", printable(reason)));
    facts(&[
        ("id", disk.id.to_string()),
        ("host", format!("{} ({})", printable(&disk.host_name), disk.host)),
        ("path", printable(&disk.path)),
        ("state", format!("{}{reason}", paint.text(style, &state))),
        (
            "capacity",
            format!("{} of {} used", format_size(disk.used_bytes), format_size(disk.capacity_bytes)),
        ),
        ("to move", disk.leaving_bytes.map_or("-".to_owned(), format_size)),
        ("components", disk.components.to_string()),
        ("bad blocks", format!("{} since the daemon started", disk.checksum_errors)),
    ])
}

pub(super) async fn object(context: &Context, verb: ObjectVerb) -> Result<()> {
    let terminal = context.terminal;
    match verb {
        ObjectVerb::List => {
            let list: ObjectList = context.client.get("/v1/objects").await?;
            terminal.answer(&list, |list, paint| object_table(&list.objects).render(paint, 0))
        }
        ObjectVerb::Show { object } => {
            let info = resolve::object(context, &object).await?;
            let details = all_chunks(context, &info).await?;
            terminal.answer(&details, one_object)
        }
    }
}

/// Every page of chunks, as one. The pages ascend, so it ends.
async fn all_chunks(context: &Context, info: &ObjectInfo) -> Result<ObjectDetails> {
    let mut whole: ObjectDetails = context.client.get(&format!("/v1/objects/{}", info.id)).await?;
    while let Some(next) = whole.next_chunk {
        let page: ObjectDetails =
            context.client.get(&format!("/v1/objects/{}?from={}", info.id, next.0)).await?;
        whole.next_chunk = page.next_chunk.filter(|after| *after > next);
        whole.chunks.extend(page.chunks);
    }
    Ok(whole)
}

fn volume_label(volume: Option<&VolumeName>) -> String {
    volume.map_or_else(|| "-".to_owned(), ToString::to_string)
}

fn object_table(objects: &[ObjectInfo]) -> Table {
    let mut table =
        Table::new(&["ID", "VOLUME", ">SIZE", "POLICY", "STATE", ">CHUNKS", ">IN SYNC", "OWNER", ">EPOCH"]);
    for object in objects {
        table.row(vec![
            object.id.to_string().into(),
            volume_label(object.volume.as_ref()).into(),
            format_size(object.size_bytes).into(),
            object.policy.to_string().into(),
            redundancy_cell(object.redundancy),
            object.chunks.to_string().into(),
            format!("{}/{}", object.components_in_sync, object.components).into(),
            owner_name(object.owner.as_ref()).into(),
            object.epoch.0.to_string().into(),
        ]);
    }
    table
}

fn one_object(details: &ObjectDetails, paint: Paint) -> String {
    let object = &details.object;
    let mut out = facts(&[
        ("id", object.id.to_string()),
        ("volume", volume_label(object.volume.as_ref())),
        ("size", format_size(object.size_bytes)),
        ("policy", object.policy.to_string()),
        ("owner", printable(&owner_name(object.owner.as_ref()))),
        ("epoch", object.epoch.0.to_string()),
        ("components", format!("{} of {} in sync", object.components_in_sync, object.components)),
    ]);
    out.push('\n');
    let in_parts = matches!(object.policy, Policy::Parity { .. });
    let parts = if in_parts { vec!["PART"] } else { Vec::new() };
    let mut table =
        Table::new(&[vec![">CHUNK"], parts, vec!["HOST", "DISK", "STATE", ">STALE SINCE"]].concat());
    for chunk in &details.chunks {
        let named = |first: bool| -> Vec<Cell> {
            let index = if first { chunk.index.0.to_string() } else { String::new() };
            let part = if first { chunk.part.to_string() } else { String::new() };
            std::iter::once(index.into()).chain(in_parts.then(|| part.into())).collect()
        };
        if chunk.components.is_empty() {
            let mut row = named(true);
            row.extend(["-".into(), "-".into(), Cell::styled(Style::Bad, "missing"), "-".into()]);
            table.row(row);
        }
        for (i, component) in chunk.components.iter().enumerate() {
            let (style, state) = match component.state {
                ComponentState::InSync => (Style::Good, "in sync"),
                ComponentState::Resyncing => (Style::Warn, "resyncing"),
                ComponentState::Stale => (Style::Bad, "stale"),
                ComponentState::Absent => (Style::Bad, "absent"),
            };
            let mut row = named(i == 0);
            row.extend([
                (&component.host_name).into(),
                component.disk.to_string().into(),
                Cell::styled(style, state),
                component.stale_seq.map_or("-".to_owned(), |seq| seq.0.to_string()).into(),
            ]);
            table.row(row);
        }
    }
    out += &table.render(paint, 0);
    out
}

pub(super) async fn lock(context: &Context, verb: LockVerb) -> Result<()> {
    let terminal = context.terminal;
    let list: LockList = context.client.get("/v1/locks").await?;
    match verb {
        LockVerb::List => {
            terminal.answer(&list, |list, paint| lock_table(&list.locks, terminal.is_wide()).render(paint, 0))
        }
        LockVerb::Break { target } => {
            let is_named = |lock: &LockInfo| lock.volume.as_ref().is_some_and(|name| name.as_str() == target);
            let lock =
                resolve::choose(&target, "lock", list.locks, |lock| lock.object.to_string(), is_named)?;
            let name = lock.volume.as_ref().map_or_else(|| lock.object.to_string(), ToString::to_string);
            let holder = &lock.owner.host_name;
            let mut warning =
                format!("Host {holder} loses {name}: if a virtual machine still runs there, its disk fails.");
            if lock.lease_running {
                warning += " Its lease still runs, so this will be refused.";
            }
            terminal.confirm(&warning, &format!("breaking the lock on {name}"))?;
            let path = format!("/v1/locks/{}/break", lock.object);
            let broken: BrokenLock = context.client.post(&path, &()).await?;
            terminal.done(&broken, |broken| {
                format!("the lock on {name} was taken from host {}", broken.previous_owner.host_name)
            })
        }
    }
}

fn lock_table(locks: &[LockInfo], wide: bool) -> Table {
    let mut head = vec!["VOLUME", "HELD BY", "LEASE", ">EPOCH"];
    if wide {
        head.push("OBJECT");
    }
    let mut table = Table::new(&head);
    for lock in locks {
        let lease = match (lock.lease_running, lock.lease_seconds) {
            (true, Some(left)) => Cell::styled(Style::Good, format!("runs, {} left", duration(left))),
            (true, None) => Cell::styled(Style::Good, "runs"),
            (false, _) => Cell::styled(Style::Bad, "ended"),
        };
        let mut row: Vec<Cell> = vec![
            volume_label(lock.volume.as_ref()).into(),
            (&lock.owner.host_name).into(),
            lease,
            lock.epoch.0.to_string().into(),
        ];
        if wide {
            row.push(lock.object.to_string().into());
        }
        table.row(row);
    }
    table
}
