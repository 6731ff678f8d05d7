//! The peer port on loopback: who gets in, who does not, and why.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Cluster, Log, PATIENCE, START, TestClock, accept, at, cluster, host, loopback};
use ferro_transport::identity::{HOST_CERT_LIFETIME, HostKey};
use ferro_transport::renew;
use ferro_transport::tls::{Channel, ConnectError, Endpoint, Limits, Peer, connect};
use rustls::{AlertDescription, ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

#[tokio::test]
async fn members_meet_on_both_channels() {
    let cluster = Cluster::new(cluster(1));
    let mut server = cluster.endpoint(host(1)).await;
    let client = cluster.handle(host(2));
    for channel in [Channel::Control, Channel::Data] {
        let connecting = connect(server.local_addr(), Some(host(1)), channel, &client);
        let (connected, incoming) = tokio::join!(connecting, accept(&mut server));
        let (mut connected, mut incoming) = (connected.unwrap(), incoming);
        assert_eq!(
            (connected.peer, incoming.peer, incoming.channel),
            (host(1), Peer::Host(host(2)), channel)
        );
        assert!(incoming.stream.get_ref().0.nodelay().unwrap());
        connected.stream.write_all(b"hello").await.unwrap();
        connected.stream.flush().await.unwrap();
        let mut heard = [0; 5];
        incoming.stream.read_exact(&mut heard).await.unwrap();
        assert_eq!(&heard, b"hello");
    }
}

#[tokio::test]
async fn first_contact_by_address_tells_who_it_is() {
    let cluster = Cluster::new(cluster(1));
    let server = cluster.endpoint(host(1)).await;
    let connected = connect(server.local_addr(), None, Channel::Control, &cluster.handle(host(2))).await;
    assert_eq!(connected.unwrap().peer, host(1));
}

#[tokio::test]
async fn another_host_of_the_cluster_is_not_taken_for_the_expected_one() {
    let cluster = Cluster::new(cluster(1));
    let server = cluster.endpoint(host(1)).await;
    let error = connect(server.local_addr(), Some(host(3)), Channel::Data, &cluster.handle(host(2))).await;
    let error = error.unwrap_err();
    assert!(matches!(error, ConnectError::WrongHost { expected, .. } if expected == host(3)), "{error}");
}

#[tokio::test]
async fn hosts_of_two_clusters_refuse_each_other() {
    let log = Log::capture();
    let (ours, theirs) = (Cluster::new(cluster(1)), Cluster::new(cluster(2)));
    let server = ours.endpoint(host(1)).await;
    let client = theirs.handle(host(2));
    for expected in [Some(host(1)), None] {
        let error = connect(server.local_addr(), expected, Channel::Control, &client).await.unwrap_err();
        assert!(matches!(error, ConnectError::NotTrusted { .. }), "{error}");
    }
    log.wait_for("refused a connection").await;
}

/// A client of our own making: it trusts whom it is told to and shows what it is given.
struct Stranger {
    config: ClientConfig,
}

impl Stranger {
    fn new(trusts: &Cluster, shows: Option<(&Cluster, ferro_protocol::ids::HostId)>, alpn: &[&str]) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(trusts.ca.cert().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_details(provider, trusts.clock.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots);
        let mut config = match shows {
            None => builder.with_no_client_auth(),
            Some((of, id)) => {
                let (cert, key) = pair_of(of, id);
                builder.with_client_auth_cert(vec![cert], key).unwrap()
            }
        };
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Self { config }
    }

    /// The error that the server's refusal arrives as.
    async fn refused_by(self, server: &Endpoint) -> std::io::Error {
        let tcp = TcpStream::connect(server.local_addr()).await.unwrap();
        let name = ServerName::try_from(ferro_transport::identity::host_name_of(host(1))).unwrap();
        let attempt = async {
            let connector = tokio_rustls::TlsConnector::from(Arc::new(self.config));
            let mut stream = connector.connect(name, tcp).await?;
            stream.read_exact(&mut [0; 8]).await
        };
        tokio::time::timeout(PATIENCE, attempt).await.expect("it hangs").expect_err("it was let in")
    }
}

/// A certificate with its key, taken from the files of a host.
fn pair_of(
    of: &Cluster,
    id: ferro_protocol::ids::HostId,
) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
    use rustls_pki_types::pem::PemObject;
    of.identity(id);
    let dir = of.dir(id);
    let cert = CertificateDer::from_pem_file(dir.path().join("host.pem")).unwrap();
    let key = PrivatePkcs8KeyDer::from_pem_file(dir.path().join("host.key")).unwrap();
    (cert, key.into())
}

