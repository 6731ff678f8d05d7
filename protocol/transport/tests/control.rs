//! Requests and responses over a real control connection.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{Cluster, PATIENCE, START, at, cluster, host, loopback};
use ferro_protocol::ids::HostId;
use ferro_transport::BoxFuture;
use ferro_transport::control::{
    CallError, ControlClient, ControlHandler, ControlPeer, Fault, IN_FLIGHT_MAX, PAYLOAD_BYTES_MAX,
    ServiceId, serve_control,
};
use ferro_transport::identity::{ClusterCa, HOST_CERT_LIFETIME};
use ferro_transport::renew;
use ferro_transport::tls::{Channel, Endpoint, Peer, connect};
use tokio::sync::Semaphore;

const ECHO: ServiceId = ServiceId(16);
const WAIT: ServiceId = ServiceId(17);
const NEVER: ServiceId = ServiceId(18);
const TOO_MUCH: ServiceId = ServiceId(19);

struct Handler {
    gate: Semaphore,
    waiting: AtomicUsize,
    ca: Arc<ClusterCa>,
}

impl ControlHandler for Handler {
    fn handle(
        &self,
        peer: HostId,
        service: ServiceId,
        request: Vec<u8>,
    ) -> BoxFuture<'_, Result<Vec<u8>, Fault>> {
        Box::pin(async move {
            match service {
                ECHO => Ok(request),
                WAIT => {
                    self.waiting.fetch_add(1, Ordering::SeqCst);
                    self.gate.acquire().await.unwrap().forget();
                    Ok(request)
                }
                NEVER => std::future::pending().await,
                TOO_MUCH => Ok(vec![0; PAYLOAD_BYTES_MAX + 1]),
                renew::SERVICE => renew::answer(&self.ca, peer, &request, at(START + 5), HOST_CERT_LIFETIME),
                _ => Err(Fault::UnknownService),
            }
        })
    }
}

/// A host that answers until it is dropped, connections included.
struct Server {
    endpoint_task: tokio::task::JoinHandle<()>,
    addr: std::net::SocketAddr,
    handler: Arc<Handler>,
}

impl Server {
    fn start(mut endpoint: Endpoint, cluster: &Cluster) -> Self {
        let handler = Arc::new(Handler {
            gate: Semaphore::new(0),
            waiting: AtomicUsize::new(0),
            ca: cluster.ca.clone(),
        });
        let addr = endpoint.local_addr();
        let serving = handler.clone();
        let endpoint_task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Some(incoming) = endpoint.accept().await {
                let Peer::Host(peer) = incoming.peer else { continue };
                connections.spawn(serve_control(incoming.stream, peer, serving.clone()));
            }
        });
        Self { endpoint_task, addr, handler }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.endpoint_task.abort();
    }
}

async fn pair() -> (Cluster, Server, ControlClient) {
    let cluster = Cluster::new(cluster(1));
    let server = Server::start(cluster.endpoint(host(1)).await, &cluster);
    let identity = cluster.handle(host(2));
    let connected = connect(server.addr, Some(host(1)), Channel::Control, &identity).await.unwrap();
    let client = ControlClient::new(connected.stream, connected.peer);
    (cluster, server, client)
}

#[tokio::test]
async fn a_slow_request_does_not_hold_up_a_fast_one() {
    let (_cluster, server, client) = pair().await;
    let mut slow = tokio::task::JoinSet::new();
    for i in 0..200u32 {
        let client = client.clone();
        slow.spawn(
            async move { client.call(WAIT, &i.to_le_bytes(), PATIENCE).await.map(|reply| (i, reply)) },
        );
    }
    while server.handler.waiting.load(Ordering::SeqCst) < 200 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(client.call(ECHO, b"heartbeat", PATIENCE).await.unwrap(), b"heartbeat");
    server.handler.gate.add_permits(200);
    for result in slow.join_all().await {
        let (i, reply) = result.unwrap();
        assert_eq!(reply, i.to_le_bytes());
    }
}

#[tokio::test]
async fn a_time_out_leaves_the_connection_usable() {
    let (_cluster, server, client) = pair().await;
    let error = client.call(WAIT, b"late", Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(error, CallError::TimedOut(who, _) if who == host(1)), "{error}");
    // The late reply comes to nobody and harms nobody.
    server.handler.gate.add_permits(1);
    assert_eq!(client.call(ECHO, b"x", PATIENCE).await.unwrap(), b"x");
    assert!(!client.is_closed());
}

