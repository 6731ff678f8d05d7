//! `cluster` and `host`.

use std::fmt::Write as _;
use std::io::Read;
use std::time::{SystemTime, UNIX_EPOCH};

use ferro_protocol::api::{
    BootstrapRequest, ChangedHost, ClusterInfo, HostInfo, HostList, HostRole, HostState, JoinRequest,
    JoinToken, SetHostRequest, TokenInfo, TokenRequest, UpgradeReport, UpgradeRequest, format_size,
};

use super::args::{HostVerb, MemberOptions};
use super::leaving::{Leaver, Thing};
use super::{Context, maintenance, resolve};
use crate::failure::{Failure, Result};
use crate::text::{Cell, Paint, Style, Table, count, duration, facts, printable};

/// A token is a few hundred bytes; more than this is some other file.
const TOKEN_BYTES_MAX: u64 = 16 << 10;

pub(super) async fn bootstrap(context: &Context, options: MemberOptions) -> Result<()> {
    let request = BootstrapRequest { host_name: options.host_name, fault_domain: options.fault_domain };
    let made: ClusterInfo = context.client.post("/v1/cluster/bootstrap", &request).await?;
    context
        .terminal
        .done(&made, |made| format!("made cluster {} with this host as its first member", made.id))?;
    context.terminal.hint(
        "next: give it disks with `vsanctl disk add PATH`, and let other hosts join with `vsanctl cluster token`",
    );
    Ok(())
}

pub(super) async fn token(context: &Context, valid_seconds: u64) -> Result<()> {
    let made: TokenInfo = context.client.post("/v1/cluster/tokens", &TokenRequest { valid_seconds }).await?;
    context.terminal.answer(&made, |made, _| format!("{}\n", made.token.0))?;
    context.terminal.hint(&format!(
        "run `vsanctl cluster join TOKEN` on the new host within {}; the token is a secret and can be used once",
        duration(valid_seconds)
    ));
    Ok(())
}

pub(super) async fn join(context: &Context, token: String, options: MemberOptions) -> Result<()> {
    let token = if token == "-" { read_token()? } else { token };
    let token = JoinToken(token.trim().to_owned());
    if token.0.is_empty() {
        return Err(Failure::usage(
            "the join token is empty",
            "make one with `vsanctl cluster token` on a member",
        ));
    }
    let request = JoinRequest { token, host_name: options.host_name, fault_domain: options.fault_domain };
    let joined: ClusterInfo = context.client.post("/v1/cluster/join", &request).await?;
    context.terminal.done(&joined, |joined| {
        format!("joined cluster {}, which now has {}", joined.id, count(u64::from(joined.hosts), "host"))
    })
}

fn read_token() -> Result<String> {
    let mut text = String::new();
    std::io::stdin().lock().take(TOKEN_BYTES_MAX).read_to_string(&mut text).map_err(|error| {
        let message = format!("the join token can't be read from the standard input: {error}");
        Failure::usage(message, "pipe in what `vsanctl cluster token` printed")
    })?;
    Ok(text)
}

pub(super) async fn show(context: &Context) -> Result<()> {
    let info: ClusterInfo = context.client.get("/v1/cluster").await?;
    let hosts: HostList = context.client.get("/v1/hosts").await?;
    context.terminal.answer(&info, |info, paint| {
        let leader = info.leader.map_or("none".to_owned(), |id| host_label(&hosts.hosts, id));
        let quorum = if info.quorum { paint.text(Style::Good, "yes") } else { paint.text(Style::Bad, "no") };
        format!(
            "id              {}\nCA fingerprint  {}\nthis host       {}\nhosts           {}\nvoters          {}\nleader          {leader}\nquorum          {quorum}\nfeature level   {}\n",
            info.id,
            printable(&info.ca_fingerprint),
            host_label(&hosts.hosts, info.this_host),
            info.hosts,
            info.voters,
            feature_level(info),
        )
    })
}

