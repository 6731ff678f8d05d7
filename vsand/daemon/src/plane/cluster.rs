//! The cluster as a whole: its making, who is in it, how it is.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use ferro_protocol::api::{
    ApiError, BootstrapRequest, Capacity, ChangedHost, ClusterInfo, ErrorCode, JoinRequest,
    JoinToken as TokenText, ResyncTotals, SetHostRequest, Status, TokenInfo,
};
use ferro_protocol::ids::{ClusterId, HostId, VolumeName};
use ferro_transport::UnixTime;
use ferro_transport::identity::{HOST_CERT_LIFETIME, IdentityDir};
use ferro_transport::join::{self, Levels, NewHost};
use ferro_transport::token::{ADDRESSES_MAX, JoinToken, TokenError, TokenId, TokenSecret};
use tokio::sync::{Mutex, watch};
use uuid::Uuid;
use vsand_core::directory::{Command, FeatureLevel, Outcome, Refused, State, TokenEntry};
use vsand_core::lease::BREAK_AFTER;
use vsand_directory::Role;

use super::view::View;
use super::{errors, health, remote, resync};
use crate::api::control::Result;
use crate::api::fail;
use crate::config::Config;
use crate::data::clock;
use crate::member::kept::Kept;
use crate::member::limits::LimitBook;
use crate::member::{Member, Membership, Start};

/// A new member appears in the directory within this time, or the administrator is told that it takes longer.
const APPEAR_MAX: Duration = Duration::from_secs(20);

/// An answer waits no longer to show the newest state.
const SETTLE_MAX: Duration = Duration::from_secs(2);

/// A change of leader takes up to 1.5 s; that alone is nothing to alarm anybody with.
const QUORUM_SILENCE_MAX: Duration = Duration::from_secs(4);

type Slot = watch::Sender<Option<Arc<Member>>>;

/// Where this host's certificates are.
pub(super) fn identity_dir(config: &Config) -> IdentityDir {
    IdentityDir::new(config.state_dir.join("identity"))
}

/// All that an answer is made of, gathered from every host that answers soon.
pub(super) async fn view(member: &Member) -> View {
    let state = member.state();
    let status = member.directory.status();
    let now = clock::mono();
    let silence: BTreeMap<HostId, Duration> = {
        let watcher = member.watcher();
        state.hosts.keys().filter_map(|host| Some((*host, watcher.silent_for(now, *host)?))).collect()
    };
    // Hosts that are known to be away are not waited for. Without a quorum no lease moves: then everybody is asked.
    let quorum = status.contact.is_some_and(|silence| silence < QUORUM_SILENCE_MAX);
    let asked: Vec<HostId> = state
        .hosts
        .keys()
        .filter(|host| !quorum || silence.get(host).is_none_or(|silent| *silent < BREAK_AFTER))
        .copied()
        .collect();
    let reports = remote::gather(member, &asked).await;
    let sockets = member
        .open_volumes()
        .iter()
        .filter_map(|(object, open)| Some((*object, open.socket.as_ref()?.display().to_string())))
        .collect();
    // Of a later version's nothing is known here.
    let limits = LimitBook::of(&state).unwrap_or_default();
    View {
        state,
        me: member.host(),
        leader: status.leader,
        voters: status.voters(),
        quorum,
        removed: status.role == Role::Removed,
        silence,
        silence_max: BREAK_AFTER,
        reports,
        sockets,
        repair_delay_s: member.config.repair_delay_s,
        scrub_every_days: member.config.scrub.every_days,
        limits,
        unix_s: clock::unix_s(),
    }
}

/// After a change: waits until this host has heard of it, so that the answer shows it. Without a quorum it shows what is known.
pub(super) async fn settle(member: &Member) {
    if let Err(error) = member.directory.linearizable_state_within(SETTLE_MAX).await {
        tracing::debug!(%error, "an answer may be behind the change that it is about");
    }
}

