use proptest::prelude::*;

use super::*;

fn address() -> impl Strategy<Value = SocketAddr> {
    let ip = prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)];
    (ip, 1u16..).prop_map(SocketAddr::from).prop_filter("usable", usable)
}

fn token() -> impl Strategy<Value = JoinToken> {
    let ids = (any::<[u8; 16]>(), any::<[u8; 16]>(), any::<[u8; 32]>(), any::<[u8; 32]>());
    (ids, any::<u64>(), prop::collection::vec(address(), 1..=ADDRESSES_MAX)).prop_map(
        |((cluster, id, secret, ca), expires, addresses)| {
            let expires = UnixTime::since_unix_epoch(Duration::from_secs(expires));
            let cluster = ClusterId::from_bytes(cluster);
            JoinToken::new(cluster, TokenId(id), TokenSecret(secret), CaFingerprint(ca), expires, addresses)
                .unwrap()
        },
    )
}

fn sample() -> JoinToken {
    JoinToken::new(
        ClusterId::from_bytes([1; 16]),
        TokenId([2; 16]),
        TokenSecret([3; 32]),
        CaFingerprint([4; 32]),
        UnixTime::since_unix_epoch(Duration::from_secs(5)),
        vec!["192.0.2.1:7000".parse().unwrap()],
    )
    .unwrap()
}

/// The text of these bytes with a right checksum: what a forger who knows the format would send.
fn forge(mut content: Vec<u8>) -> String {
    let sum = checksum(&content);
    content.extend(sum);
    format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(content))
}

fn content(token: &JoinToken) -> Vec<u8> {
    let text = token.to_string();
    let mut bytes = URL_SAFE_NO_PAD.decode(text.strip_prefix(PREFIX).unwrap()).unwrap();
    bytes.truncate(bytes.len() - CHECKSUM_BYTES);
    bytes
}

proptest! {
    #[test]
    fn a_token_survives_its_text(token in token()) {
        let text = token.to_string();
        prop_assert!(text.len() <= TEXT_BYTES_MAX);
        prop_assert_eq!(JoinToken::parse(&text).unwrap(), token.clone());
        prop_assert_eq!(JoinToken::parse(&format!(" {text}\n")).unwrap(), token);
    }

    #[test]
    fn garbage_is_refused(text in ".*", bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        prop_assert!(JoinToken::parse(&text).is_err());
        let (prefixed, encoded) = (format!("{PREFIX}{text}"), format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes)));
        prop_assert!(JoinToken::parse(&prefixed).is_err());
        prop_assert!(JoinToken::parse(&encoded).is_err());
    }

    #[test]
    fn what_parses_with_a_right_checksum_is_canonical(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let mut bytes = bytes;
        if let Some(version) = bytes.first_mut() {
            *version = VERSION;
        }
        let text = forge(bytes);
        if let Ok(token) = JoinToken::parse(&text) {
            prop_assert_eq!(token.to_string(), text);
        }
    }

    #[test]
    fn a_mistyped_letter_is_noticed(token in token(), at in any::<prop::sample::Index>()) {
        let mut text = token.to_string().into_bytes();
        let at = PREFIX.len() + at.index(text.len() - PREFIX.len());
        text[at] = if text[at] == b'x' { b'y' } else { b'x' };
        prop_assert!(JoinToken::parse(std::str::from_utf8(&text).unwrap()).is_err());
    }
}

#[test]
fn every_cut_is_noticed() {
    let text = sample().to_string();
    for end in 0..text.len() {
        assert!(JoinToken::parse(&text[..end]).is_err(), "{end}");
    }
    let content = content(&sample());
    for end in 1..content.len() {
        assert!(JoinToken::parse(&forge(content[..end].to_vec())).is_err(), "{end}");
    }
}

#[test]
fn what_is_wrong_is_named() {
    assert_eq!(JoinToken::parse("hello"), Err(TokenError::NotAToken));
    assert_eq!(JoinToken::parse(""), Err(TokenError::NotAToken));
    assert_eq!(JoinToken::parse("ferro1."), Err(TokenError::Damaged));
    let mut newer = content(&sample());
    newer[0] = 2;
    assert_eq!(JoinToken::parse(&forge(newer)), Err(TokenError::Version(2)));
    let mut none = content(&sample());
    none[1] = 0;
    none.truncate(FIXED_BYTES);
    assert_eq!(JoinToken::parse(&forge(none)), Err(TokenError::Addresses));
    let mut port_zero = content(&sample());
    let last = port_zero.len();
    port_zero[last - 2..].fill(0);
    assert_eq!(JoinToken::parse(&forge(port_zero)), Err(TokenError::Addresses));
    let mut longer = content(&sample());
    longer.push(0);
    assert_eq!(JoinToken::parse(&forge(longer)), Err(TokenError::Damaged));
}

#[test]
fn a_record_opens_for_its_secret_until_it_expires() {
    let token = sample();
    let record = token.record();
    let at = |s| UnixTime::since_unix_epoch(Duration::from_secs(s));
    assert_eq!(record.check(token.secret(), at(5)), Ok(()));
    assert_eq!(record.check(token.secret(), at(6)), Err(Refusal::Expired));
    assert_eq!(record.check(&TokenSecret([9; 32]), at(5)), Err(Refusal::UnknownToken));
    assert_eq!(record.check(&TokenSecret([9; 32]), at(6)), Err(Refusal::UnknownToken));
}

#[test]
fn the_secret_is_not_in_the_debug_output() {
    let shown = format!("{:?} {:?}", sample(), sample().record());
    assert!(!shown.contains("3, 3, 3") && !shown.contains("030303"), "{shown}");
}