fn alert_in(error: &std::io::Error) -> Option<AlertDescription> {
    match error.get_ref()?.downcast_ref()? {
        rustls::Error::AlertReceived(alert) => Some(*alert),
        _ => None,
    }
}

#[tokio::test]
async fn a_certificate_of_another_cluster_is_refused_and_logged() {
    let log = Log::capture();
    let (ours, theirs) = (Cluster::new(cluster(1)), Cluster::new(cluster(2)));
    let server = ours.endpoint(host(1)).await;
    let stranger = Stranger::new(&ours, Some((&theirs, host(2))), &["ferro-control/1"]);
    let error = stranger.refused_by(&server).await;
    assert_eq!(alert_in(&error), Some(AlertDescription::UnknownCA), "{error}");
    log.wait_for("its certificate is another CA's").await;
}

#[tokio::test]
async fn no_certificate_means_no_control_and_no_data() {
    for channel in ["ferro-control/1", "ferro-data/1"] {
        let log = Log::capture();
        let ours = Cluster::new(cluster(1));
        let server = ours.endpoint(host(1)).await;
        let error = Stranger::new(&ours, None, &[channel]).refused_by(&server).await;
        assert_eq!(alert_in(&error), Some(AlertDescription::CertificateRequired), "{error}");
        log.wait_for("it presented no certificate").await;
        log.wait_for("127.0.0.1").await;
        log.wait_for("WARN").await;
    }
}

#[tokio::test]
async fn a_channel_must_be_named_and_known() {
    let ours = Cluster::new(cluster(1));
    for (i, alpn) in [&[][..], &["ferro-join/1", "ferro-control/1"], &["h2"]].into_iter().enumerate() {
        let log = Log::capture();
        let server = Endpoint::bind(loopback(), ours.handle(host(10 + i as u8))).await.unwrap();
        let _error = Stranger::new(&ours, None, alpn).refused_by(&server).await;
        log.wait_for("refused a connection").await;
    }
}