pub(super) async fn upgrade(context: &Context, check: bool) -> Result<()> {
    let terminal = context.terminal;
    let path = "/v1/cluster/upgrade";
    let possible: UpgradeReport = context.client.post(path, &UpgradeRequest { check: true }).await?;
    if check || possible.done {
        return terminal.answer(&possible, upgrade_shown);
    }
    let warning = format!(
        "The cluster goes from feature level {} to {}. No host can go back to an earlier release afterwards.",
        possible.from, possible.to
    );
    terminal.confirm(&warning, "raising the feature level")?;
    let done: UpgradeReport = context.client.post(path, &UpgradeRequest { check: false }).await?;
    terminal.done(&done, |done| format!("the cluster is at feature level {} now", done.to))
}

fn upgrade_shown(report: &UpgradeReport, paint: Paint) -> String {
    let mut table = Table::new(&["HOST", "VERSION", ">KNOWS LEVEL"]);
    for host in &report.hosts {
        let level = host.feature_level_known.to_string();
        table.row(vec![printable(&host.name).into(), printable(&host.version).into(), level.into()]);
    }
    let verdict = if report.done {
        format!("the cluster is at feature level {}: there is no later one that all hosts know", report.to)
    } else {
        format!("the cluster can go from feature level {} to {}", report.from, report.to)
    };
    format!("{verdict}\n\n{}", table.render(paint, 0))
}

fn feature_level(info: &ClusterInfo) -> String {
    if info.feature_level_known > info.feature_level {
        return format!("{}, this host knows {}", info.feature_level, info.feature_level_known);
    }
    info.feature_level.to_string()
}

fn host_label(hosts: &[HostInfo], id: ferro_protocol::ids::HostId) -> String {
    match hosts.iter().find(|host| host.id == id) {
        Some(host) => format!("{} ({id})", printable(&host.name)),
        None => id.to_string(),
    }
}

pub(super) async fn host(context: &Context, verb: HostVerb) -> Result<()> {
    let terminal = context.terminal;
    match verb {
        HostVerb::List => {
            let list: HostList = context.client.get("/v1/hosts").await?;
            terminal.answer(&list, |list, paint| host_table(&list.hosts, terminal.is_wide()).render(paint, 0))
        }
        HostVerb::Show { host } => {
            let info = resolve::host(context, &host).await?;
            terminal.answer(&info, one_host)
        }
        HostVerb::Set { host, name, fault_domain } => {
            let info = resolve::host(context, &host).await?;
            let request = SetHostRequest { name, fault_domain };
            let changed: ChangedHost =
                context.client.patch(&format!("/v1/hosts/{}", info.id), &request).await?;
            terminal.done(&changed, |changed| changed_words(&info.name, changed))
        }
        HostVerb::Maintenance { verb } => maintenance::maintenance(context, verb).await,
        HostVerb::Remove { host, options } => {
            let info = resolve::host(context, &host).await?;
            let leaver = Leaver {
                thing: Thing::Host(info.id),
                name: format!("host {}", info.name),
                command: format!("vsanctl host remove {}", info.name),
                used_bytes: info.used_bytes,
                with: format!(" with its {}", count(u64::from(info.disks), "disk")),
            };
            leaver.remove(context, &options).await
        }
    }
}

/// What became of a host, and what that means for copies that are placed already.
fn changed_words(before: &str, changed: &ChangedHost) -> String {
    let ChangedHost { host, sharing_volumes } = changed;
    let was = if host.name == before { String::new() } else { format!(" (was {})", printable(before)) };
    let mut words =
        format!("host {}{was} is in fault domain {}", printable(&host.name), printable(&host.fault_domain));
    if let [first, rest @ ..] = sharing_volumes.as_slice() {
        let others = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
        let _ = write!(
            words,
            "; volume {first}{others} has copies that share it now, and nothing moves them by itself: see `vsanctl status`"
        );
    }
    words
}

