//! What the parts below say went wrong, in the words of the API ([`crate::api::fail`]).

use ferro_protocol::api::{ApiError, ErrorCode, format_size};
use ferro_protocol::ids::{HostId, VolumeName};
use ferro_protocol::units::EXTENT_BYTES;
use ferro_transport::identity::IdentityError;
use ferro_transport::join::{JoinError, Refusal};
use ferro_transport::tls::ConnectError;
use vsand_core::directory::{LockKind, Refused, State};
use vsand_directory::{DirectoryError, MembershipError};
use vsand_store::OpenError;

use crate::api::fail;
use crate::data::port::LoopGone;
use crate::member::StartError;
use crate::member::disks::DiskError;
use crate::member::kept::KeptError;
use crate::member::ownership::OwnError;

/// What a host is called; its id, if the directory does not know it.
pub(super) fn host_name(state: &State, host: HostId) -> String {
    state.hosts.get(&host).map_or_else(|| host.to_string(), |h| h.name.clone())
}

/// The directory refused a command.
pub(super) fn refused(state: &State, refused: &Refused) -> ApiError {
    let conflict = |next: &str| ApiError::new(ErrorCode::Conflict, refused.to_string(), next);
    match refused {
        Refused::NoHost(host) => fail::host_not_found(*host),
        Refused::NoDisk(disk) => fail::disk_not_found(*disk),
        Refused::NoObject(object) => fail::object_not_found(*object),
        Refused::NameTaken { name, .. } => fail::name_taken(name),
        Refused::AddressTaken { by, address } => ApiError::new(
            ErrorCode::Conflict,
            format!("host {} already has the address {address}", host_name(state, *by)),
            "give this host another `listen` or `advertise` address in its configuration",
        ),
        Refused::BadSize(_) => ApiError::new(
            ErrorCode::BadSize,
            refused.to_string(),
            "choose whole blocks of 4096 bytes, up to 64T",
        ),
        Refused::Shrink { .. } => {
            ApiError::new(ErrorCode::ShrinkRefused, refused.to_string(), "volumes only grow")
        }
        Refused::NoRoom { .. } => ApiError::new(
            ErrorCode::PolicyUnsatisfiable,
            refused.to_string(),
            "add hosts or disks, or choose a policy that needs fewer",
        ),
        Refused::BadPolicy { .. } | Refused::BadParity { .. } => ApiError::new(
            ErrorCode::BadPolicy,
            refused.to_string(),
            "use mirror:1 to mirror:4, raid5:2+1, raid5:4+1, raid6:2+2 or raid6:4+2",
        ),
        Refused::Locked { object, holder, kind } => locked(state, *object, *holder, *kind),
        Refused::NotHolder(_)
        | Refused::WrongEpoch { .. }
        | Refused::Overtaken(_)
        | Refused::NothingSpare(_)
        | Refused::NotConverting(_)
        | Refused::NotWhole(_)
        | Refused::NoComponent(_) => {
            conflict("something else changed the same volume meanwhile; look at it again, then repeat")
        }
        Refused::WrongRevision(now) => conflict("read the document again, then repeat").with("revision", now),
        Refused::LeaseAlive(host) => ApiError::new(
            ErrorCode::LeaseRunning,
            format!("host {} is alive: it has just renewed its lease", host_name(state, *host)),
            "close the volume on that host instead",
        ),
        Refused::OtherMethod => {
            ApiError::new(ErrorCode::PolicyNotConvertible, refused.to_string(), fail::CONVERT_AFTER_UPGRADE)
        }
        Refused::NoSpaceFor { .. } | Refused::NoSpaceToReserve { .. } => {
            ApiError::new(ErrorCode::ClusterFull, refused.to_string(), fail::MAKE_ROOM)
        }
        Refused::OtherLevel { .. } => ApiError::new(
            ErrorCode::UpgradeNeeded,
            format!("{refused}, and this needs another"),
            "see `vsanctl cluster show`; when all hosts run a release that knows it, use `vsanctl cluster upgrade`",
        ),
        Refused::OtherHosts => conflict("repeat it with the hosts that there are now"),
        Refused::DiskRemoved(_) => conflict("`vsanctl disk add` gives it to the cluster again"),
        Refused::CantForce => fail::cant_force(),
        Refused::NoSuchPlace(_) => ApiError::new(
            ErrorCode::PolicyUnsatisfiable,
            refused.to_string(),
            "`vsanctl host list` shows the fault domains that there are; `vsanctl host set` changes that of a host",
        ),
        Refused::OneSite(_) => ApiError::new(
            ErrorCode::PolicyUnsatisfiable,
            format!("{refused}, so nothing can be spread over several"),
            "say where hosts are: `vsanctl host set HOST --fault-domain SITE/RACK`",
        ),
        Refused::LastInSync(_) | Refused::TooFewShards { .. } => {
            fail::would_lose_data("the component", refused)
        }
        Refused::WouldLoseData { what, chunks, example } => fail::would_lose_data(
            what,
            format!("{chunks} chunks can't be had without it, of volume {example} among others"),
        ),
        Refused::HoldsLock { host, volume } => fail::object_in_use(volume, &host_name(state, *host)),
        Refused::CantMove { .. }
        | Refused::NoSpaceElsewhere { .. }
        | Refused::HostLeaves(_)
        | Refused::WouldBeUnreadable { .. }
        | Refused::InMaintenance(_)
        | Refused::NotOfDisks => not_spared(state, refused),
        Refused::HostNameTaken { .. } | Refused::HostNotUp(_) | Refused::LastHost(_) => {
            of_host(state, refused)
        }
        Refused::Token(_) => ApiError::new(
            ErrorCode::TokenRefused,
            refused.to_string(),
            "make a new one with `vsanctl cluster token` on a host of the cluster",
        ),
        Refused::TooMuch(_) => {
            ApiError::new(ErrorCode::LimitReached, refused.to_string(), "remove something of that kind first")
        }
    }
}

