//! `volume`, but for the verbs that move data.

use std::fmt::Write as _;

use ferro_protocol::api::{
    ConversionInfo, CreateVolumeRequest, OpenVolumeRequest, OpenedVolume, ProvisionRequest, Redundancy,
    ResizeVolumeRequest, VolumeInfo, VolumeList, VolumeOwner, format_size,
};
use ferro_protocol::ids::VolumeName;
use hyper::Method;
use serde::Serialize;

use super::args::VolumeVerb;
use super::place::placement_text;
use super::policy::Meant;
use super::{Context, limits, place, policy, transfer};
use crate::failure::{Exit, Failure, Result};
use crate::text::{Cell, Paint, Style, Table, facts, printable, shell_word};

pub(super) async fn volume(context: &Context, verb: VolumeVerb) -> Result<()> {
    let terminal = context.terminal;
    match verb {
        VolumeVerb::Create { name, size, policy, reserve, force_provisioning, limits, place } => {
            let what = format!("volume {name}");
            let (asked, placement) = (limits.asked(&what)?, place.asked(&what)?);
            let meant = policy::resolve(context, &policy).await?;
            let meant = Meant {
                limits: asked.or(meant.limits),
                reserve: reserve.or(meant.reserve),
                force: force_provisioning || meant.force,
                placement: placement.or(meant.placement),
                ..meant
            };
            let made = create(context, &name, size, meant).await?;
            terminal.done(&made, |made| {
                let size = format_size(made.size_bytes);
                let mut line = format!("created volume {} of {size} ({})", made.name, made.policy);
                if made.reserve_percent > 0 {
                    let _ = write!(line, ", {} % of it kept", made.reserve_percent);
                }
                if made.force_provisioning {
                    line.push_str(", also with fewer copies");
                }
                if !made.limits.is_none() {
                    let _ = write!(line, ", limited to {}", made.limits);
                }
                if !made.placement.is_none() {
                    let _ = write!(line, ", {}", placement_text(&made.placement));
                }
                line
            })
        }
        VolumeVerb::Reserve { name, percent } => {
            let request = ProvisionRequest { reserve_percent: Some(percent), force: None };
            let kept = provision(context, &name, &request).await?;
            terminal.done(&kept, |kept| match kept.reserve_percent {
                0 => format!("nothing is kept for volume {} beyond what it has written", kept.name),
                percent => format!("{percent} % of volume {} are kept for it now", kept.name),
            })
        }
        VolumeVerb::Place { name, place: options, anywhere } => {
            place::place(context, &name, options, anywhere).await
        }
        VolumeVerb::Limit { name, limits, none } => limits::limit(context, &name, limits, none).await,
        VolumeVerb::List => {
            let list: VolumeList = context.client.get("/v1/volumes").await?;
            terminal.answer(&list, |list, paint| {
                volume_table(list.volumes.iter(), terminal.is_wide()).render(paint, 0)
            })
        }
        VolumeVerb::Show { name } => {
            let info = show(context, &name).await?;
            terminal.answer(&info, one_volume)
        }
        VolumeVerb::Open { name, read_only, memory } => open(context, &name, read_only, memory).await,
        VolumeVerb::Close { name } => {
            let closed: VolumeInfo = context.client.post(&format!("/v1/volumes/{name}/close"), &()).await?;
            terminal.done(&closed, |closed| format!("closed volume {}", closed.name))
        }
        VolumeVerb::Resize { name, size } => {
            let request = ResizeVolumeRequest { size_bytes: size };
            let grown: VolumeInfo =
                context.client.post(&format!("/v1/volumes/{name}/resize"), &request).await?;
            terminal.done(&grown, |grown| {
                format!("volume {} has {} now", grown.name, format_size(grown.size_bytes))
            })
        }
        VolumeVerb::Delete { name } => delete(context, &name).await,
        VolumeVerb::Import(options) => transfer::import(context, options).await,
        VolumeVerb::Export(options) => transfer::export(context, options).await,
    }
}

pub(super) async fn show(context: &Context, name: &VolumeName) -> Result<VolumeInfo> {
    context.client.get(&format!("/v1/volumes/{name}")).await
}

/// Has room found for a volume in another way.
pub(super) async fn provision(
    context: &Context,
    name: &VolumeName,
    request: &ProvisionRequest,
) -> Result<VolumeInfo> {
    context.client.put(&format!("/v1/volumes/{name}/provisioning"), request).await
}

pub(super) async fn create(
    context: &Context,
    name: &VolumeName,
    size_bytes: u64,
    meant: Meant,
) -> Result<VolumeInfo> {
    let (policy, limits) = (meant.policy.into(), meant.limits.unwrap_or_default());
    let reserve_percent = meant.reserve.unwrap_or_default();
    let (name, force_provisioning) = (name.to_string(), meant.force);
    let placement = meant.placement.unwrap_or_default();
    let request = CreateVolumeRequest {
        name,
        size_bytes,
        policy,
        reserve_percent,
        force_provisioning,
        limits,
        placement,
    };
    context.client.post("/v1/volumes", &request).await
}