/// The directory as everybody agrees it is now, to do `what`.
pub(super) async fn latest(member: &Member, what: &str) -> Result<Arc<State>> {
    member.directory.linearizable_state().await.map_err(|error| errors::directory(what, &error))
}

/// Proposes a change, to do `what`. The inner result is the directory's own answer.
pub(super) async fn propose(
    member: &Member,
    what: &str,
    command: &Command,
) -> Result<std::result::Result<Outcome, Refused>> {
    member.propose(command).await.map_err(|error| errors::directory(what, &error))
}

/// Has a change made that was decided on by `state`, and waits until it is seen here.
pub(super) async fn carry_out(member: &Member, what: &str, state: &State, command: &Command) -> Result<()> {
    propose(member, what, command).await?.map_err(|refused| errors::refused(state, &refused))?;
    settle(member).await;
    Ok(())
}

/// The cluster in a few words.
pub(super) fn info(member: &Member) -> ClusterInfo {
    let status = member.directory.status();
    ClusterInfo {
        id: member.membership.cluster,
        ca_fingerprint: member.identity.current().ca_fingerprint().to_string(),
        this_host: member.host(),
        leader: status.leader,
        quorum: !status.without_quorum,
        voters: status.voters().len() as u32,
        hosts: member.state().hosts.len() as u32,
        feature_level: member.state().level.0,
        feature_level_known: FeatureLevel::NEWEST.0,
    }
}

/// The cluster at a glance.
pub(super) async fn status(member: &Member) -> Status {
    let view = view(member).await;
    let (health, muted) = health::of(&view);
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        health,
        muted,
        cluster: Some(info(member)),
        hosts: view.hosts(),
        capacity: view.capacity(),
        volumes: view.volumes(),
        resync: resync::list(&view).totals,
    }
}

/// Before there is a cluster.
pub(super) fn status_without() -> Status {
    Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        health: health::without_cluster(),
        muted: Vec::new(),
        cluster: None,
        hosts: Vec::new(),
        capacity: Capacity::default(),
        volumes: Vec::new(),
        resync: ResyncTotals::default(),
    }
}

/// What a host is called, or what fails together with it, is from now on something else.
pub(super) async fn set_host(member: &Member, host: HostId, request: SetHostRequest) -> Result<ChangedHost> {
    let what = format!("changing host {host}");
    let state = latest(member, &what).await?;
    let SetHostRequest { name, fault_domain } = request;
    let command = Command::SetHost { host, address: None, name, fault_domain };
    carry_out(member, &what, &state, &command).await?;
    let view = view(member).await;
    let info = view.hosts().into_iter().find(|h| h.id == host).ok_or_else(|| fail::host_not_found(host))?;
    tracing::info!(%host, name = %info.name, fault_domain = %info.fault_domain, "a host was changed");
    let mut sharing_volumes: Vec<VolumeName> = view
        .state
        .volumes()
        .filter(|record| view.shared_domain(record).is_some_and(|shared| shared.domain == info.fault_domain))
        .map(|record| record.name.clone())
        .collect();
    sharing_volumes.sort();
    Ok(ChangedHost { host: info, sharing_volumes })
}

fn host_name(config: &Config, asked: Option<String>) -> Result<String> {
    let name = asked
        .or_else(|| config.name.clone())
        .unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned());
    let good = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    if (1..=join::NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(good) {
        return Ok(name);
    }
    Err(ApiError::new(
        ErrorCode::BadName,
        format!("{name:?} is not a name that a host can have"),
        "choose one of 1 to 63 characters of a-z, A-Z, 0-9, '-', '_' and '.' with `--host-name`",
    ))
}

fn fault_domain(config: &Config, asked: Option<String>, host: HostId) -> String {
    asked.or_else(|| config.fault_domain.clone()).unwrap_or_else(|| host.to_string())
}

