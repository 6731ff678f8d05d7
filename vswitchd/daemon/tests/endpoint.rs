//! Gateways as guests meet them, frame by frame; the plane is a book in memory.

mod guest;

use std::net::Ipv4Addr;
use std::time::Duration;

use dhcproto::v4::{DhcpOption, MessageType, OptionCode};
use ferro_protocol::net::{Mac, NetName};
use guest::{GATEWAY, Host, LEASE_S, Said, discover, mac, message, name, request};
use vswitchd::endpoint::{Book, Lease, LeaseAnswer, PORT_LEASES_MAX, Refusal, Use, WallSeconds, Wish};

const UNSET: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

fn ip(text: &str) -> Ipv4Addr {
    text.parse().expect("an address")
}

fn kind(said: &[Said]) -> Vec<MessageType> {
    said.iter().filter_map(|it| it.message.opts().msg_type()).collect()
}

#[test]
fn a_guest_gets_an_address_and_keeps_it() {
    let mut host = Host::new();
    let said = host.dhcp("vm1", &discover(mac(1)));
    assert_eq!(kind(&said), [MessageType::Offer]);
    let offer = &said[0];
    assert_eq!((offer.to_mac, offer.from_ip), (mac(1), GATEWAY), "to its card alone");
    let own = offer.message.yiaddr();
    assert_eq!(offer.to_ip, own);
    assert!((ip("10.0.0.10")..=ip("10.0.0.29")).contains(&own));
    assert_eq!(host.book.leases().count(), 0, "an offer is not written");

    let mut ask = request(mac(1), Some(GATEWAY), Some(own), UNSET);
    let client = DhcpOption::ClientIdentifier(b"same in all copies".to_vec());
    ask.opts_mut().insert(client.clone());
    assert!(host.dhcp_unanswered("vm1", &ask).is_empty(), "nothing is said before it is written");
    let said = host.settle();
    assert_eq!(kind(&said), [MessageType::Ack]);
    let ack = &said[0].message;
    assert_eq!((ack.yiaddr(), ack.xid(), ack.chaddr()), (own, ask.xid(), &mac(1).0[..]));
    let option = |code| ack.opts().get(code).cloned();
    assert_eq!(option(OptionCode::SubnetMask), Some(DhcpOption::SubnetMask(ip("255.255.255.0"))));
    assert_eq!(option(OptionCode::Router), Some(DhcpOption::Router(vec![GATEWAY])));
    assert_eq!(option(OptionCode::ServerIdentifier), Some(DhcpOption::ServerIdentifier(GATEWAY)));
    assert_eq!(option(OptionCode::InterfaceMtu), Some(DhcpOption::InterfaceMtu(1450)));
    assert_eq!(option(OptionCode::AddressLeaseTime), Some(DhcpOption::AddressLeaseTime(LEASE_S)));
    assert_eq!(option(OptionCode::ClientIdentifier), Some(client));

    // The daemon starts anew, from what was written.
    let text = host.book.encode().expect("it can be written");
    let mut host = Host::with(Book::decode(&text).expect("it can be read"));
    host.pass(Duration::from_secs(u64::from(LEASE_S) / 2));
    let said = host.dhcp("vm1", &request(mac(1), None, None, own));
    assert_eq!((kind(&said), said[0].to_ip), (vec![MessageType::Ack], own));
    assert_eq!(host.left(own), u64::from(LEASE_S), "it is written for longer");
    let again = host.dhcp("vm1", &discover(mac(1)));
    assert_eq!(again[0].message.yiaddr(), own, "it gets the same again");
}

