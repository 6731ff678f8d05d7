//! Tells the cluster what this host's disks have to serve (`vsand_core::directory::load`), when that has changed noticeably.

use std::sync::Arc;

use ferro_protocol::ids::DiskId;
use vsand_core::directory::{Command, FeatureLevel, Load};

use super::Member;
use crate::data::port::Command as DataCommand;

/// For as long as the daemon runs.
pub(super) async fn report(member: Arc<Member>) {
    let every = member.config.rebalance.load_report_every();
    loop {
        tokio::time::sleep(every).await;
        let state = member.state();
        if state.level < FeatureLevel::LOADS {
            continue;
        }
        let Ok(snapshot) = member.data.ask(DataCommand::Snapshot).await else { return };
        let loads: Vec<(DiskId, Load)> = snapshot
            .loads
            .iter()
            .filter(|(disk, now)| {
                let said = state.loads.of(**disk);
                now.settled && state.disks.contains_key(disk) && now.load.is_news(said)
            })
            .map(|(disk, now)| (*disk, now.load))
            .collect();
        if loads.is_empty() {
            continue;
        }
        if let Err(error) = member.propose(&Command::ReportLoad { loads }).await {
            tracing::debug!(%error, "what the disks have to serve could not be reported");
        }
    }
}
