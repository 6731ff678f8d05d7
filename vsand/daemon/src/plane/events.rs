//! Events of all hosts: asked for at once, put together by [`crate::events::merge`].

use std::time::Duration;

use ferro_protocol::api::EventList;
use ferro_protocol::ids::HostId;

use super::errors::host_name;
use crate::api::control::EventQuery;
use crate::events::merge::{Source, merge};
use crate::events::{Page, Query};
use crate::member::Member;
use crate::member::network::EVENTS;

/// A host reads its log within this time, or its events are missing from the answer.
const ANSWER_MAX: Duration = Duration::from_secs(3);

/// The answer to another host that asks what this one saw.
pub async fn answer(member: &Member, request: &[u8]) -> Option<Vec<u8>> {
    let query: Query = serde_json::from_slice(request).ok()?;
    let limit = query.limit.min(ferro_protocol::api::EVENTS_MAX);
    serde_json::to_vec(&member.events.read(Query { limit, ..query }).await).ok()
}

async fn ask(member: &Member, host: HostId, query: Query) -> Option<Page> {
    if host == member.host() {
        return Some(member.events.read(query).await);
    }
    let address = member.state().hosts.get(&host)?.address;
    let request = serde_json::to_vec(&query).ok()?;
    let call = member.peers.call(host, address, EVENTS, &request, ANSWER_MAX);
    match tokio::time::timeout(ANSWER_MAX, call).await {
        Ok(Ok(answer)) => serde_json::from_slice(&answer)
            .inspect_err(|error| tracing::warn!(%host, %error, "a host's events can't be read"))
            .ok(),
        Ok(Err(error)) => {
            tracing::debug!(%host, %error, "a host did not tell its events");
            None
        }
        Err(_) => None,
    }
}

/// What all hosts that answer saw.
pub(super) async fn list(member: &Member, query: EventQuery) -> EventList {
    let state = member.state();
    let mut hosts: Vec<HostId> =
        state.hosts.keys().copied().filter(|host| !query.local || *host == member.host()).collect();
    if hosts.is_empty() {
        hosts.push(member.host());
    }
    let asked = Query { since_ms: query.since_ms, limit: query.limit };
    let pages = futures_util::future::join_all(hosts.iter().map(|host| ask(member, *host, asked))).await;
    let (mut sources, mut silent_hosts, mut more) = (Vec::new(), Vec::new(), false);
    for (host, page) in hosts.into_iter().zip(pages) {
        let name = host_name(&state, host);
        match page {
            Some(page) => {
                more |= page.more;
                sources.push(Source { host, name, records: page.records });
            }
            None => silent_hosts.push(name),
        }
    }
    silent_hosts.sort();
    let (events, left_out) = merge(sources, usize::try_from(query.limit).unwrap_or(usize::MAX));
    EventList { events, silent_hosts, more: more || left_out }
}