pub(super) async fn delete_now(context: &Context, name: &VolumeName) -> Result<()> {
    context.client.empty(Method::DELETE, &format!("/v1/volumes/{name}"), None::<&()>).await
}

/// Whether a volume is made where there is no place for all its copies, to people.
pub(super) fn force_text(force: bool) -> &'static str {
    if force { "made also where there is no place for all copies" } else { "no" }
}

/// How much is kept for a volume, to people.
pub(super) fn reserve_text(percent: u8) -> String {
    match percent {
        0 => "nothing beyond what it has written (thin)".to_owned(),
        100 => "all of it (thick)".to_owned(),
        _ => format!("{percent} % of it"),
    }
}

async fn delete(context: &Context, name: &VolumeName) -> Result<()> {
    let info = show(context, name).await?;
    let what = format!("deleting volume {name}");
    if let Some(owner) = &info.owner {
        // The daemon refuses it too; there is no point in asking first.
        let message = format!("{what}: it is open on host {}", printable(&owner.host_name));
        let next = format!("stop its virtual machine and run `vsanctl volume close {name}` there");
        return Err(Failure::new(Exit::Conflict, "object_in_use", message, next));
    }
    let used = info.used_bytes.map_or(String::new(), |used| format!(", {} of it written", format_size(used)));
    let warning =
        format!("Volume {name} of {}{used} and all its data are lost.", format_size(info.size_bytes));
    context.terminal.confirm_name(&warning, name.as_str(), &what)?;
    delete_now(context, name).await?;
    context.terminal.done(&info, |info| format!("deleted volume {}", info.name))
}

/// What `volume open -o json` prints: the API's answer and what QEMU needs.
#[derive(Serialize)]
struct OpenedJson<'a> {
    #[serde(flatten)]
    opened: &'a OpenedVolume,
    qemu_arguments: Vec<String>,
}

async fn open(context: &Context, name: &VolumeName, read_only: bool, memory_bytes: u64) -> Result<()> {
    let request = OpenVolumeRequest { read_only };
    let opened: OpenedVolume = context.client.post(&format!("/v1/volumes/{name}/open"), &request).await?;
    let shown = OpenedJson { qemu_arguments: qemu_arguments(&opened, memory_bytes), opened: &opened };
    if context.terminal.quiet && !context.terminal.is_json() {
        return context.terminal.print(&format!("{}\n", printable(&opened.socket)));
    }
    context.terminal.answer(&shown, |shown, _| {
        let mode = if shown.opened.read_only { ", read-only" } else { "" };
        let mut out =
            format!("volume {name} is open on this host{mode}\nsocket  {}\n", printable(&opened.socket));
        out += "\nQEMU arguments (the guest's memory must be shared; -m and size= are its size):\n";
        for pair in shown.qemu_arguments.chunks(2) {
            let words: Vec<String> = pair.iter().map(|word| shell_word(word)).collect();
            let _ = writeln!(out, "  {}", printable(&words.join(" ")));
        }
        out
    })
}

/// The arguments for QEMU 7.2 and later, pairs of an option and its value. `reconnect` has it wait for a daemon that is
/// being restarted.
fn qemu_arguments(opened: &OpenedVolume, memory_bytes: u64) -> Vec<String> {
    // QEMU's ids begin with a letter; a volume's name may not.
    let id = format!("vsan-{}", opened.name);
    let mebibytes = memory_bytes.div_ceil(1 << 20);
    // In an option list QEMU reads two commas as one.
    let socket = opened.socket.replace(',', ",,");
    let queues = opened.queues.max(1);
    [
        ("-m", format!("{mebibytes}M")),
        ("-object", format!("memory-backend-memfd,id=vsan-memory,size={mebibytes}M,share=on")),
        ("-machine", "memory-backend=vsan-memory".to_owned()),
        ("-chardev", format!("socket,id={id},path={socket},reconnect=1")),
        ("-device", format!("vhost-user-blk-pci,chardev={id},num-queues={queues}")),
    ]
    .into_iter()
    .flat_map(|(option, value)| [option.to_owned(), value])
    .collect()
}

pub(super) fn redundancy_cell(redundancy: Redundancy) -> Cell {
    let (style, word) = redundancy_word(redundancy);
    Cell::styled(style, word)
}

fn redundancy_word(redundancy: Redundancy) -> (Style, &'static str) {
    match redundancy {
        Redundancy::Healthy => (Style::Good, "healthy"),
        Redundancy::Resyncing => (Style::Warn, "resyncing"),
        Redundancy::Degraded => (Style::Warn, "degraded"),
        Redundancy::Unavailable => (Style::Bad, "unavailable"),
    }
}

