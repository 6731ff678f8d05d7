//! Tokens at the door: the good one once, the others never.

mod common;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{Cluster, Log, START, TestClock, accept, at, cluster, host, loopback};
use ferro_protocol::ids::{ClusterId, HostId};
use ferro_transport::identity::{
    CaFingerprint, ClusterCa, HOST_CERT_LIFETIME, HostKey, IdentityDir, IdentityError, IdentityHandle,
};
use ferro_transport::join::{
    Admission, Admitted, JoinError, JoiningHost, Levels, NewHost, Refusal, Registrar, join_by_clock,
};
use ferro_transport::tls::{Channel, Endpoint, Peer, PeerStream, connect};
use ferro_transport::token::{JoinToken, TOKEN_LIFETIME, TokenId, TokenLedger, TokenRecord, TokenSecret};
use ferro_transport::{BoxFuture, UnixTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A directory in memory: tokens and who used them, and who was admitted.
struct Directory {
    level: Mutex<Result<u16, Refusal>>,
    tokens: Mutex<HashMap<TokenId, (TokenRecord, Option<HostId>)>>,
    admitted: Mutex<Vec<JoiningHost>>,
    refuse: Mutex<Option<Refusal>>,
}

impl Default for Directory {
    fn default() -> Self {
        Self {
            level: Mutex::new(Ok(1)),
            tokens: Mutex::default(),
            admitted: Mutex::default(),
            refuse: Mutex::default(),
        }
    }
}

impl TokenLedger for Directory {
    fn find(&self, id: TokenId) -> BoxFuture<'_, Result<Option<TokenRecord>, Refusal>> {
        let found = self.tokens.lock().unwrap().get(&id).map(|(record, _)| record.clone());
        Box::pin(async move { Ok(found) })
    }

    fn consume(&self, id: TokenId, host: HostId) -> BoxFuture<'_, Result<(), Refusal>> {
        let mut tokens = self.tokens.lock().unwrap();
        let result = match tokens.get_mut(&id) {
            None => Err(Refusal::UnknownToken),
            Some((_, Some(_))) => Err(Refusal::Used),
            Some((_, used)) => {
                *used = Some(host);
                Ok(())
            }
        };
        Box::pin(async move { result })
    }
}

impl Admission for Directory {
    fn level(&self) -> BoxFuture<'_, Result<u16, Refusal>> {
        let level = *self.level.lock().unwrap();
        Box::pin(async move { level })
    }

    fn admit(&self, host: JoiningHost) -> BoxFuture<'_, Result<Vec<u8>, Refusal>> {
        let refusal = *self.refuse.lock().unwrap();
        if refusal.is_none() {
            self.admitted.lock().unwrap().push(host);
        }
        Box::pin(async move { refusal.map_or(Ok(b"members".to_vec()), Err) })
    }
}