#[test]
fn what_the_configuration_gives_is_given_at_once_and_to_nobody_else() {
    let mut host = Host::new();
    host.endpoints = Host::endpoints();
    // Without any book.
    let fixed = ip("10.0.0.20");
    let said = host.dhcp("fixed", &discover(mac(9)));
    assert_eq!((kind(&said), said[0].message.yiaddr()), (vec![MessageType::Offer], fixed));
    let said = host.dhcp("fixed", &request(mac(9), Some(GATEWAY), Some(fixed), UNSET));
    assert_eq!(kind(&said), [MessageType::Ack]);
    assert!(host.dhcp("vm1", &discover(mac(1))).is_empty(), "others wait for it");
    let mut host = Host::new();
    let said = host.dhcp("vm1", &request(mac(1), None, Some(fixed), UNSET));
    assert_eq!(kind(&said), [MessageType::Nak]);
    // Nor does it get another.
    let said = host.dhcp("fixed", &request(mac(9), None, Some(ip("10.0.0.11")), UNSET));
    assert_eq!(kind(&said), [MessageType::Nak]);
    // All others get theirs, and then there are none.
    let mut given = Vec::new();
    for n in 0..20 {
        let address = Mac([0x52, 1, 0, 0, 0, n]);
        let port = ["in1", "in2"][usize::from(n) % 2];
        host.pass(Duration::from_secs(2));
        let Some(said) = host.dhcp(port, &discover(address)).pop() else { continue };
        let own = said.message.yiaddr();
        let said = host.dhcp(port, &request(address, Some(GATEWAY), Some(own), UNSET));
        assert_eq!(kind(&said), [MessageType::Ack]);
        given.push(own);
    }
    given.sort_unstable();
    given.dedup();
    assert_eq!(given.len(), 19, "twenty but the one that is reserved");
    assert!(!given.contains(&fixed));
    assert!(host.dhcp("vm2", &discover(mac(2))).is_empty());
    assert_eq!(host.seen().pool_full, 2);
}

#[test]
fn one_address_never_goes_to_two_machines() {
    // Two hosts that have not heard of each other's offers; the book is one.
    let (mut a, mut b) = (Host::new(), Host::new());
    let wanted = ip("10.0.0.15");
    for (host, n, port) in [(&mut a, 1, "vm1"), (&mut b, 2, "vm2")] {
        let mut ask = discover(mac(n));
        ask.opts_mut().insert(DhcpOption::RequestedIpAddress(wanted));
        assert_eq!(host.dhcp(port, &ask)[0].message.yiaddr(), wanted);
    }
    let said = a.dhcp("vm1", &request(mac(1), Some(GATEWAY), Some(wanted), UNSET));
    assert_eq!(kind(&said), [MessageType::Ack]);
    b.book = a.book.clone();
    let said = b.dhcp("vm2", &request(mac(2), Some(GATEWAY), Some(wanted), UNSET));
    assert_eq!(kind(&said), [MessageType::Nak]);
    assert_eq!(said[0].to_ip, Ipv4Addr::BROADCAST);
    b.tell();
    let other = b.dhcp("vm2", &discover(mac(2)))[0].message.yiaddr();
    assert_ne!(other, wanted);
    // Nor years later, as long as the first is in the configuration.
    b.pass(Duration::from_secs(100_000_000));
    let said = b.dhcp("vm2", &request(mac(2), None, Some(wanted), UNSET));
    assert_eq!(kind(&said), [MessageType::Nak]);
}

#[test]
fn without_the_directory_renewals_go_on_and_nothing_new_is_given() {
    let mut host = Host::new();
    let inner = Mac([0x52, 1, 0, 0, 0, 1]);
    let own = host.lease("vm1", mac(1));
    let own_inner = host.lease("in1", inner);
    host.available = false;
    assert_eq!(kind(&host.dhcp("vm2", &discover(mac(2)))), [MessageType::Offer]);
    let ask = request(mac(2), Some(GATEWAY), Some(ip("10.0.0.28")), UNSET);
    assert!(host.dhcp("vm2", &ask).is_empty(), "it asks again when it likes");
    for _ in 0..6 {
        host.pass(Duration::from_secs(u64::from(LEASE_S) / 2));
        let said = host.dhcp("vm1", &request(mac(1), None, None, own));
        assert_eq!(kind(&said), [MessageType::Ack], "it is a port's: nobody else can get it");
        let option = said[0].message.opts().get(OptionCode::AddressLeaseTime);
        assert_eq!(option, Some(&DhcpOption::AddressLeaseTime(LEASE_S)));
    }
    // A machine inside a machine is promised no more than what is written.
    let mut host = Host::new();
    let inner_again = host.lease("in1", inner);
    assert_eq!(inner_again, own_inner);
    host.available = false;
    host.pass(Duration::from_secs(u64::from(LEASE_S) / 2));
    let said = host.dhcp("in1", &request(inner, None, None, own_inner));
    let option = said[0].message.opts().get(OptionCode::AddressLeaseTime);
    assert_eq!(option, Some(&DhcpOption::AddressLeaseTime(LEASE_S / 2)));
    host.pass(Duration::from_secs(u64::from(LEASE_S) / 2));
    assert!(host.dhcp("in1", &request(inner, None, None, own_inner)).is_empty());
}