/// Fails now if the address can't be listened on, while nothing has changed yet.
fn check_address(config: &Config) -> Result<()> {
    let listener = TcpListener::bind(config.listen).map_err(|error| {
        ApiError::new(
            ErrorCode::Io,
            format!("this host can't listen on {}: {error}", config.listen),
            "set `listen` in vsand.toml to an address of this host with a free port, then restart vsand",
        )
    })?;
    drop(listener);
    Ok(())
}

/// Makes a cluster with this host as its first member.
pub(super) async fn bootstrap(
    config: Arc<Config>,
    slot: &Slot,
    founding: &Mutex<()>,
    request: BootstrapRequest,
) -> Result<ClusterInfo> {
    let _one_at_a_time = founding.lock().await;
    let dir = identity_dir(&config);
    if slot.borrow().is_some() || dir.is_member() {
        return Err(fail::already_in_cluster());
    }
    let what = "making the cluster";
    let (cluster, host) = (ClusterId(Uuid::new_v4()), HostId(Uuid::new_v4()));
    let membership = Membership {
        version: 1,
        cluster,
        host,
        name: host_name(&config, request.host_name)?,
        fault_domain: fault_domain(&config, request.fault_domain, host),
        founder: true,
        took_part: false,
        announced: false,
        feature_level: FeatureLevel::default(),
    };
    check_address(&config)?;
    let started = async {
        // Before the identity: a host that has an identity also knows what it is a member of, whenever it crashes.
        membership.store(&config.state_dir).map_err(|error| errors::start(what, &error))?;
        dir.bootstrap(cluster, host, UnixTime::now(), HOST_CERT_LIFETIME)
            .map_err(|error| errors::identity(what, &error))?;
        let start = Start { config: Arc::clone(&config), membership, bootstrap: true };
        Member::start(start).await.map_err(|error| errors::start(what, &error))
    };
    match started.await {
        Ok(member) => {
            slot.send_replace(Some(Arc::clone(&member)));
            tracing::info!(%cluster, %host, "a cluster was made");
            wait_until_known(&member).await?;
            Ok(info(&member))
        }
        Err(error) => {
            undo(&config, &dir);
            Err(error)
        }
    }
}

/// Takes back a bootstrap that failed: nobody else knows of that cluster.
fn undo(config: &Config, dir: &IdentityDir) {
    let state = &config.state_dir;
    let removed = [
        std::fs::remove_dir_all(dir.path()),
        std::fs::remove_file(state.join("member.json")),
        std::fs::remove_dir_all(state.join("directory")),
    ];
    for error in removed.into_iter().filter_map(std::result::Result::err) {
        if error.kind() != std::io::ErrorKind::NotFound {
            tracing::error!(%error, dir = %state.display(), "what a failed bootstrap left behind could not be removed");
        }
    }
}

/// Becomes a member of the token's cluster.
pub(super) async fn join(
    config: Arc<Config>,
    slot: &Slot,
    founding: &Mutex<()>,
    request: JoinRequest,
) -> Result<ClusterInfo> {
    let _one_at_a_time = founding.lock().await;
    let dir = identity_dir(&config);
    if slot.borrow().is_some() || dir.is_member() {
        return Err(fail::already_in_cluster());
    }
    let token = JoinToken::parse(&request.token.0).map_err(|error| {
        ApiError::new(
            ErrorCode::TokenRefused,
            error.to_string(),
            "copy the whole text that `vsanctl cluster token` printed, or make a new one",
        )
    })?;
    let host = HostId(Uuid::new_v4());
    let name = host_name(&config, request.host_name)?;
    check_address(&config)?;

    let levels = Levels { oldest: FeatureLevel::OLDEST.0, newest: FeatureLevel::NEWEST.0 };
    let me = NewHost { host, name: name.clone(), advertise: config.advertised(), levels };
    let admitted =
        join::join(&token, &me, &dir, UnixTime::now()).await.map_err(|error| errors::join(&error))?;
    let what = "joining the cluster";
    let membership = Membership {
        version: 1,
        cluster: admitted.cluster(),
        host,
        name,
        fault_domain: fault_domain(&config, request.fault_domain, host),
        founder: false,
        took_part: false,
        announced: false,
        feature_level: FeatureLevel::default(),
    };
    membership.store(&config.state_dir).map_err(|error| errors::start(what, &error))?;
    admitted.store(UnixTime::now()).map_err(|error| errors::identity(what, &error))?;
    // From here on it is a member: what fails is tried again at the next start.
    let start = Start { config: Arc::clone(&config), membership, bootstrap: false };
    let member = Member::start(start).await.map_err(|error| {
        let mut failed = errors::start("this host has joined and could not start", &error);
        failed.next_step = format!("{}, then restart vsand: it needs no new token", failed.next_step);
        failed
    })?;
    slot.send_replace(Some(Arc::clone(&member)));
    tracing::info!(cluster = %admitted.cluster(), %host, "this host has joined a cluster");
    wait_until_known(&member).await?;
    Ok(info(&member))
}