/// A member that serves joins until it is dropped.
struct Member {
    cluster: Cluster,
    directory: Arc<Directory>,
    addr: SocketAddr,
    serving: tokio::task::JoinHandle<()>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Member {
    async fn start() -> Self {
        Self::start_with(Arc::default()).await
    }

    async fn start_with(directory: Arc<Directory>) -> Self {
        let cluster = Cluster::new(cluster(1));
        let mut endpoint = cluster.endpoint(host(1)).await;
        let addr = endpoint.local_addr();
        let (ledger, admission) = (directory.clone(), directory.clone());
        let registrar = Arc::new(Registrar::new(cluster.ca.clone(), ledger, admission, HOST_CERT_LIFETIME));
        let clock = cluster.clock.clone();
        let serving = tokio::spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                if incoming.channel == Channel::Join {
                    assert_eq!(incoming.peer, Peer::Joiner);
                    let registrar = registrar.clone();
                    let now = rustls::time_provider::TimeProvider::current_time(&*clock).unwrap();
                    tokio::spawn(async move { registrar.serve(incoming, now).await });
                }
            }
        });
        Self { cluster, directory, addr, serving }
    }

    fn token(&self) -> JoinToken {
        self.token_with(CaFingerprint::of(self.cluster.ca.cert()), vec![self.addr])
    }

    fn token_with(&self, ca: CaFingerprint, addrs: Vec<SocketAddr>) -> JoinToken {
        let (id, secret) = (TokenId::generate().unwrap(), TokenSecret::generate().unwrap());
        let expires = at(START + TOKEN_LIFETIME.as_secs());
        let token = JoinToken::new(cluster(1), id, secret, ca, expires, addrs).unwrap();
        self.directory.tokens.lock().unwrap().insert(id, (token.record(), None));
        // What is stored must be of no use to who reads it.
        assert!(!format!("{:?}", token.record()).contains(&format!("{:?}", token.secret())));
        token
    }

    fn admitted(&self) -> usize {
        self.directory.admitted.lock().unwrap().len()
    }

    fn set_level(&self, level: Result<u16, Refusal>) {
        *self.directory.level.lock().unwrap() = level;
    }

    fn is_used(&self, token: &JoinToken) -> bool {
        self.directory.tokens.lock().unwrap()[&token.id()].1.is_some()
    }

    /// All that the member says to a program that says just this on the join channel: its preamble (8 bytes), then a length
    /// (4 bytes) and an answer, if there is one.
    async fn tell(&self, message: &[u8]) -> Vec<u8> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.cluster.ca.cert().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_details(provider, TestClock::new())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"ferro-join/1".to_vec()];
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let tcp = tokio::net::TcpStream::connect(self.addr).await.unwrap();
        let name =
            rustls_pki_types::ServerName::try_from(ferro_transport::identity::host_name_of(host(1))).unwrap();
        let mut stream = connector.connect(name, tcp).await.unwrap();
        stream.write_all(b"\x01\x03FERRO\0").await.unwrap();
        stream.write_all(message).await.unwrap();
        stream.flush().await.unwrap();
        let mut said = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut said)).await;
        assert!(ended.is_ok(), "the member does not hang up");
        said
    }
}

fn newcomer(n: u8) -> NewHost {
    let advertise = "192.0.2.9:7000".parse().unwrap();
    NewHost { host: host(n), name: format!("esx-{n}"), advertise, levels: Levels { oldest: 1, newest: 2 } }
}

fn speaking(n: u8, oldest: u16, newest: u16) -> NewHost {
    NewHost { levels: Levels { oldest, newest }, ..newcomer(n) }
}

async fn try_join(token: &JoinToken, me: &NewHost, dir: &IdentityDir) -> Result<Admitted, JoinError> {
    join_at(token, me, dir, at(START)).await
}

async fn join_at(
    token: &JoinToken,
    me: &NewHost,
    dir: &IdentityDir,
    now: UnixTime,
) -> Result<Admitted, JoinError> {
    join_by_clock(token, me, dir, now, TestClock::new()).await
}