#[test]
fn a_guest_with_a_million_addresses_gets_what_one_port_gets() {
    let mut host = Host::new();
    let mut offers = 0;
    for n in 0..5000_u32 {
        let [a, b, c, d] = n.to_be_bytes();
        let address = Mac([0x52, 0x77, a, b, c, d]);
        for said in host.dhcp("in1", &discover(address)) {
            offers += 1;
            let own = said.message.yiaddr();
            host.dhcp("in1", &request(address, Some(GATEWAY), Some(own), UNSET));
        }
        host.pass(Duration::from_millis(100));
    }
    assert_eq!((offers, host.book.leases().count()), (PORT_LEASES_MAX, PORT_LEASES_MAX));
    assert!(host.seen().port_limit > 4000);
    assert_eq!(kind(&host.dhcp("vm1", &discover(mac(1)))), [MessageType::Offer], "the others get theirs");
    // Faster than its rate it is not heard at all, and the others are.
    let before = host.seen().limited;
    (0..1000).for_each(|_| drop(host.dhcp("in1", &discover(Mac([0x52, 0x78, 0, 0, 0, 1])))));
    assert!(host.seen().limited - before > 900);
    assert_eq!(kind(&host.dhcp("vm2", &discover(mac(2)))), [MessageType::Offer]);
}

#[test]
fn addresses_are_given_back_set_aside_and_left_alone() {
    let mut host = Host::new();
    let own = host.lease("vm1", mac(1));
    let mut release = message(mac(1), MessageType::Release);
    release.set_ciaddr(own);
    assert!(host.dhcp("in1", &release).is_empty());
    assert_eq!(host.book.leases().count(), 1, "another port can't give it back");
    assert!(host.dhcp("vm1", &release).is_empty());
    assert_eq!(host.book.leases().count(), 0);

    let own = host.lease("vm1", mac(1));
    let mut decline = message(mac(1), MessageType::Decline);
    decline.opts_mut().insert(DhcpOption::RequestedIpAddress(own));
    decline.opts_mut().insert(DhcpOption::ServerIdentifier(GATEWAY));
    host.pass(Duration::from_secs(1));
    assert!(host.dhcp("vm1", &decline).is_empty());
    assert_eq!(host.book.leases().next().map(|lease| lease.state), Some(Use::Declined));
    host.pass(Duration::from_secs(1));
    let next = host.lease("vm1", mac(1));
    assert_ne!(next, own, "somebody has it");
    host.pass(Duration::from_secs(3601));
    let said = host.dhcp("vm2", &request(mac(2), None, Some(own), UNSET));
    assert_eq!(kind(&said), [MessageType::Ack], "an hour later it is tried again");

    let mut inform = message(mac(2), MessageType::Inform);
    inform.set_ciaddr(ip("10.0.0.77"));
    let said = host.dhcp("vm2", &inform);
    assert_eq!((kind(&said), said[0].to_ip), (vec![MessageType::Ack], ip("10.0.0.77")));
    assert_eq!(said[0].message.opts().get(OptionCode::AddressLeaseTime), None);
    assert!(said[0].message.yiaddr().is_unspecified());
}