#[tokio::test]
async fn large_payloads_and_their_limit() {
    let (_cluster, _server, client) = pair().await;
    let large: Vec<u8> = (0..PAYLOAD_BYTES_MAX).map(|i| (i % 253) as u8).collect();
    assert!(client.call(ECHO, &large, PATIENCE).await.unwrap() == large);
    assert_eq!(client.call(ECHO, b"", PATIENCE).await.unwrap(), b"");
    let error = client.call(ECHO, &vec![0; PAYLOAD_BYTES_MAX + 1], PATIENCE).await.unwrap_err();
    assert!(matches!(error, CallError::TooLong(_)), "{error}");
    let error = client.call(TOO_MUCH, b"", PATIENCE).await.unwrap_err();
    assert_eq!(error, CallError::Fault(host(1), Fault::Unavailable));
}

#[tokio::test]
async fn an_unknown_service_is_a_fault() {
    let (_cluster, _server, client) = pair().await;
    let error = client.call(ServiceId(999), b"?", PATIENCE).await.unwrap_err();
    assert_eq!(error, CallError::Fault(host(1), Fault::UnknownService));
}

#[tokio::test]
async fn callers_learn_at_once_that_the_connection_broke() {
    let (_cluster, server, client) = pair().await;
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.call(NEVER, b"", Duration::from_secs(3600)).await }
    });
    assert!(client.call(ECHO, b"", PATIENCE).await.is_ok());
    drop(server);
    let error = tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error, CallError::Disconnected(host(1)));
    tokio::time::timeout(PATIENCE, client.closed()).await.unwrap();
    assert!(client.is_closed());
    assert_eq!(client.call(ECHO, b"", PATIENCE).await.unwrap_err(), CallError::Disconnected(host(1)));
}

#[tokio::test]
async fn requests_under_way_are_bounded() {
    // Two clients share the bytes of nothing; one connection is filled by hand to see the peer's own bound.
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let cluster = Cluster::new(cluster(1));
    let server = Server::start(cluster.endpoint(host(1)).await, &cluster);
    let identity = cluster.handle(host(2));
    let mut stream = connect(server.addr, Some(host(1)), Channel::Control, &identity).await.unwrap().stream;
    let mut frames = Vec::new();
    for request in 0..=IN_FLIGHT_MAX as u64 {
        frames.extend(11u32.to_le_bytes());
        frames.push(1);
        frames.extend(NEVER.0.to_le_bytes());
        frames.extend(request.to_le_bytes());
    }
    stream.write_all(&frames).await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = [0; 16];
    tokio::time::timeout(PATIENCE, stream.read_exact(&mut answer)).await.expect("no answer").unwrap();
    // A fault (3) to the last request: busy (2).
    assert_eq!((answer[4], answer[15]), (3, 2));
    assert_eq!(answer[7..15], (IN_FLIGHT_MAX as u64).to_le_bytes());
}

#[tokio::test]
async fn malformed_frames_end_the_connection() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    for bytes in [&u32::MAX.to_le_bytes()[..], &[0; 15], &[11, 0, 0, 0, 2, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
        let (frame, mut head) = (bytes, [0; 15]);
        head[..frame.len()].copy_from_slice(frame);
        let cluster = Cluster::new(cluster(1));
        let server = Server::start(cluster.endpoint(host(1)).await, &cluster);
        let identity = cluster.handle(host(2));
        let mut stream =
            connect(server.addr, Some(host(1)), Channel::Control, &identity).await.unwrap().stream;
        stream.write_all(&head).await.unwrap();
        stream.flush().await.unwrap();
        let ended = tokio::time::timeout(PATIENCE, stream.read(&mut [0; 1])).await.expect("it stays open");
        assert!(matches!(ended, Ok(0) | Err(_)));
    }
}

#[tokio::test]
async fn a_peer_is_found_again_after_it_was_away() {
    let cluster = Cluster::new(cluster(1));
    let mut server = Server::start(cluster.endpoint(host(1)).await, &cluster);
    let identity = cluster.handle(host(2));
    let addr = server.addr;
    let peer = ControlPeer::new(host(1), vec![addr], identity);
    assert!(!peer.is_up());
    assert_eq!(peer.call(ECHO, b"1", PATIENCE).await.unwrap(), b"1");
    assert!(peer.is_up());
    server.endpoint_task.abort();
    let down = async {
        while peer.call(ECHO, b"2", Duration::from_secs(1)).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, down).await.expect("it still answers");
    let identity = ferro_transport::identity::IdentityHandle::with_clock(
        cluster.dir(host(1)).load(at(START)).unwrap(),
        cluster.clock.clone(),
    )
    .unwrap();
    server = Server::start(Endpoint::bind(addr, identity).await.unwrap(), &cluster);
    let up = async {
        while peer.call(ECHO, b"3", PATIENCE).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, up).await.expect("it is not found again");
    drop(server);
}

