//! What another host's switch says on a control connection.

use ferro_protocol::ids::HostId;
use ferro_protocol::net::{Announcement, Lanes, Mac, Sequence, VlanId, Vni, Withdrawal};
use vswitchd::tunnel::control::Revision;
use vswitchd::tunnel::control::message::{Beat, Hello, Message};

/// A message, and a heartbeat. What is understood is written and understood again.
pub(super) fn messages(data: &[u8]) {
    if let Ok(message) = Message::decode(data) {
        let bytes = message.encode().expect("what came can be sent");
        assert_eq!(Message::decode(&bytes[4..]), Ok(message));
    }
    if let Some(beat) = Beat::decode(data) {
        assert_eq!(beat.encode(), data);
    }
}

pub(super) fn message_seeds() -> Vec<Vec<u8>> {
    let vni = Vni::new(10).expect("seeds are valid");
    let announcement = Announcement {
        vni,
        lanes: Lanes::One(VlanId::new(7).ok()),
        mac: Mac([2, 0, 0, 0, 0, 1]),
        ips: vec![
            "192.0.2.1".parse().expect("seeds are valid"),
            "2001:db8::1".parse().expect("seeds are valid"),
        ],
        port: "vm1.eth0".parse().expect("seeds are valid"),
        sequence: Sequence(1 << 50),
    };
    let Announcement { lanes, mac, sequence, .. } = announcement;
    let hello = Hello {
        host: HostId::from_bytes([5; 16]),
        incarnation: 3,
        data: vec!["192.0.2.1:7402".parse().expect("seeds are valid")],
        applied: Revision(9),
    };
    let data = hello.data.clone();
    let messages = [
        Message::Hello(hello),
        Message::Data(data),
        Message::Applied(Revision(u64::MAX)),
        Message::Begin { generation: 2, networks: vec![vni; 20] },
        Message::Part(vec![announcement.clone(); 5]),
        Message::End,
        Message::Networks(vec![vni]),
        Message::Announce(Announcement { lanes: Lanes::All, ..announcement }),
        Message::Withdraw(Withdrawal { vni, lanes, mac, sequence }),
    ];
    let beat = Beat { number: 1, heard: 2 }.encode().to_vec();
    let messages = messages.iter().map(|it| it.encode().expect("seeds are valid").split_off(4));
    messages.chain([beat]).collect()
}