/// A command about a host was refused because of how that host is.
fn of_host(state: &State, refused: &Refused) -> ApiError {
    match refused {
        Refused::HostNameTaken { name, .. } => ApiError::new(
            ErrorCode::NameTaken,
            refused.to_string(),
            format!(
                "choose another name, or give that host another one first; `vsanctl host show {name}` shows it"
            ),
        ),
        Refused::HostNotUp(host) => ApiError::new(
            ErrorCode::Conflict,
            format!(
                "host {} has not come up since it joined and can't be changed before it has",
                host_name(state, *host)
            ),
            "start vsand there, then repeat",
        ),
        Refused::LastHost(host) => ApiError::new(
            ErrorCode::WouldLoseData,
            format!("host {} is the only one of the cluster and can't be removed", host_name(state, *host)),
            "to give the cluster up, stop vsand and delete its state directory and its disks",
        ),
        _ => ApiError::new(ErrorCode::Conflict, refused.to_string(), "look at the host again, then repeat"),
    }
}

fn cant_move(what: &str, example: &VolumeName, needed: usize, found: usize) -> ApiError {
    ApiError::new(
        ErrorCode::PolicyUnsatisfiable,
        format!(
            "{what} can't be emptied: volume {example} needs disks with room in {needed} fault domains and without it there are {found}"
        ),
        "add disks on other hosts first (`vsanctl disk add`); or, if fewer copies will do until then, repeat with --force",
    )
}

fn no_space_elsewhere(what: &str, example: &VolumeName, extents: u64) -> ApiError {
    ApiError::new(
        ErrorCode::ClusterFull,
        format!(
            "{what} can't be emptied: it holds {}, and the other disks have no room for all of it (volume {example} does not fit)",
            format_size(extents.saturating_mul(EXTENT_BYTES))
        ),
        "add disks (`vsanctl disk add`) or delete volumes; or, if fewer copies will do until then, repeat with --force",
    )
}

