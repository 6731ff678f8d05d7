//! What the control plane in memory tells of the cluster, its hosts and what runs in it: the same each time.

use ferro_protocol::api::{
    ClusterInfo, HostInfo, HostRole, HostState, ObjectInfo, ResyncInfo, ResyncKind, ResyncList, ResyncState,
    ResyncTotals, ScrubInfo, ScrubList, ScrubState, VolumeInfo, VolumeOwner,
};
use ferro_protocol::ids::{ClusterId, HostId, ObjectId};

use super::control::{DISK, HERE, HERE_NAME, THERE};

pub(crate) fn owner(host: HostId, name: &str) -> VolumeOwner {
    VolumeOwner { host, host_name: name.to_owned() }
}

pub(crate) fn cluster(quorum: bool) -> ClusterInfo {
    ClusterInfo {
        id: ClusterId::from_bytes([9; 16]),
        ca_fingerprint: "ab".repeat(32),
        this_host: HERE,
        leader: Some(HERE),
        quorum,
        voters: 1,
        hosts: 2,
        feature_level: 1,
        feature_level_known: 2,
    }
}

pub(crate) fn host(id: HostId, name: &str, state: HostState) -> HostInfo {
    HostInfo {
        id,
        name: name.to_owned(),
        this_host: id == HERE,
        addresses: vec!["10.0.0.1:7400".to_owned()],
        fault_domain: name.to_owned(),
        state,
        role: if id == HERE { HostRole::Leader } else { HostRole::Learner },
        disks: 1,
        capacity_bytes: 100 << 30,
        used_bytes: 12 << 30,
        leaving_bytes: None,
        maintenance: None,
        last_seen_seconds: (state == HostState::Offline).then_some(125),
        certificate_expires_unix_s: None,
        version: None,
    }
}

pub(crate) fn hosts() -> Vec<HostInfo> {
    vec![host(HERE, HERE_NAME, HostState::Online), host(THERE, "beta", HostState::Offline)]
}

pub(crate) fn object_of(volume: &VolumeInfo) -> ObjectInfo {
    ObjectInfo {
        id: volume.object,
        volume: Some(volume.name.clone()),
        size_bytes: volume.size_bytes,
        policy: volume.policy,
        redundancy: volume.redundancy,
        owner: volume.owner.clone(),
        epoch: volume.epoch,
        chunks: 3,
        components_in_sync: 3,
        components: 6,
    }
}

pub(crate) fn resync_list() -> ResyncList {
    let totals = ResyncTotals {
        running: 1,
        waiting: 0,
        done_bytes: 1 << 30,
        total_bytes: 4 << 30,
        bytes_per_second: 128 << 20,
        eta_seconds: Some(24),
    };
    let one = ResyncInfo {
        object: ObjectId::from_bytes([5; 16]),
        volume: Some("web".parse().unwrap()),
        disk: DISK,
        host: THERE,
        host_name: "beta".to_owned(),
        kind: ResyncKind::Delta,
        state: ResyncState::Running,
        chunks_remaining: 3,
        done_bytes: 1 << 30,
        total_bytes: 4 << 30,
        bytes_per_second: 128 << 20,
        eta_seconds: Some(24),
    };
    ResyncList { resyncs: vec![one], totals }
}

pub(crate) fn scrub_list() -> ScrubList {
    let one = |name: &str, state, bad_blocks| ScrubInfo {
        volume: name.parse().unwrap(),
        object: ObjectId::from_bytes([5; 16]),
        state,
        began_unix_s: Some(1_700_000_000),
        ended_unix_s: None,
        whole_unix_s: None,
        next_unix_s: None,
        chunks: 10,
        chunks_done: 4,
        bytes: 3 << 30,
        bad_blocks,
        mended_blocks: bad_blocks / 2,
        skipped: 0,
    };
    ScrubList { scrubs: vec![one("data", ScrubState::Running, 4), one("root", ScrubState::Never, 0)] }
}