fn refusal(result: Result<Admitted, JoinError>) -> Refusal {
    match result {
        Err(JoinError::Refused { refusal, .. }) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test]
async fn a_token_makes_a_member_that_can_admit_others() {
    let member = Member::start().await;
    let temp = tempfile::tempdir().unwrap();
    let dir = IdentityDir::new(temp.path().join("identity"));
    // Through its text, as an operator carries it.
    let token = JoinToken::parse(&member.token().to_string()).unwrap();
    let admitted = try_join(&token, &newcomer(2), &dir).await.unwrap();
    assert_eq!(admitted.directory(), b"members");
    assert!(!dir.is_member(), "nothing is written before the caller has kept the directory's bytes");
    let identity = admitted.store(at(START)).unwrap();
    assert_eq!((identity.host(), identity.cluster()), (host(2), cluster(1)));
    assert_eq!(dir.load(at(START)).unwrap().host(), host(2));
    assert_eq!(member.directory.admitted.lock().unwrap()[0].name, "esx-2");

    let handle = IdentityHandle::with_clock(identity, TestClock::new()).unwrap();
    let connected = connect(member.addr, Some(host(1)), Channel::Control, &handle).await.unwrap();
    assert_eq!(connected.peer, host(1));

    // The first host is gone for good; the second lets a third in.
    let ca = Arc::new(dir.load_ca().unwrap().expect("the CA key came along"));
    let mut endpoint = Endpoint::bind(loopback(), handle).await.unwrap();
    let token = member.token_with(ca.fingerprint(), vec![endpoint.local_addr()]);
    let directory = member.directory.clone();
    let registrar = Registrar::new(ca, directory.clone(), directory, HOST_CERT_LIFETIME);
    let third = IdentityDir::new(temp.path().join("third"));
    let me = newcomer(3);
    let serve = async { registrar.serve(accept(&mut endpoint).await, at(START)).await };
    let (joined, served) = tokio::join!(try_join(&token, &me, &third), serve);
    assert_eq!(served.unwrap(), host(3));
    joined.unwrap().store(at(START)).unwrap();
    assert!(third.load(at(START)).is_ok());
}

#[tokio::test]
async fn a_used_token_is_refused() {
    let log = Log::capture();
    let member = Member::start().await;
    let temp = tempfile::tempdir().unwrap();
    let token = member.token();
    try_join(&token, &newcomer(2), &IdentityDir::new(temp.path().join("2"))).await.unwrap();
    let again = try_join(&token, &newcomer(3), &IdentityDir::new(temp.path().join("3"))).await;
    let JoinError::Refused { refusal: Refusal::Used, .. } = again.as_ref().unwrap_err() else {
        panic!("{again:?}")
    };
    assert!(again.unwrap_err().to_string().contains("vsanctl cluster token"));
    log.wait_for("already used").await;
    assert_eq!(member.admitted(), 1);
}

#[tokio::test]
async fn of_many_who_hold_one_token_one_gets_in() {
    let member = Member::start().await;
    let temp = tempfile::tempdir().unwrap();
    let token = member.token();
    let mut tries = tokio::task::JoinSet::new();
    for n in 2..10 {
        let (token, dir) = (token.clone(), IdentityDir::new(temp.path().join(n.to_string())));
        tries.spawn(async move { try_join(&token, &newcomer(n), &dir).await.is_ok() });
    }
    let results = tries.join_all().await;
    assert_eq!(results.into_iter().filter(|&joined| joined).count(), 1);
    assert_eq!(member.admitted(), 1);
}

#[tokio::test]
async fn an_expired_token_is_refused_by_both_sides() {
    let log = Log::capture();
    let member = Member::start().await;
    let temp = tempfile::tempdir().unwrap();
    let dir = IdentityDir::new(temp.path().join("2"));
    let token = member.token();
    let late = START + TOKEN_LIFETIME.as_secs() + 1;
    let error = join_at(&token, &newcomer(2), &dir, at(late)).await.unwrap_err();
    assert!(matches!(error, JoinError::Expired), "{error}");
    // A joiner whose clock is behind gets as far as the member, and no further.
    member.cluster.clock.set(late);
    assert_eq!(refusal(try_join(&token, &newcomer(2), &dir).await), Refusal::Expired);
    log.wait_for("expired").await;
    assert_eq!(member.admitted(), 0);
}

#[tokio::test]
async fn a_forged_token_is_refused_and_does_not_spend_the_real_one() {
    let log = Log::capture();
    let member = Member::start().await;
    let temp = tempfile::tempdir().unwrap();
    let dir = IdentityDir::new(temp.path().join("2"));
    let real = member.token();
    let forged = |id, cluster| {
        let secret = TokenSecret::from_bytes([0; 32]);
        JoinToken::new(cluster, id, secret, real.ca(), real.expires(), vec![member.addr]).unwrap()
    };
    let same_id = forged(real.id(), cluster(1));
    assert_eq!(refusal(try_join(&same_id, &newcomer(2), &dir).await), Refusal::UnknownToken);
    let other_id = forged(TokenId([9; 16]), cluster(1));
    assert_eq!(refusal(try_join(&other_id, &newcomer(2), &dir).await), Refusal::UnknownToken);
    log.wait_for("does not know this token").await;
    try_join(&real, &newcomer(2), &dir).await.unwrap();
}

#[tokio::test]
async fn a_member_of_another_ca_is_not_told_the_secret() {
    let member = Member::start().await;
    let temp = tempfile::tempdir().unwrap();
    let dir = IdentityDir::new(temp.path().join("2"));
    let other = Cluster::new(cluster(1));
    let token = member.token_with(CaFingerprint::of(other.ca.cert()), vec![member.addr]);
    let error = try_join(&token, &newcomer(2), &dir).await.unwrap_err();
    assert!(matches!(error, JoinError::Unreachable(1, _)), "{error}");
    assert!(error.to_string().contains("not a host of this cluster"), "{error}");
    assert_eq!(member.admitted(), 0);
}

#[tokio::test]
async fn dead_addresses_and_members_without_quorum_are_passed_over() {
    let directory = Arc::new(Directory::default());
    let member = Member::start_with(directory).await;
    let temp = tempfile::tempdir().unwrap();
    let dir = IdentityDir::new(temp.path().join("2"));
    let dead = {
        let listener = std::net::TcpListener::bind(loopback()).unwrap();
        listener.local_addr().unwrap()
    };
    let fingerprint = CaFingerprint::of(member.cluster.ca.cert());
    let token = member.token_with(fingerprint, vec![dead, member.addr]);
    try_join(&token, &newcomer(2), &dir).await.unwrap();
    let lost = member.token_with(fingerprint, vec![dead, dead]);
    let error = try_join(&lost, &newcomer(3), &dir).await.unwrap_err();
    assert!(matches!(error, JoinError::Unreachable(2, _)), "{error}");
    *member.directory.refuse.lock().unwrap() = Some(Refusal::NotReady);
    let token = member.token();
    assert_eq!(refusal(try_join(&token, &newcomer(4), &dir).await), Refusal::NotReady);
    *member.directory.refuse.lock().unwrap() = Some(Refusal::HostExists);
    let token = member.token();
    assert_eq!(refusal(try_join(&token, &newcomer(2), &dir).await), Refusal::HostExists);
}

#[tokio::test]
async fn a_bad_name_or_an_existing_identity_costs_no_token() {
    let member = Member::start().await;
    let temp = tempfile::tempdir().unwrap();
    let dir = IdentityDir::new(temp.path().join("2"));
    let token = member.token();
    let unnamed = NewHost { name: "two words".to_owned(), ..newcomer(2) };
    assert_eq!(refusal(try_join(&token, &unnamed, &dir).await), Refusal::BadName);
    let occupied = member.cluster.dir(host(1));
    let error = try_join(&token, &newcomer(2), &occupied).await.unwrap_err();
    assert!(matches!(error, JoinError::Identity(IdentityError::AlreadyAMember(_))), "{error}");
    try_join(&token, &newcomer(2), &dir).await.unwrap();
}

#[tokio::test]
async fn a_request_that_is_nonsense_or_too_long_is_refused() {
    let member = Member::start().await;
    // Length and body; and whether an answer (version 1, refused) may be expected.
    let another_version = [&3u32.to_le_bytes()[..], &[9, 9, 9]].concat();
    let garbage = [&3u32.to_le_bytes()[..], &[1, 9, 9]].concat();
    let garbage_with_levels = [&3u32.to_le_bytes()[..], &[2, 9, 9]].concat();
    let too_long = u32::MAX.to_le_bytes().to_vec();
    let told = [(another_version, true), (garbage, true), (garbage_with_levels, true), (too_long, false)];
    for (request, answered) in told {
        let answer = member.tell(&request).await;
        assert_eq!(answer.len() > 8, answered, "{answer:?}");
        if answered {
            assert_eq!(answer[12..14], [1, 1]);
        }
    }
    assert_eq!(member.admitted(), 0);
}

#[tokio::test]
async fn a_joiner_that_does_not_speak_the_level_keeps_its_token() {
    let log = Log::capture();
    let member = Member::start().await;
    let temp = tempfile::tempdir().unwrap();
    let dir = IdentityDir::new(temp.path().join("2"));
    let token = member.token();
    member.set_level(Ok(3));
    for (oldest, newest) in [(1, 2), (4, 5), (2, 2), (5, 1)] {
        let refused = refusal(try_join(&token, &speaking(2, oldest, newest), &dir).await);
        assert_eq!(refused, Refusal::FeatureLevel { cluster: 3, oldest, newest });
        assert!(!member.is_used(&token));
    }
    log.wait_for("the cluster is at feature level 3, and the joining host's vsand speaks levels 1 to 2")
        .await;
    member.set_level(Err(Refusal::NotReady));
    assert_eq!(refusal(try_join(&token, &newcomer(2), &dir).await), Refusal::NotReady);
    assert!(!member.is_used(&token));
    assert_eq!(member.admitted(), 0);
    assert!(!dir.is_member());

    member.set_level(Ok(3));
    try_join(&token, &speaking(2, 3, 3), &dir).await.unwrap().store(at(START)).unwrap();
    assert!(member.is_used(&token));
    assert_eq!(member.admitted(), 1);
}

#[tokio::test]
async fn a_joiner_without_a_good_token_is_not_told_the_level() {
    let member = Member::start().await;
    let temp = tempfile::tempdir().unwrap();
    let dir = IdentityDir::new(temp.path().join("2"));
    let real = member.token();
    let secret = TokenSecret::from_bytes([0; 32]);
    let forged =
        JoinToken::new(cluster(1), real.id(), secret, real.ca(), real.expires(), vec![member.addr]).unwrap();
    member.set_level(Ok(9));
    assert_eq!(refusal(try_join(&forged, &newcomer(2), &dir).await), Refusal::UnknownToken);
}

/// The request as the releases of before levels make it.
type RequestV1 = (u8, ClusterId, TokenId, TokenSecret, HostId, String, SocketAddr, Vec<u8>);
/// What those are sent: cluster, certificate and key of the CA, the host's certificate, the directory's bytes.
type Welcome = (ClusterId, Vec<u8>, Vec<u8>, Vec<u8>, Vec<u8>);

fn framed(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_le_bytes()[..], body].concat()
}