/// Why a document that all hosts keep together could not be changed.
pub(super) fn kept(state: &State, what: &str, error: &KeptError) -> ApiError {
    match error {
        KeptError::Directory(error) => directory(what, error),
        KeptError::Refused(refused) => self::refused(state, refused),
        KeptError::Encode(..) => fail::internal(what, error),
        KeptError::Later(_) => ApiError::new(
            ErrorCode::Conflict,
            format!("{what}: {error}"),
            "upgrade this host, or use `vsanctl` on one of that version",
        ),
        KeptError::Busy(_) => {
            ApiError::new(ErrorCode::Conflict, format!("{what}: {error}"), "repeat in a few seconds")
        }
    }
}

/// The directory refused to let a host or a disk go, for good or for a while.
fn not_spared(state: &State, refused: &Refused) -> ApiError {
    match refused {
        Refused::CantMove { what, example, needed, found } => cant_move(what, example, *needed, *found),
        Refused::NoSpaceElsewhere { what, example, extents } => no_space_elsewhere(what, example, *extents),
        Refused::HostLeaves(host) => ApiError::new(
            ErrorCode::Conflict,
            format!("host {} is leaving the cluster: no volume can be opened there", host_name(state, *host)),
            format!(
                "open it on another host, or keep this one: `vsanctl host remove {} --cancel`",
                host_name(state, *host)
            ),
        ),
        Refused::WouldBeUnreadable { what, volumes, example } => ApiError::new(
            ErrorCode::WouldLoseData,
            format!(
                "without {what}, {volumes} volumes could not be read, {example} among them: it has their only good copies"
            ),
            "see `vsanctl status`; wait for the resync to end, or bring back the hosts and disks that have other copies. What never \
             had a second copy is moved by `--mode ensure-access`",
        ),
        Refused::InMaintenance(host) => ApiError::new(
            ErrorCode::Conflict,
            format!("host {} is in maintenance: no volume can be opened there", host_name(state, *host)),
            format!(
                "open it on another host, or end the maintenance: `vsanctl host maintenance exit {}`",
                host_name(state, *host)
            ),
        ),
        _ => ApiError::new(ErrorCode::Conflict, refused.to_string(), "let its host enter maintenance"),
    }
}

fn locked(state: &State, object: ferro_protocol::ids::ObjectId, holder: HostId, kind: LockKind) -> ApiError {
    let owner = host_name(state, holder);
    let Some(record) = state.objects.get(&object) else { return fail::object_not_found(object) };
    match kind {
        LockKind::Transfer => in_transfer(&record.name, &owner),
        LockKind::Exclusive { .. } | LockKind::Background => fail::object_in_use(&record.name, &owner),
    }
}

fn in_transfer(name: &VolumeName, owner: &str) -> ApiError {
    ApiError::new(
        ErrorCode::ObjectInUse,
        format!("volume {name} is being imported or exported on host {owner}"),
        "wait until that has ended; one that was broken off ends by itself after a minute",
    )
    .with("owner", owner)
}

/// The directory did not do it. `what` names what was to be done, as in "creating volume x".
pub(super) fn directory(what: &str, error: &DirectoryError) -> ApiError {
    match error {
        DirectoryError::NoLeader { .. } | DirectoryError::NoQuorum { .. } => fail::no_quorum(what),
        DirectoryError::Timeout => fail::timed_out(what),
        DirectoryError::Removed => removed(),
        DirectoryError::TooLarge { .. } => {
            ApiError::new(ErrorCode::LimitReached, format!("{what}: {error}"), "make it smaller")
        }
        DirectoryError::AlreadyBootstrapped => fail::already_in_cluster(),
        DirectoryError::Membership(error) => membership(what, error),
        DirectoryError::Storage(_) | DirectoryError::Fatal(_) => ApiError::new(
            ErrorCode::Io,
            format!("{what}: {error}"),
            "see the daemon's log (`journalctl -u vsand`), check the disk under its state directory, then restart it",
        ),
        DirectoryError::Encoding(_) | DirectoryError::Config(_) => fail::internal(what, error),
    }
}