fn state_style(state: HostState) -> (Style, &'static str) {
    match state {
        HostState::Online => (Style::Good, "online"),
        HostState::Offline => (Style::Bad, "offline"),
        HostState::Joining => (Style::Warn, "joining"),
        HostState::Leaving => (Style::Warn, "leaving"),
    }
}

/// Says of a host that leaves that it does, also where its state is something worse.
fn and_leaving(state: String, host: &HostInfo) -> String {
    let hidden = host.leaving_bytes.is_some() && host.state != HostState::Leaving;
    if hidden { format!("{state}, leaving") } else { state }
}

/// Says of a host in maintenance that it is.
fn and_maintenance(state: String, host: &HostInfo) -> String {
    match &host.maintenance {
        None => state,
        Some(maintenance) if maintenance.ready => format!("{state}, in maintenance"),
        Some(_) => format!("{state}, entering maintenance"),
    }
}

fn role_name(role: HostRole) -> &'static str {
    match role {
        HostRole::Leader => "leader",
        HostRole::Voter => "voter",
        HostRole::Learner => "learner",
    }
}

/// The hosts; `*` marks the one that answers.
pub(super) fn host_table(hosts: &[HostInfo], wide: bool) -> Table {
    let mut head = vec!["NAME", "STATE", "ROLE", ">DISKS", ">USED", ">CAPACITY"];
    if wide {
        head.extend(["FAULT DOMAIN", "ADDRESSES", "VERSION", "ID"]);
    }
    let mut table = Table::new(&head);
    for host in hosts {
        let (style, state) = state_style(host.state);
        let state = match host.last_seen_seconds {
            Some(ago) if host.state == HostState::Offline => format!("{state} for {}", duration(ago)),
            _ => state.to_owned(),
        };
        let state = and_maintenance(and_leaving(state, host), host);
        let mut row: Vec<Cell> = vec![
            format!("{}{}", host.name, if host.this_host { "*" } else { "" }).into(),
            Cell::styled(style, state),
            role_name(host.role).into(),
            host.disks.to_string().into(),
            format_size(host.used_bytes).into(),
            format_size(host.capacity_bytes).into(),
        ];
        if wide {
            row.push((&host.fault_domain).into());
            row.push(host.addresses.join(",").into());
            row.push(host.version.as_deref().unwrap_or("-").into());
            row.push(host.id.to_string().into());
        }
        table.row(row);
    }
    table
}

fn one_host(host: &HostInfo, paint: Paint) -> String {
    let (style, state) = state_style(host.state);
    let seen =
        host.last_seen_seconds.map_or(String::new(), |ago| format!(", last seen {} ago", duration(ago)));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let certificate = match host.certificate_expires_unix_s {
        None => "unknown".to_owned(),
        Some(end) if end <= now => paint.text(Style::Bad, "expired"),
        Some(end) => format!("renews itself, ends in {}", duration(end - now)),
    };
    let lines = [
        ("name", format!("{}{}", printable(&host.name), if host.this_host { " (this host)" } else { "" })),
        ("id", host.id.to_string()),
        ("state", format!("{}{seen}", paint.text(style, &and_leaving(state.to_owned(), host)))),
        ("role", role_name(host.role).to_owned()),
        ("fault domain", printable(&host.fault_domain)),
        ("addresses", printable(&host.addresses.join(", "))),
        ("to move", host.leaving_bytes.map_or("-".to_owned(), format_size)),
        ("maintenance", host.maintenance.as_ref().map_or("no".to_owned(), maintenance::words)),
        ("disks", host.disks.to_string()),
        (
            "capacity",
            format!("{} of {} used", format_size(host.used_bytes), format_size(host.capacity_bytes)),
        ),
        ("certificate", certificate),
        ("version", printable(host.version.as_deref().unwrap_or("unknown"))),
    ];
    facts(&lines)
}