#[tokio::test]
async fn a_joiner_of_before_levels_is_let_in_at_level_1_alone() {
    let log = Log::capture();
    let member = Member::start().await;
    let token = member.token();
    let signing_request = HostKey::generate(host(2)).unwrap().signing_request().unwrap();
    let advertise = "192.0.2.9:7000".parse().unwrap();
    let (id, secret) = (token.id(), token.secret().clone());
    let request: RequestV1 =
        (1, cluster(1), id, secret, host(2), "esx-2".to_owned(), advertise, signing_request);
    let request = framed(&postcard::to_stdvec(&request).unwrap());

    member.set_level(Ok(2));
    let version = postcard::to_stdvec(&(1u8, Err::<Welcome, _>(Refusal::Version))).unwrap();
    assert_eq!(member.tell(&request).await[8..], framed(&version));
    assert!(!member.is_used(&token));
    assert_eq!(member.admitted(), 0);
    // Its operator is told that it is another release, ours which.
    log.wait_for("the cluster is at feature level 2, and the joining host's vsand speaks level 1;").await;

    member.set_level(Ok(1));
    let answer = member.tell(&request).await;
    let (version, outcome): (u8, Result<Welcome, Refusal>) = postcard::from_bytes(&answer[12..]).unwrap();
    assert_eq!((version, outcome.unwrap().4), (1, b"members".to_vec()));
    assert!(member.is_used(&token));
    assert_eq!(member.admitted(), 1);
}