pub(super) fn owner_name(owner: Option<&VolumeOwner>) -> String {
    owner.map_or_else(|| "-".to_owned(), |owner| owner.host_name.clone())
}

/// The volumes.
pub(super) fn volume_table<'a>(volumes: impl Iterator<Item = &'a VolumeInfo>, wide: bool) -> Table {
    let mut head = vec!["NAME", ">SIZE", ">USED", "POLICY", "STATE", "OPEN ON"];
    if wide {
        head.extend([">EPOCH", "OBJECT", "SOCKET"]);
    }
    let mut table = Table::new(&head);
    for volume in volumes {
        let (style, word) = redundancy_word(volume.redundancy);
        let state = if volume.incomplete {
            Cell::styled(Style::Warn, format!("{word}, incomplete import"))
        } else {
            Cell::styled(style, word)
        };
        let mode = if volume.owner.is_some() && volume.read_only { " (read-only)" } else { "" };
        let mut row: Vec<Cell> = vec![
            volume.name.as_str().into(),
            format_size(volume.size_bytes).into(),
            volume.used_bytes.map_or("-".to_owned(), format_size).into(),
            policy_cell(volume).into(),
            state,
            format!("{}{mode}", owner_name(volume.owner.as_ref())).into(),
        ];
        if wide {
            row.push(volume.epoch.0.to_string().into());
            row.push(volume.object.to_string().into());
            row.push(volume.socket.as_deref().unwrap_or("-").into());
        }
        table.row(row);
    }
    table
}

/// How it is kept, and what it is being made into.
fn policy_cell(volume: &VolumeInfo) -> String {
    match &volume.conversion {
        None => volume.policy.to_string(),
        Some(conversion) => format!("{} -> {}", volume.policy, conversion.policy),
    }
}

/// How far a volume is made into another.
pub(super) fn conversion_text(conversion: &ConversionInfo) -> String {
    let (policy, total) = (&conversion.policy, conversion.total_bytes);
    match (&conversion.waits, conversion.copied_bytes) {
        (Some(why), _) => format!("{policy}, which waits: {}", printable(why)),
        (None, Some(copied)) => {
            let percent = u128::from(copied) * 100 / u128::from(total.max(1));
            format!("{policy}: {percent} % copied ({} of {})", format_size(copied), format_size(total))
        }
        (None, None) => format!("{policy}, which has not begun"),
    }
}

fn one_volume(volume: &VolumeInfo, paint: Paint) -> String {
    let (style, word) = redundancy_word(volume.redundancy);
    let failures = volume.policy.failures_to_tolerate();
    let left = match (volume.redundancy, volume.failures_left) {
        (Redundancy::Degraded | Redundancy::Resyncing, left) => {
            format!(", survives {} now", crate::text::count(u64::from(left), "more failure"))
        }
        (Redundancy::Healthy | Redundancy::Unavailable, _) => String::new(),
    };
    let mode = if volume.read_only { ", read-only" } else { "" };
    let owner = volume
        .owner
        .as_ref()
        .map_or_else(|| "nowhere".to_owned(), |owner| format!("{}{mode}", printable(&owner.host_name)));
    let mut lines = vec![
        ("name", volume.name.to_string()),
        ("object", volume.object.to_string()),
        ("size", format!("{} ({} bytes)", format_size(volume.size_bytes), volume.size_bytes)),
        ("used", volume.used_bytes.map_or("unknown".to_owned(), format_size)),
        (
            "policy",
            format!("{} (survives {})", volume.policy, crate::text::count(u64::from(failures), "failure")),
        ),
        ("state", format!("{}{left}", paint.text(style, word))),
        ("kept", reserve_text(volume.reserve_percent)),
        ("forced", force_text(volume.force_provisioning).to_owned()),
        ("limits", volume.limits.to_string()),
        ("place", place_text(volume)),
        ("open on", owner),
        ("epoch", volume.epoch.0.to_string()),
    ];
    if let Some(conversion) = &volume.conversion {
        lines.push(("becomes", conversion_text(conversion)));
    }
    if let Some(socket) = &volume.socket {
        lines.push(("socket", printable(socket)));
    }
    if volume.incomplete {
        lines.push(("import", paint.text(Style::Warn, "not completed: repeat it, or delete the volume")));
    }
    facts(&lines)
}

/// Where a volume is rather kept, and how much of it is not there.
fn place_text(volume: &VolumeInfo) -> String {
    let placement = placement_text(&volume.placement);
    match volume.misplaced {
        0 => placement,
        n => format!("{placement}; {} could be nearer", crate::text::count(u64::from(n), "part")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_with_blanks_or_quotes_are_quoted() {
        assert_eq!(shell_word("socket,id=a,path=/run/x"), "socket,id=a,path=/run/x");
        assert_eq!(shell_word("/a b"), "'/a b'");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
    }
}
