//! Telling the directory which hosts are away, so that what they hold is missed also where nobody writes. What is to be told, and
//! by whom, is decided in [`vsand_core::directory::absence`].

use std::sync::Arc;
use std::time::Duration;

use vsand_core::directory::{Command, Refused};

use super::Member;
use crate::data::clock;

/// How often it is looked who is away.
const EVERY: Duration = Duration::from_secs(1);

/// Says who is away, for as long as this host is a member.
pub async fn watch(member: Arc<Member>) {
    loop {
        tokio::time::sleep(EVERY).await;
        let (state, delay_s) = (member.state(), member.config.repair_delay_s);
        let next = state.next_absence(clock::now(), member.host(), &member.watcher(), delay_s);
        let Some(Command::HostAway { host, lease, absence }) = next else { continue };
        match member.propose(&Command::HostAway { host, lease, absence }).await {
            Ok(Ok(_)) if absence.given_up => {
                tracing::warn!(%host, "a host has been away for the repair delay: what it holds is built elsewhere");
            }
            Ok(Ok(_)) => tracing::info!(%host, "a host is away"),
            Ok(Err(Refused::LeaseAlive(_) | Refused::NoHost(_))) => {}
            Ok(Err(refused)) => {
                tracing::warn!(%host, %refused, "the directory does not take it that a host is away")
            }
            Err(error) => {
                tracing::debug!(%host, %error, "the directory could not be told that a host is away")
            }
        }
    }
}