#[test]
fn requests_that_are_none_of_ours_are_let_be() {
    let mut host = Host::new();
    let other = request(mac(1), Some(ip("10.0.0.2")), Some(ip("10.0.0.12")), UNSET);
    assert!(host.dhcp("vm1", &other).is_empty(), "it took another server's offer");
    let mut relayed = discover(mac(1));
    relayed.set_giaddr(ip("10.9.9.9"));
    assert!(host.dhcp("vm1", &relayed).is_empty());
    let mut answer = discover(mac(1));
    answer.set_opcode(dhcproto::v4::Opcode::BootReply);
    assert!(host.dhcp("vm1", &answer).is_empty());
    let bytes = guest::frame(mac(2), Mac::BROADCAST, &discover(mac(1)));
    assert!(host.frame("vm2", &bytes).is_empty(), "one machine does not ask for another");
    assert!(host.dhcp("vm2", &discover(mac(1))).is_empty(), "nor behind another's port");
    host.pass(Duration::from_secs(1));
    let said = host.dhcp("vm1", &request(mac(1), None, Some(ip("192.168.0.9")), UNSET));
    assert_eq!(kind(&said), [MessageType::Nak], "it comes from another network");
    let mut broadcast = discover(mac(1));
    broadcast.set_flags(dhcproto::v4::Flags::default().set_broadcast());
    let said = host.dhcp("vm1", &broadcast);
    assert_eq!((said[0].to_ip, said[0].to_mac), (Ipv4Addr::BROADCAST, mac(1)), "its card hears it");
}

#[test]
fn an_answer_that_comes_late_or_twice_says_nothing() {
    let mut host = Host::new();
    let own = host.dhcp("vm1", &discover(mac(1)))[0].message.yiaddr();
    let ask = request(mac(1), Some(GATEWAY), Some(own), UNSET);
    assert!(host.dhcp_unanswered("vm1", &ask).is_empty());
    assert!(host.dhcp_unanswered("vm1", &ask).is_empty());
    let wishes = host.wishes();
    assert_eq!(wishes.len(), 1, "a guest that asks again asks for the same");
    assert_eq!((wishes[0].wish, wishes[0].ip), (Wish::Lease, own));
    host.pass(Duration::from_secs(11));
    host.time();
    let until = WallSeconds(u64::MAX);
    let lease = Lease { ip: own, mac: mac(1), port: name("vm1"), until, state: Use::Held };
    assert!(host.answer(LeaseAnswer::Granted(lease)).is_empty());
    let refused = LeaseAnswer::Refused { mac: mac(1), ip: own, why: Refusal::Taken };
    assert!(host.answer(refused).is_empty());
}

#[test]
fn a_group_that_loses_its_gateway_is_silent() {
    let mut host = Host::new();
    assert_eq!(host.endpoints.seen().count(), 2);
    host.configure(|spec| spec.groups[0].gateway.clear());
    assert!(host.dhcp("vm1", &discover(mac(1))).is_empty());
    host.configure(|_| {});
    assert!(host.dhcp("vm1", &discover(mac(1))).is_empty(), "its book is not here yet");
    host.tell();
    assert_eq!(kind(&host.dhcp("vm1", &discover(mac(1)))), [MessageType::Offer]);
    // A port that leaves the configuration loses its claim in time, not at once.
    let own = host.lease("vm1", mac(1));
    host.configure(|spec| spec.ports.retain(|port| port.name != "vm1"));
    let ask = request(mac(2), None, Some(own), UNSET);
    assert_eq!(kind(&host.dhcp("vm2", &ask)), [MessageType::Nak]);
    host.pass(Duration::from_secs(u64::from(LEASE_S) + 301));
    assert_eq!(kind(&host.dhcp("vm2", &ask)), [MessageType::Ack]);
}

#[test]
fn it_says_where_it_is_and_that_it_lives() {
    let mut host = Host::new();
    let own = host.mac("web");
    let asked = guest::arp_request(mac(1), ip("10.0.0.11"), GATEWAY);
    assert_eq!(host.frame("vm1", &asked), [guest::arp_reply(own, GATEWAY, mac(1), ip("10.0.0.11"))]);
    let probe = guest::arp_request(mac(1), UNSET, GATEWAY);
    assert_eq!(host.frame("vm1", &probe).len(), 1, "the address is taken");
    assert!(host.frame("vm1", &guest::arp_request(mac(1), ip("10.0.0.11"), ip("10.0.0.12"))).is_empty());
    let ping = |from, to| guest::ping4(mac(1), own, from, to, b"are you there");
    let said = host.frame("vm1", &ping(ip("10.0.0.11"), GATEWAY));
    assert_eq!(said, [guest::pong4(own, mac(1), GATEWAY, ip("10.0.0.11"), b"are you there")]);
    assert!(host.frame("vm1", &ping(ip("10.0.0.11"), ip("8.8.8.8"))).is_empty());
    assert!(host.frame("vm1", &ping(ip("192.168.7.7"), GATEWAY)).is_empty(), "there is no way back");
    let mut broken = ping(ip("10.0.0.11"), GATEWAY);
    broken[36] ^= 1;
    assert!(host.frame("vm1", &broken).is_empty(), "its sum is wrong");
}

