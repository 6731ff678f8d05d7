//! What somebody who wants to join sends, and what stands in the token that an operator carries.

use std::sync::OnceLock;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ferro_protocol::ids::{ClusterId, HostId};
use ferro_transport::UnixTime;
use ferro_transport::fuzzing;
use ferro_transport::identity::{CaFingerprint, ClusterCa, HostKey, host_id_of};
use ferro_transport::token::{JoinToken, TEXT_BYTES_MAX, TokenId, TokenSecret};
use sha2::{Digest, Sha256};

const HOST: HostId = HostId::from_bytes([5; 16]);

fn now() -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(1_800_000_000))
}

/// One CA for all cases. Its key is another each time, and nothing that is tested depends on it.
fn ca() -> &'static ClusterCa {
    static CA: OnceLock<ClusterCa> = OnceLock::new();
    CA.get_or_init(|| {
        ClusterCa::create(ClusterId::from_bytes([1; 16]), now(), Duration::from_secs(1 << 20))
            .expect("a CA can be made")
    })
}

/// The bytes as a token's text, and as its content under a right checksum: what a forger would send who knows the format.
pub(super) fn join_token(data: &[u8]) {
    read_token(&String::from_utf8_lossy(data));
    let mut content = data.to_vec();
    let sum = Sha256::digest(data);
    content.extend_from_slice(&sum[..4]);
    read_token(&format!("ferro1.{}", URL_SAFE_NO_PAD.encode(content)));
}

fn read_token(text: &str) {
    match JoinToken::parse(text) {
        Ok(token) => {
            assert!((1..=16).contains(&token.addresses().len()));
            let written = token.to_string();
            assert!(written.len() <= TEXT_BYTES_MAX);
            assert_eq!(JoinToken::parse(&written).as_ref(), Ok(&token));
            // The secret is nowhere but in the text.
            let debug = format!("{token:?} {:?}", token.record());
            assert!(!debug.contains(written.strip_prefix("ferro1.").expect("it begins so")));
        }
        Err(error) => {
            let said = error.to_string();
            assert!(!said.is_empty() && said.len() < 512, "an error does not repeat its input");
        }
    }
}

pub(super) fn token_seeds() -> Vec<Vec<u8>> {
    let token = |addresses: &[&str]| {
        let addresses = addresses.iter().map(|a| a.parse().expect("seeds are valid")).collect();
        let (cluster, id) = (ClusterId::from_bytes([1; 16]), TokenId([2; 16]));
        let (secret, ca) = (TokenSecret::from_bytes([3; 32]), CaFingerprint([4; 32]));
        JoinToken::new(cluster, id, secret, ca, now(), addresses).expect("seeds are valid").to_string()
    };
    let texts = [
        token(&["192.0.2.1:7000"]),
        token(&["[2001:db8::1]:7000", "192.0.2.2:1"]),
        token(&["10.0.0.1:65535"; 16]),
    ];
    let mut seeds = Vec::new();
    for text in texts {
        let body = text.strip_prefix("ferro1.").expect("it begins so");
        let mut content = URL_SAFE_NO_PAD.decode(body).expect("it is base64");
        content.truncate(content.len() - 4);
        seeds.push(content);
        seeds.push(text.into_bytes());
    }
    seeds
}

/// Both messages of the join exchange.
pub(super) fn join_messages(data: &[u8]) {
    fuzzing::join_messages(data);
    // Once more behind the right version, which few mutations leave alone.
    let mut versioned = data.to_vec();
    for version in [1, 2] {
        let Some(first) = versioned.first_mut() else { return };
        *first = version;
        fuzzing::join_messages(&versioned);
    }
}

pub(super) fn message_seeds() -> Vec<Vec<u8>> {
    // As in the module `join::wire`: byte strings, ids of hosts and clusters and texts behind their length, in postcard.
    let mut request = vec![1, 16];
    request.resize(request.len() + 16, 1);
    // The token's id and its secret are of a length that is known.
    request.resize(request.len() + 16, 2);
    request.resize(request.len() + 32, 3);
    request.push(16);
    request.resize(request.len() + 16, 5);
    request.extend(b"\x04host\x00\xc0\x00\x02\x01\xd8\x36\x05hello");
    // Version 2 says at its end which feature levels the host knows.
    let mut later = request.clone();
    later[0] = 2;
    later.extend([1, 2]);
    let mut welcome = vec![1, 0, 16];
    welcome.resize(welcome.len() + 16, 1);
    welcome.extend(b"\x04cert\x03key\x04cert\x03dir");
    let refusals = (0..11).map(|n| vec![1, 1, n]);
    let with_level = vec![1, 1, 11, 2, 1, 1];
    [request, later, welcome, with_level].into_iter().chain(refusals).collect()
}

/// A request for a certificate from a host that holds a good token.
pub(super) fn signing_request(data: &[u8]) {
    let Ok(cert) = ca().issue(data, HOST, now(), Duration::from_secs(1 << 10)) else { return };
    // Whatever the request says, the certificate is this host's and nobody's else.
    assert_eq!(host_id_of(&cert), Ok(HOST));
    assert!(ClusterCa::from_parts(cert, &ca().key_pkcs8()).is_err(), "a host's certificate is no CA's");
}

pub(super) fn request_seeds() -> Vec<Vec<u8>> {
    let request = |host| HostKey::generate(host).and_then(|key| key.signing_request());
    [HOST, HostId::from_bytes([6; 16])].map(|host| request(host).expect("a key can be made")).to_vec()
}

/// What a peer shows in the handshake, and what a join response says is the CA.
pub(super) fn certificate(data: &[u8]) {
    let cert = data.to_vec().into();
    if let Ok(host) = host_id_of(&cert) {
        assert_eq!(host_id_of(&cert), Ok(host));
    }
    // The key is the right one for the CA's own certificate, so it gets past the comparison of the two.
    if let Ok(ca) = ClusterCa::from_parts(cert, &ca().key_pkcs8()) {
        assert_eq!(ca.cert().as_ref(), data);
    }
}

pub(super) fn certificate_seeds() -> Vec<Vec<u8>> {
    let request = HostKey::generate(HOST).and_then(|key| key.signing_request()).expect("a key can be made");
    let host = ca().issue(&request, HOST, now(), Duration::from_secs(1 << 10)).expect("seeds are valid");
    vec![ca().cert().to_vec(), host.to_vec()]
}