/// This host was taken out of its cluster.
pub(super) fn removed() -> ApiError {
    ApiError::new(
        ErrorCode::NotInCluster,
        "this host was removed from its cluster",
        "to use it again, stop vsand, delete its state directory, start it and join with a new token",
    )
}

fn membership(what: &str, error: &MembershipError) -> ApiError {
    let (code, next) = match error {
        MembershipError::Unreachable { .. } => {
            (ErrorCode::HostUnreachable, "bring that host back, then repeat")
        }
        MembershipError::LostStorage(_) => (ErrorCode::Conflict, "remove that host, then join it again"),
        MembershipError::LastHost(_) => {
            (ErrorCode::WouldLoseData, "the last host of a cluster can't be removed")
        }
        MembershipError::WouldLoseQuorum { .. } => {
            (ErrorCode::NoQuorum, "bring the other hosts back first; `vsanctl status` says which are missing")
        }
        MembershipError::Busy => (ErrorCode::Unavailable, "repeat in a few seconds"),
    };
    ApiError::new(code, format!("{what}: {error}"), next)
}

/// A volume could not be opened, closed or taken.
pub(super) fn own(state: &State, me: HostId, what: &str, error: &OwnError) -> ApiError {
    match error {
        OwnError::NoVolume(name) => fail::volume_not_found(name),
        OwnError::NotOpen(name) => fail::volume_not_open(name),
        OwnError::InUseHere { name, kind: LockKind::Transfer } => in_transfer(name, &host_name(state, me)),
        OwnError::InUseHere { name, kind: LockKind::Exclusive { read_only } } => {
            let how = if *read_only { "read-only" } else { "for reading and writing" };
            ApiError::new(
                ErrorCode::ObjectInUse,
                format!("volume {name} is open on this host already, {how}"),
                format!("stop its virtual machine and close it: `vsanctl volume close {name}`"),
            )
            .with("owner", host_name(state, me))
        }
        OwnError::InUseHere { name, kind: LockKind::Background } => ApiError::new(
            ErrorCode::Unavailable,
            format!("volume {name} is being repaired"),
            "repeat in a few seconds",
        ),
        OwnError::Incomplete(name) => fail::volume_incomplete(name),
        OwnError::Refused(error) => refused(state, error),
        OwnError::Directory(error) => directory(what, error),
        OwnError::Socket(_) | OwnError::Vhost(_) => ApiError::new(
            ErrorCode::Io,
            format!("{what}: {error}"),
            "check the `run_dir` and `group` settings and that this host has file descriptors left",
        ),
        OwnError::Busy(name) => ApiError::new(
            ErrorCode::DataUnavailable,
            format!(
                "{what}: requests of volume {name} are still under way because its data can't be reached now"
            ),
            "see `vsanctl status` for which hosts are missing; bring one back, then repeat",
        ),
        OwnError::Stopping(gone) => stopping(*gone),
    }
}

/// The daemon ends.
pub(super) fn stopping(_: LoopGone) -> ApiError {
    ApiError::new(ErrorCode::Unavailable, "the daemon is stopping", "repeat when it is up again")
}

