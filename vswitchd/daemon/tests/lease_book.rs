//! The rules by which addresses are given, and the document in which they are written down.

mod guest;

use std::net::Ipv4Addr;

use ferro_protocol::net::Mac;
use guest::{mac, name};
use vswitchd::endpoint::{
    BadBook, Book, DECLINED_S, LEASES_MAX, Lease, LeaseAnswer, LeaseWanted, MARGIN_S, PORT_LEASES_MAX,
    Refusal, Rules, Use, WallSeconds, Wish,
};

const NOW: WallSeconds = WallSeconds(1_800_000_000);
const LEASE_S: u64 = 600;

fn ip(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, n)
}

/// Addresses 10 to 19; port `own` is known as machine 1; machine 9 has address 15.
fn rules() -> Rules {
    Rules {
        gateway: ip(1),
        prefix: 24,
        pool: (ip(10), ip(19)),
        lease_s: LEASE_S as u32,
        known: [(mac(1), name("own"))].into(),
        reserved: [(ip(15), mac(9))].into(),
    }
}

fn wish(port: &str, mac: Mac, ip: Ipv4Addr, wish: Wish) -> LeaseWanted {
    LeaseWanted { group: name("web"), port: name(port), mac, ip, wish }
}

fn give(book: &mut Book, at: WallSeconds, port: &str, machine: Mac, ip: Ipv4Addr) -> Result<Lease, Refusal> {
    match book.apply(&rules(), at, &wish(port, machine, ip, Wish::Lease)) {
        LeaseAnswer::Granted(lease) => Ok(lease),
        LeaseAnswer::Refused { why, .. } => Err(why),
        LeaseAnswer::Ended { .. } => panic!("it was not ended"),
    }
}

#[test]
fn an_address_has_one_machine_until_its_time_is_over() {
    let mut book = Book::default();
    let lease = give(&mut book, NOW, "a", mac(2), ip(10)).unwrap();
    assert_eq!(lease.until, NOW.plus(LEASE_S));
    assert_eq!(give(&mut book, NOW, "b", mac(3), ip(10)), Err(Refusal::Taken));
    let late = NOW.plus(LEASE_S + MARGIN_S);
    assert_eq!(give(&mut book, WallSeconds(late.0 - 1), "b", mac(3), ip(10)), Err(Refusal::Taken));
    assert!(give(&mut book, late, "b", mac(3), ip(10)).is_ok());
    assert_eq!(book.of(mac(2)), None);
    // A known machine's has no end.
    give(&mut book, NOW, "own", mac(1), ip(11)).unwrap();
    assert_eq!(give(&mut book, NOW.plus(1 << 40), "b", mac(4), ip(11)), Err(Refusal::Taken));
    // One address a machine: the old one is free.
    give(&mut book, late, "b", mac(3), ip(12)).unwrap();
    assert!(give(&mut book, late, "a", mac(5), ip(10)).is_ok());
    assert_eq!(book.of(mac(3)).map(|lease| lease.ip), Some(ip(12)));
}

#[test]
fn what_is_not_to_be_given_is_not() {
    let mut book = Book::default();
    for bad in [ip(9), ip(20), ip(1), ip(0), Ipv4Addr::new(10, 0, 1, 12)] {
        assert_eq!(give(&mut book, NOW, "a", mac(2), bad), Err(Refusal::NotInPool), "{bad}");
    }
    assert_eq!(give(&mut book, NOW, "a", mac(2), ip(15)), Err(Refusal::Taken));
    assert!(give(&mut book, NOW, "a", mac(9), ip(15)).is_ok(), "it is in the configuration");
    assert_eq!(give(&mut book, NOW, "a", mac(1), ip(10)), Err(Refusal::NotYours));
    assert_eq!(book.leases().count(), 0);
    let edges = Rules { prefix: 29, pool: (ip(8), ip(15)), ..rules() };
    assert!(!edges.gives(ip(8)) && edges.gives(ip(9)) && edges.gives(ip(14)) && !edges.gives(ip(15)));
    let pair = Rules { prefix: 31, pool: (ip(8), ip(9)), ..rules() };
    assert!(pair.gives(ip(8)) && pair.gives(ip(9)));
}

#[test]
fn a_port_has_a_limit_and_what_it_declines_counts() {
    let wide = Rules { prefix: 16, pool: (ip(10), Ipv4Addr::new(10, 0, 9, 0)), ..rules() };
    let mut book = Book::default();
    let inner = |n: usize| Mac([0x52, 1, 0, 0, 0, n as u8]);
    let give = |book: &mut Book, n: usize, at: WallSeconds| {
        book.apply(&wide, at, &wish("a", inner(n), Ipv4Addr::new(10, 0, 1, n as u8), Wish::Lease))
    };
    for n in 0..PORT_LEASES_MAX {
        assert!(matches!(give(&mut book, n, NOW), LeaseAnswer::Granted(_)));
        let decline = wish("a", inner(n), Ipv4Addr::new(10, 0, 1, n as u8), Wish::Decline);
        book.apply(&wide, NOW, &decline);
    }
    let refused = give(&mut book, 99, NOW);
    assert!(matches!(refused, LeaseAnswer::Refused { why: Refusal::PortLimit, .. }));
    assert!(matches!(give(&mut book, 99, NOW.plus(DECLINED_S)), LeaseAnswer::Granted(_)));
}