#[tokio::test]
async fn a_plaintext_peer_is_refused_and_logged_once() {
    let log = Log::capture();
    let mut server = Cluster::new(cluster(1)).endpoint(host(1)).await;
    for _ in 0..3 {
        let mut tcp = TcpStream::connect(server.local_addr()).await.unwrap();
        tcp.write_all(b"GET / HTTP/1.1\r\nHost: storage\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        // A TLS alert or a reset, and then the end.
        let ended = tokio::time::timeout(PATIENCE, tcp.read_to_end(&mut answer)).await;
        assert!(ended.is_ok() && answer.len() <= 7, "{answer:?}");
    }
    log.wait_for("does not speak TLS").await;
    let nobody = tokio::time::timeout(Duration::from_millis(50), server.accept()).await;
    assert!(nobody.is_err());
    assert_eq!(log.text().matches("does not speak TLS").count(), 1);
}

#[tokio::test]
async fn who_says_nothing_is_sent_away_and_does_not_block_the_others() {
    let log = Log::capture();
    let ours = Cluster::new(cluster(1));
    let limits = Limits {
        handshakes: 4,
        handshakes_per_address: 4,
        handshake_timeout: Duration::from_millis(300),
        ..Limits::default()
    };
    let mut server = Endpoint::bind_with(loopback(), ours.handle(host(1)), limits).await.unwrap();
    let mut silent = Vec::new();
    for _ in 0..6 {
        silent.push(TcpStream::connect(server.local_addr()).await.unwrap());
    }
    let client = ours.handle(host(2));
    let connecting = connect(server.local_addr(), None, Channel::Control, &client);
    let (connected, _incoming) = tokio::join!(connecting, accept(&mut server));
    assert!(connected.is_ok());
    log.wait_for("the handshake took too long").await;
    for mut tcp in silent {
        let ended = tokio::time::timeout(PATIENCE, tcp.read(&mut [0; 16])).await.expect("it is still open");
        assert!(matches!(ended, Ok(0) | Err(_)));
    }
}

#[tokio::test]
async fn an_expired_certificate_is_refused_by_either_side() {
    let log = Log::capture();
    let cluster = Cluster::new(cluster(1));
    let late = START + HOST_CERT_LIFETIME.as_secs() + 1;
    let (server_clock, client_clock) = (TestClock::new(), TestClock::new());
    let server = cluster.handle_by(host(1), server_clock.clone());
    let endpoint = Endpoint::bind(loopback(), server.clone()).await.unwrap();
    let client = cluster.handle_by(host(2), client_clock.clone());

    client_clock.set(late);
    let error = connect(endpoint.local_addr(), Some(host(1)), Channel::Data, &client).await.unwrap_err();
    assert!(matches!(error, ConnectError::NotTrusted { .. }), "{error}");

    // The server has renewed its own certificate; the client has slept over it and its clock still shows the old time.
    client_clock.set(late - 100);
    server_clock.set(late);
    renew::renew_own(&cluster.dir(host(1)), &server, at(late), HOST_CERT_LIFETIME).unwrap();
    let error = connect(endpoint.local_addr(), Some(host(1)), Channel::Data, &client).await.unwrap_err();
    let expired = AlertDescription::CertificateExpired;
    assert!(matches!(error, ConnectError::Refused { alert, .. } if alert == expired), "{error}");
    log.wait_for("its certificate is not good").await;
}

#[tokio::test]
async fn renewal_reaches_new_connections_and_leaves_old_ones() {
    let cluster = Cluster::new(cluster(1));
    let (server, client) = (cluster.handle(host(1)), cluster.handle(host(2)));
    let mut endpoint = Endpoint::bind(loopback(), server.clone()).await.unwrap();
    let addr = endpoint.local_addr();

    let (before, mut accepted) =
        tokio::join!(connect(addr, Some(host(1)), Channel::Data, &client), accept(&mut endpoint));
    let mut before = before.unwrap();
    let due = server.current().validity().renewal_due();
    cluster.clock.set(due.as_secs());
    renew::renew_own(&cluster.dir(host(1)), &server, due, HOST_CERT_LIFETIME).unwrap();
    renew::renew_own(&cluster.dir(host(2)), &client, due, HOST_CERT_LIFETIME).unwrap();
    // Past the end of the first certificates, only renewed ones are good.
    cluster.clock.set(START + HOST_CERT_LIFETIME.as_secs() + 1);
    let (after, again) =
        tokio::join!(connect(addr, Some(host(1)), Channel::Data, &client), accept(&mut endpoint));
    let after = after.unwrap();
    let shown = |stream: &ferro_transport::tls::PeerStream| {
        stream.get_ref().1.peer_certificates().unwrap()[0].clone()
    };
    assert_ne!(shown(&before.stream), shown(&after.stream));
    assert_ne!(shown(&accepted.stream), shown(&again.stream));

    before.stream.write_all(b"still here").await.unwrap();
    before.stream.flush().await.unwrap();
    let mut heard = [0; 10];
    accepted.stream.read_exact(&mut heard).await.unwrap();
    assert_eq!(&heard, b"still here");
    // And a restart reads what was written.
    let stored = cluster.dir(host(1)).load(due).unwrap();
    assert_eq!(stored.validity(), server.current().validity());
}

#[tokio::test]
async fn an_identity_of_another_host_or_cluster_is_not_swapped_in() {
    let (ours, theirs) = (Cluster::new(cluster(1)), Cluster::new(cluster(1)));
    let handle = ours.handle(host(1));
    assert!(handle.replace(ours.identity(host(2))).is_err());
    assert!(handle.replace(theirs.identity(host(1))).is_err());
    assert!(ours.dir(host(1)).load(at(START)).is_ok());
    let key = HostKey::generate(host(1)).unwrap();
    let cert =
        theirs.ca.issue(&key.signing_request().unwrap(), host(1), at(START), HOST_CERT_LIFETIME).unwrap();
    let current = handle.current();
    assert!(ours.dir(host(1)).store_renewed(&current, &cert, &key, at(START)).is_err());
    assert!(ours.dir(host(1)).load(at(START)).is_ok());
}