/// A disk could not be added or given up.
pub(super) fn disk(state: &State, what: &str, error: &DiskError) -> ApiError {
    match error {
        DiskError::Open(error) => open(what, error),
        DiskError::Foreign { path, cluster } => ApiError::new(
            ErrorCode::DiskForeign,
            format!("the disk at {} belongs to another cluster ({cluster})", path.display()),
            "add it there; or, if nobody needs what it holds, empty it and add it again",
        )
        .with("cluster", cluster),
        DiskError::AlreadyHere(path) => ApiError::new(
            ErrorCode::DiskInUse,
            format!("the disk at {} is in use by this host already", path.display()),
            "there is nothing to do; see `vsanctl disk list`",
        ),
        DiskError::NotHere(disk) => fail::disk_not_found(*disk),
        DiskError::Damaged { .. } | DiskError::Another { .. } => ApiError::new(
            ErrorCode::DiskFailed,
            format!("{what}: {error}"),
            "its data is on the other hosts; remove the disk, replace it and add the new one",
        ),
        DiskError::List { .. } | DiskError::Io { .. } => ApiError::new(
            ErrorCode::Io,
            format!("{what}: {error}"),
            "check the path, its permissions and the kernel's log (`dmesg`)",
        ),
        DiskError::Device(error) => ApiError::new(
            ErrorCode::Io,
            format!("{what}: {error}"),
            "check the device and the kernel's log (`dmesg`); the daemon needs the right to mount",
        ),
        DiskError::Refused(error) => refused(state, error),
        DiskError::Directory(error) => directory(what, error),
        DiskError::Stopping(gone) => stopping(*gone),
    }
}

fn open(what: &str, error: &OpenError) -> ApiError {
    let message = format!("{what}: {error}");
    match error {
        OpenError::TooSmall { .. } | OpenError::Journal { .. } => {
            ApiError::new(ErrorCode::DiskTooSmall, message, "use a larger disk, or a larger --size")
        }
        OpenError::NotEmpty(_) => {
            ApiError::new(ErrorCode::BadPath, message, "choose an empty directory, or empty this one")
        }
        OpenError::Locked(_) => {
            ApiError::new(ErrorCode::DiskInUse, message, "stop the other process (another vsand?) first")
        }
        OpenError::Superblock { .. } | OpenError::Damaged { .. } => ApiError::new(
            ErrorCode::DiskFailed,
            message,
            "its data is on the other hosts; remove the disk, replace it and add the new one",
        ),
        _ => ApiError::new(
            ErrorCode::Io,
            message,
            "check the path, its permissions and the kernel's log (`dmesg`)",
        ),
    }
}

/// A member could not start.
pub(super) fn start(what: &str, error: &StartError) -> ApiError {
    match error {
        StartError::Directory(error) => directory(what, error),
        StartError::Identity(error) => identity(what, error),
        StartError::Level { .. } => ApiError::new(
            ErrorCode::UpgradeNeeded,
            format!("{what}: {error}"),
            "install the release that the other hosts run",
        ),
        _ => ApiError::new(
            ErrorCode::Io,
            format!("{what}: {error}"),
            "put that right, then repeat; the daemon's log (`journalctl -u vsand`) says more",
        ),
    }
}

/// Certificates or keys.
pub(super) fn identity(what: &str, error: &IdentityError) -> ApiError {
    match error {
        IdentityError::AlreadyAMember(_) => fail::already_in_cluster(),
        _ => ApiError::new(
            ErrorCode::Io,
            format!("{what}: {error}"),
            "check the identity directory, then repeat",
        ),
    }
}