/// Waits until the directory here knows this host as it is, so that the next command finds everything in place.
async fn wait_until_known(member: &Member) -> Result<()> {
    let mut changes = member.directory.watch();
    let known = async {
        loop {
            changes.borrow_and_update();
            let record = member.state().hosts.get(&member.host()).cloned();
            if record.is_some_and(|h| h.fault_domain == member.membership.fault_domain && h.lease > 0) {
                return;
            }
            // Some of what is waited for announces nothing here.
            let _either = tokio::time::timeout(Duration::from_millis(100), changes.changed()).await;
        }
    };
    tokio::time::timeout(APPEAR_MAX, known).await.map_err(|_| {
        ApiError::new(
            ErrorCode::TimedOut,
            "this host is a member now, but it has not heard from the cluster's directory yet",
            "check that the other hosts reach it at its `advertise` or `listen` address; see `vsanctl status`",
        )
    })
}

/// Makes a join token.
pub(super) async fn create_token(member: &Member, valid_seconds: u64) -> Result<TokenInfo> {
    let no_random = |error| fail::internal("making a join token", error);
    let id = TokenId::generate().map_err(no_random)?;
    let secret = TokenSecret::generate().map_err(no_random)?;
    let ca = member.identity.current().ca_fingerprint();
    let expires_unix_s = clock::unix_s() + valid_seconds;
    let expires = UnixTime::since_unix_epoch(Duration::from_secs(expires_unix_s));
    let view = view(member).await;
    let mut addresses = vec![member.config.advertised()];
    // Those that answer first: a joining host tries them in this order.
    let mut others: Vec<_> = view.state.hosts.values().filter(|h| h.id != member.host()).collect();
    others.sort_by_key(|h| (!view.is_online(h.id), h.id));
    addresses.extend(others.into_iter().map(|h| h.address).take(ADDRESSES_MAX - 1));
    let usable = |error: TokenError| {
        ApiError::new(
            ErrorCode::Conflict,
            error.to_string(),
            "set `advertise` in vsand.toml to an address that other hosts can reach, then restart vsand",
        )
    };
    let token = JoinToken::new(member.membership.cluster, id, secret, ca, expires, addresses.clone())
        .map_err(usable)?;
    let entry = TokenEntry { secret_hash: token.secret().hash(), expires_unix_s };
    let what = "making a join token";
    member
        .propose(&Command::PutToken { id: id.0, entry })
        .await
        .map_err(|error| errors::directory(what, &error))?
        .map_err(|refused| errors::refused(&view.state, &refused))?;
    tracing::info!(token = %id, valid_seconds, "a join token was made");
    Ok(TokenInfo {
        token: TokenText(token.to_string()),
        expires_unix_s,
        addresses: addresses.iter().map(ToString::to_string).collect(),
        ca_fingerprint: ca.to_string(),
    })
}