#[tokio::test]
async fn an_absent_peer_fails_fast_between_attempts() {
    let cluster = Cluster::new(cluster(1));
    let dead = std::net::TcpListener::bind(loopback()).unwrap().local_addr().unwrap();
    let peer = ControlPeer::new(host(1), vec![dead], cluster.handle(host(2)));
    for _ in 0..3 {
        let error = peer.call(ECHO, b"", PATIENCE).await.unwrap_err();
        assert!(
            matches!(&error, CallError::Unreachable { reason, .. } if reason.contains("cannot connect")),
            "{error}"
        );
    }
    let nowhere = ControlPeer::new(host(1), vec![], cluster.handle(host(3)));
    assert!(matches!(nowhere.call(ECHO, b"", PATIENCE).await, Err(CallError::Unreachable { .. })));
}

#[tokio::test]
async fn a_certificate_is_renewed_over_the_control_connection() {
    let cluster = Cluster::new(cluster(1));
    let server = Server::start(cluster.endpoint(host(1)).await, &cluster);
    let identity = cluster.handle(host(2));
    let before = identity.current().validity();
    let peer = ControlPeer::new(host(1), vec![server.addr], identity.clone());
    renew::renew_over(&peer, &cluster.dir(host(2)), &identity, at(START + 5)).await.unwrap();
    assert_eq!(identity.current().validity().not_after.as_secs(), before.not_after.as_secs() + 5);
    assert_eq!(cluster.dir(host(2)).load(at(START + 5)).unwrap().validity(), identity.current().validity());

    // A request for another host's name is refused, whatever is in it.
    let key = ferro_transport::identity::HostKey::generate(host(1)).unwrap();
    let request = [&[1][..], &key.signing_request().unwrap()].concat();
    assert_eq!(peer.call(renew::SERVICE, &request, PATIENCE).await.unwrap(), [1, 1]);
    let error = peer.call(renew::SERVICE, &[9], PATIENCE).await.unwrap_err();
    assert_eq!(error, CallError::Fault(host(1), Fault::BadRequest));
}

#[tokio::test(start_paused = true)]
async fn a_daemon_keeps_its_own_certificate_fresh() {
    let cluster = Cluster::new(cluster(1));
    let identity = cluster.handle(host(1));
    let first = identity.current().validity();
    let keeping = renew::keep_renewed(cluster.dir(host(1)), identity.clone(), HOST_CERT_LIFETIME);
    let keeping = tokio::spawn(keeping);
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(identity.current().validity(), first, "it was not due yet");
    cluster.clock.set(first.renewal_due().as_secs());
    let renewed = async {
        while identity.current().validity() == first {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    // On the clock of the test, which jumps.
    tokio::time::timeout(Duration::from_secs(600), renewed).await.expect("it was not renewed");
    assert!(!identity.current().validity().is_renewal_due(first.renewal_due()));
    keeping.abort();
}

#[tokio::test]
async fn a_peer_that_lets_nobody_stay_is_not_hammered() {
    let cluster = Cluster::new(cluster(1));
    let mut endpoint = cluster.endpoint(host(1)).await;
    let peer = ControlPeer::new(host(1), vec![endpoint.local_addr()], cluster.handle(host(2)));
    let met = Arc::new(AtomicUsize::new(0));
    let counted = met.clone();
    let closing = tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            drop(incoming);
        }
    });
    let end = tokio::time::Instant::now() + Duration::from_millis(500);
    let mut calls = 0;
    while tokio::time::Instant::now() < end {
        assert!(peer.call(ECHO, b"", PATIENCE).await.is_err());
        calls += 1;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    closing.abort();
    // Pauses of 50, 100, 200 ms and more: at most a handful of attempts, however many calls there were.
    let met = met.load(Ordering::SeqCst);
    assert!((1..=5).contains(&met), "{met} connections for {calls} calls");
}
