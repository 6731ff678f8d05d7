//! Disks and network cards on the command line: a socket, and settings behind commas.

use crate::config::DeviceConfig;
use crate::virtio::vhost_user::{MTU_MIN, Mac, PAIRS_MAX, QUEUES_MAX, Role};

/// `SOCKET[,queues=N][,read-only]`.
pub(super) fn parse_disk(text: &str) -> Result<DeviceConfig, String> {
    let (socket, settings) = split(text)?;
    let (mut queues, mut read_only) = (1, false);
    for (name, value) in settings {
        match (name, value) {
            ("queues", Some(value)) => queues = number(value, 1, QUEUES_MAX, "queues of a disk")?,
            ("read-only", None) => read_only = true,
            _ => return Err(no_setting(name, "queues=N, read-only")),
        }
    }
    Ok(DeviceConfig { socket: socket.into(), role: Role::Block { queues, read_only } })
}

/// `SOCKET,mac=ADDRESS[,queues=N][,mtu=N]`.
pub(super) fn parse_nic(text: &str) -> Result<DeviceConfig, String> {
    let (socket, settings) = split(text)?;
    let (mut mac, mut pairs, mut mtu) = (None, 1, None);
    for (name, value) in settings {
        match (name, value) {
            ("mac", Some(value)) => mac = Some(parse_mac(value)?),
            ("queues", Some(value)) => {
                pairs = number(value, 1, PAIRS_MAX, "pairs of queues of a network card")?
            }
            ("mtu", Some(value)) => mtu = Some(number(value, MTU_MIN, u16::MAX, "bytes of an MTU")?),
            _ => return Err(no_setting(name, "mac=ADDRESS, queues=N, mtu=N")),
        }
    }
    let mac = mac.ok_or("a network card needs its address: SOCKET,mac=52:54:00:12:34:56")?;
    Ok(DeviceConfig { socket: socket.into(), role: Role::Net { mac, pairs, mtu } })
}

type Setting<'a> = (&'a str, Option<&'a str>);

/// The socket, and the settings in their order.
fn split(text: &str) -> Result<(&str, Vec<Setting<'_>>), String> {
    let mut parts = text.split(',');
    let socket = parts.next().filter(|socket| !socket.is_empty()).ok_or("the path of a socket is missing")?;
    let settings: Vec<Setting<'_>> = parts
        .map(|part| part.split_once('=').map_or((part, None), |(name, value)| (name, Some(value))))
        .collect();
    for (index, (name, _)) in settings.iter().enumerate() {
        if settings[..index].iter().any(|(before, _)| before == name) {
            return Err(format!("{name:?} is said twice"));
        }
    }
    Ok((socket, settings))
}

fn no_setting(name: &str, there_are: &str) -> String {
    format!("{name:?} is no setting like this: there are {there_are}")
}

fn number(text: &str, least: u16, most: u16, what: &str) -> Result<u16, String> {
    let number = text.parse().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| format!("{text:?}: {what} are {least} to {most}"))
}

fn parse_mac(text: &str) -> Result<Mac, String> {
    let wrong = || format!("{text:?} is no address of a network card like 52:54:00:12:34:56");
    let mut mac = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut mac {
        let part = parts.next().filter(|part| part.len() == 2).ok_or_else(wrong)?;
        *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
    }
    if parts.next().is_some() || part_of_a_group(mac) {
        return Err(wrong());
    }
    Ok(Mac(mac))
}

/// Addresses of groups, and that of nobody, are no card's.
fn part_of_a_group(mac: [u8; 6]) -> bool {
    mac[0] & 1 != 0 || mac == [0; 6]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_come_in_any_order() {
        let disk = parse_disk("/run/a.sock,read-only,queues=4").unwrap();
        assert_eq!(disk.role, Role::Block { queues: 4, read_only: true });
        assert_eq!(disk.socket.to_str(), Some("/run/a.sock"));
        let card = parse_nic("n,mtu=9000,mac=52:54:00:12:34:56,queues=16").unwrap();
        let mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        assert_eq!(card.role, Role::Net { mac, pairs: 16, mtu: Some(9000) });
        assert_eq!(parse_disk("a").unwrap().role, Role::Block { queues: 1, read_only: false });
    }

    #[test]
    fn what_is_no_device_is_refused_with_its_name() {
        for (text, word) in [
            ("s,queues=17", "1 to 16"),
            ("s,queues=0", "1 to 16"),
            ("s,queues=1,queues=1", "twice"),
            ("s,size=1", "no setting"),
            ("s,read-only=yes", "no setting"),
            ("s,queues", "no setting"),
            (",queues=1", "socket is missing"),
        ] {
            let error = parse_disk(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
        for (text, word) in [
            ("s", "needs its address"),
            ("s,mac=01:00:00:00:00:01", "no address"),
            ("s,mac=52:54:00:00:00:01:02", "no address"),
            ("s,mac=+2:54:00:00:00:1", "no address"),
            ("s,mac=52:54:00:00:00:01,mtu=67", "68 to 65535"),
            ("s,mac=52:54:00:00:00:01,queues=17", "1 to 16"),
            ("s,mac=52:54:00:00:00:01,read-only", "no setting"),
        ] {
            let error = parse_nic(text).unwrap_err();
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