#[test]
fn what_nobody_ever_had_is_offered_first() {
    let mut book = Book::default();
    for n in 10..=18 {
        if n != 15 {
            give(&mut book, NOW.plus(u64::from(n)), "a", mac(n + 100), ip(n)).unwrap();
        }
    }
    let late = NOW.plus(1_000_000);
    let candidate = |book: &Book, asks: Option<Ipv4Addr>, avoid: &[Ipv4Addr]| {
        book.candidate(&rules(), late, mac(3), asks, |ip| avoid.contains(&ip))
    };
    assert_eq!(candidate(&book, None, &[]), Some(ip(19)));
    assert_eq!(candidate(&book, Some(ip(12)), &[]), Some(ip(12)), "unless it asks for one that is free");
    assert_eq!(candidate(&book, None, &[ip(19)]), Some(ip(10)), "then what was given back longest ago");
    assert_eq!(candidate(&book, Some(ip(15)), &[ip(19)]), Some(ip(10)), "never another's");
    let all: Vec<Ipv4Addr> = (10..=19).map(ip).collect();
    assert_eq!(candidate(&book, None, &all), None);
    assert_eq!(book.candidate(&rules(), late, mac(9), None, |_| false), Some(ip(15)));
    assert_eq!(book.candidate(&rules(), late, mac(112), None, |_| false), Some(ip(12)), "its own again");
}

#[test]
fn two_books_become_one() {
    let (mut here, mut there) = (Book::default(), Book::default());
    give(&mut here, NOW, "a", mac(2), ip(10)).unwrap();
    give(&mut here, NOW, "a", mac(3), ip(11)).unwrap();
    give(&mut there, NOW.plus(5), "a", mac(2), ip(10)).unwrap();
    give(&mut there, NOW, "b", mac(4), ip(11)).unwrap();
    give(&mut there, NOW, "b", mac(5), ip(12)).unwrap();
    let all: Vec<Lease> = there.leases().cloned().collect();
    let clashes = here.merge(&rules(), NOW, &all);
    assert_eq!(clashes.iter().map(|lease| lease.mac).collect::<Vec<_>>(), [mac(4)]);
    let now: Vec<_> = here.leases().map(|lease| (lease.ip, lease.mac)).collect();
    assert_eq!(now, [(ip(10), mac(2)), (ip(11), mac(3)), (ip(12), mac(5))]);
    assert_eq!(here.of(mac(2)).map(|lease| lease.until), Some(NOW.plus(LEASE_S + 5)));
    assert_eq!(here.merge(&rules(), NOW, &all).len(), 1, "again comes to the same");
}

#[test]
fn a_full_book_fits_into_a_document_and_comes_back() {
    let mut book = Book::default();
    let long = "p".repeat(63);
    for n in 0..LEASES_MAX as u32 {
        let [a, b, c, d] = n.to_be_bytes();
        book.put(Lease {
            ip: Ipv4Addr::from_bits(u32::MAX - n),
            mac: Mac([0x52, 0xff, a, b, c, d]),
            port: name(&long),
            until: WallSeconds(u64::MAX),
            state: Use::Declined,
        });
    }
    let text = book.encode().unwrap();
    assert!(text.len() <= 1 << 20, "{} bytes", text.len());
    assert_eq!(Book::decode(&text).unwrap(), book);
    assert!(std::str::from_utf8(&text).unwrap().starts_with("{\"version\":1,\"leases\":[{\"ip\":"));
    // Full is full, unless somebody's time is over.
    let wide = Rules { prefix: 8, pool: (ip(10), Ipv4Addr::new(10, 9, 0, 0)), ..rules() };
    let one_more = wish("a", mac(2), ip(10), Wish::Lease);
    let refused = book.apply(&wide, NOW, &one_more);
    assert!(matches!(refused, LeaseAnswer::Refused { why: Refusal::Full, .. }));
    let granted = book.apply(&wide, WallSeconds(u64::MAX), &one_more);
    assert!(matches!(granted, LeaseAnswer::Granted(_)));
    assert_eq!(book.leases().count(), LEASES_MAX);
}

#[test]
fn documents_that_are_none_are_refused() {
    let lease = r#"{"ip":"10.0.0.10","mac":"52:00:00:00:00:01","port":"a","until":5,"state":"held"}"#;
    let text = |version: u32, leases: &str| format!("{{\"version\":{version},\"leases\":[{leases}]}}");
    assert_eq!(Book::decode(text(1, lease).as_bytes()).unwrap().leases().count(), 1);
    let newer = Book::decode(text(2, lease).as_bytes()).unwrap_err();
    assert_eq!(newer.to_string(), "the lease book is of version 2, known is 1: upgrade this host");
    let twice = Book::decode(text(1, &format!("{lease},{lease}")).as_bytes());
    assert!(matches!(twice, Err(BadBook::Twice(address)) if address == ip(10)));
    for bad in ["", "{}", "[]", &text(1, &lease.replace("held", "lent")), &text(1, &lease.replace('a', " "))]
    {
        assert!(matches!(Book::decode(bad.as_bytes()), Err(BadBook::Text(_))), "{bad}");
    }
}