#[test]
fn it_is_the_router_of_an_ipv6_network() {
    let mut host = Host::new();
    let own = host.mac("six");
    let (me, gateway) = ("fe80::9".parse().unwrap(), "fd00::1".parse().unwrap());
    let said = host.frame_in("six", "six1", &guest::solicit(mac(7), me, gateway));
    guest::is_advertisement(&said, own, mac(7), gateway);
    let said = host.frame_in("six", "six1", &guest::solicit_router(mac(7), me));
    guest::is_router(&said, own, mac(7), "fd00::".parse().unwrap(), 1500);
    let said = host.frame_in("six", "six1", &guest::ping6(mac(7), own, me, gateway));
    assert_eq!(said, [guest::pong6(own, mac(7), gateway, me)]);
    // And says so unasked, now and then.
    assert_eq!(host.time().len(), 1);
    assert_eq!(host.time().len(), 0);
    host.pass(Duration::from_secs(601));
    assert_eq!(host.time().len(), 1);
}

#[test]
fn one_group_has_a_gateway_of_ipv4_and_one_of_ipv6() {
    let mut host = Host::new();
    host.configure(|spec| {
        let six = spec.groups[1].gateway.remove(0);
        spec.groups[0].gateway.push(six);
    });
    host.tell();
    let own = host.mac("web");
    let (me, gateway) = ("fe80::9".parse().unwrap(), "fd00::1".parse().unwrap());
    assert_eq!(kind(&host.dhcp("vm1", &discover(mac(1)))), [MessageType::Offer]);
    let asked = guest::arp_request(mac(1), ip("10.0.0.11"), GATEWAY);
    assert_eq!(host.frame("vm1", &asked), [guest::arp_reply(own, GATEWAY, mac(1), ip("10.0.0.11"))]);
    let said = host.frame("vm1", &guest::solicit(mac(1), me, gateway));
    guest::is_advertisement(&said, own, mac(1), gateway);
    let said = host.frame("vm1", &guest::solicit_router(mac(1), me));
    guest::is_router(&said, own, mac(1), "fd00::".parse().unwrap(), 1450);
    let said = host.frame("vm1", &guest::ping6(mac(1), own, me, gateway));
    assert_eq!(said, [guest::pong6(own, mac(1), gateway, me)]);
    assert_eq!(host.time().len(), 1, "it says so unasked");
}

#[test]
fn nothing_that_a_guest_sends_breaks_it() {
    let mut host = Host::new();
    let own = host.mac("web");
    let frames = [
        guest::frame(mac(1), Mac::BROADCAST, &discover(mac(1))),
        guest::ping4(mac(1), own, ip("10.0.0.11"), GATEWAY, &[7; 100]),
        guest::arp_request(mac(1), ip("10.0.0.11"), GATEWAY),
        guest::solicit(mac(7), "fe80::9".parse().unwrap(), "fd00::1".parse().unwrap()),
    ];
    for frame in &frames {
        for group in ["web", "six"] {
            for len in 0..frame.len() {
                host.frame_in(group, "vm1", &frame[..len]);
            }
            for at in 0..frame.len() {
                let mut broken = frame.clone();
                for value in [0, 0xff, broken[at].wrapping_add(1), broken[at] ^ 0x80] {
                    broken[at] = value;
                    host.frame_in(group, "vm1", &broken);
                    host.pass(Duration::from_millis(20));
                }
            }
        }
    }
    host.frame("vm1", &vec![0x55; 70_000]);
    host.settle();
    let ports: Vec<NetName> = ["vm1"].map(name).into();
    assert!(host.book.leases().all(|lease| ports.contains(&lease.port)));
}