/// A member of another release, for as long as the test runs: of before levels, or, if it `understands` nothing, of one that
/// has given our versions up.
struct OtherRelease {
    cluster: Cluster,
    token: JoinToken,
    /// The versions that it was asked in.
    asked: Arc<Mutex<Vec<u8>>>,
}

impl OtherRelease {
    async fn start(understands: Option<u8>) -> Self {
        let own = Cluster::new(cluster(1));
        let mut endpoint = own.endpoint(host(1)).await;
        let (id, secret) = (TokenId::generate().unwrap(), TokenSecret::generate().unwrap());
        let ca = own.ca.clone();
        let addrs = vec![endpoint.local_addr()];
        let expires = at(START + TOKEN_LIFETIME.as_secs());
        let token = JoinToken::new(cluster(1), id, secret, ca.fingerprint(), expires, addrs).unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let heard = asked.clone();
        tokio::spawn(async move {
            while let Some(mut incoming) = endpoint.accept().await {
                let request = hear(&mut incoming.stream).await;
                heard.lock().unwrap().push(request[0]);
                let outcome = if Some(request[0]) == understands {
                    Ok(welcome_of_version_1(&ca, &request))
                } else {
                    Err(Refusal::Version)
                };
                let answer = framed(&postcard::to_stdvec(&(1u8, outcome)).unwrap());
                incoming.stream.write_all(&answer).await.unwrap();
                incoming.stream.shutdown().await.unwrap();
            }
        });
        Self { cluster: own, token, asked }
    }