/// A host could not join.
pub(super) fn join(error: &JoinError) -> ApiError {
    let message = format!("this host can't join: {error}");
    let new_token = "make a new token with `vsanctl cluster token` on a host of the cluster";
    match error {
        JoinError::Identity(error) => identity("joining the cluster", error),
        JoinError::Expired => ApiError::new(ErrorCode::TokenRefused, message, new_token),
        JoinError::Refused { refusal, .. } => match refusal {
            Refusal::NotReady | Refusal::Busy => ApiError::new(
                ErrorCode::NoQuorum,
                message,
                "see `vsanctl status` on a host of the cluster, then try again",
            ),
            Refusal::NameTaken | Refusal::HostExists => ApiError::new(
                ErrorCode::NameTaken,
                message,
                "choose another `--host-name`, and take a new token",
            ),
            Refusal::FeatureLevel { cluster, oldest, .. } if cluster < oldest => ApiError::new(
                ErrorCode::UpgradeNeeded,
                message,
                "upgrade the cluster first with `vsanctl cluster upgrade`, or install here a release that it may have; the token is good still",
            ),
            Refusal::FeatureLevel { .. } | Refusal::Version => ApiError::new(
                ErrorCode::UpgradeNeeded,
                message,
                "install the release that the cluster runs; the token is good still",
            ),
            Refusal::BadName => {
                ApiError::new(ErrorCode::BadName, message, "give this host another `--host-name`")
            }
            _ => ApiError::new(ErrorCode::TokenRefused, message, new_token),
        },
        JoinError::Unreachable(_, error @ ConnectError::NotTrusted { .. }) => ApiError::new(
            ErrorCode::TokenRefused,
            format!(
                "this host can't join: the cluster that answers is not the one that the token is of: {error}"
            ),
            "check that the token was copied whole, and the clocks of both hosts; if they are right, another cluster has that address now: make a new token with `vsanctl cluster token` on a host of the right one",
        ),
        JoinError::Unreachable(..) | JoinError::Lost { .. } => ApiError::new(
            ErrorCode::HostUnreachable,
            message,
            "check that this host reaches the cluster's hosts (addresses, firewall), then try again",
        ),
        JoinError::Ca(_) | JoinError::BadAnswer { .. } => fail::internal("joining the cluster", error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ferro_protocol::ids::{DiskId, ObjectId};
    use std::time::Duration;

    #[test]
    fn refusals_name_the_object_and_the_way_out() {
        let state = State::default();
        let host = HostId::from_bytes([1; 16]);
        let name: VolumeName = "db".parse().unwrap();
        for (refusal, code) in [
            (Refused::NoHost(host), ErrorCode::HostNotFound),
            (Refused::NoDisk(DiskId::from_bytes([2; 16])), ErrorCode::DiskNotFound),
            (Refused::NoObject(ObjectId::from_bytes([2; 16])), ErrorCode::ObjectNotFound),
            (
                Refused::NameTaken { name: name.clone(), by: ObjectId::from_bytes([2; 16]) },
                ErrorCode::NameTaken,
            ),
            (Refused::NoRoom { needed: 3, found: 1 }, ErrorCode::PolicyUnsatisfiable),
            (Refused::LeaseAlive(host), ErrorCode::LeaseRunning),
            (Refused::HoldsLock { host, volume: name.clone() }, ErrorCode::ObjectInUse),
            (Refused::LastHost(host), ErrorCode::WouldLoseData),
            (
                Refused::WouldLoseData { what: "host a".to_owned(), chunks: 3, example: name },
                ErrorCode::WouldLoseData,
            ),
            (Refused::TooMuch("much".to_owned()), ErrorCode::LimitReached),
            (Refused::HostNameTaken { name: "a".to_owned(), by: host }, ErrorCode::NameTaken),
            (Refused::HostNotUp(host), ErrorCode::Conflict),
        ] {
            let error = refused(&state, &refusal);
            assert_eq!(error.code, code, "{refusal}");
            assert!(!error.message.is_empty() && !error.next_step.is_empty(), "{error:?}");
        }
    }

    #[test]
    fn a_host_that_is_ahead_of_its_cluster_is_not_told_to_install_what_the_cluster_runs() {
        let next_step = |cluster, oldest, newest| {
            let refusal = Refusal::FeatureLevel { cluster, oldest, newest };
            join(&JoinError::Refused { addr: "127.0.0.1:7000".parse().unwrap(), refusal }).next_step
        };
        assert!(next_step(3, 1, 2).starts_with("install the release"));
        assert!(next_step(1, 2, 3).starts_with("upgrade the cluster first"));
    }

    #[test]
    fn a_change_that_may_still_happen_is_told_from_one_that_will_not() {
        let since = Duration::from_secs(1);
        assert_eq!(directory("x", &DirectoryError::NoLeader { since }).code, ErrorCode::NoQuorum);
        assert_eq!(directory("x", &DirectoryError::NoQuorum { since }).code, ErrorCode::NoQuorum);
        assert_eq!(directory("x", &DirectoryError::Timeout).code, ErrorCode::TimedOut);
    }
}