    fn asked(&self) -> Vec<u8> {
        self.asked.lock().unwrap().clone()
    }
}

async fn hear(stream: &mut PeerStream) -> Vec<u8> {
    let len = stream.read_u32_le().await.unwrap();
    let mut body = vec![0; len as usize];
    stream.read_exact(&mut body).await.unwrap();
    body
}

fn welcome_of_version_1(ca: &ClusterCa, request: &[u8]) -> Welcome {
    let (request, rest): (RequestV1, _) = postcard::take_from_bytes(request).unwrap();
    assert!(rest.is_empty(), "that is more than version 1 says");
    let (_, cluster, _, _, host, _, _, signing_request) = request;
    let cert = ca.issue(&signing_request, host, at(START), HOST_CERT_LIFETIME).unwrap();
    (cluster, ca.cert().to_vec(), ca.key_pkcs8().to_vec(), cert.to_vec(), b"members".to_vec())
}

#[tokio::test]
async fn a_joiner_asks_a_member_of_before_levels_once_more_in_version_1() {
    let member = OtherRelease::start(Some(1)).await;
    let dir = member.cluster.dir(host(2));
    let admitted = try_join(&member.token, &newcomer(2), &dir).await.unwrap();
    assert_eq!(admitted.directory(), b"members");
    assert_eq!(admitted.store(at(START)).unwrap().host(), host(2));
    assert_eq!(member.asked(), [2, 1]);
}

#[tokio::test]
async fn a_joiner_that_does_not_speak_level_1_asks_no_member_of_before_levels_again() {
    let member = OtherRelease::start(Some(1)).await;
    let dir = member.cluster.dir(host(2));
    assert_eq!(refusal(try_join(&member.token, &speaking(2, 2, 3), &dir).await), Refusal::Version);
    assert_eq!(member.asked(), [2]);
    // Not for want of a good token.
    try_join(&member.token, &speaking(2, 1, 1), &dir).await.unwrap();
}

#[tokio::test]
async fn a_joiner_that_no_version_helps_asks_twice_and_gives_up() {
    let member = OtherRelease::start(None).await;
    let dir = member.cluster.dir(host(2));
    assert_eq!(refusal(try_join(&member.token, &newcomer(2), &dir).await), Refusal::Version);
    assert_eq!(member.asked(), [2, 1]);
}
