//! The control queue of a network card (virtio 1.2, 5.1.6.5), which the front end serves: how many pairs of queues are in
//! use, and that the driver has announced itself. Everything else is answered with an error, as the standard wants it of
//! what was not offered.

use super::role::{NET_ANNOUNCE, NET_MQ};
use crate::virtio::ring::{Ring, RingFault};

const CLASS_ANNOUNCE: u8 = 3;
const ANNOUNCE_ACKNOWLEDGED: u8 = 0;
const CLASS_MQ: u8 = 4;
const MQ_PAIRS: u8 = 0;
const OK: u8 = 0;
const ERROR: u8 = 1;
/// More than any command that is understood.
const COMMAND_BYTES_MAX: usize = 16;

/// What a driver wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Command {
    /// So many pairs of queues are in use from now on.
    Pairs(u16),
    /// It has announced itself.
    Announced,
}

/// Reads a command of a driver with these features, for a card with so many pairs.
pub(super) fn parse(bytes: &[u8], features: u64, pairs_max: u16) -> Option<Command> {
    match bytes {
        [CLASS_ANNOUNCE, ANNOUNCE_ACKNOWLEDGED] if features & NET_ANNOUNCE != 0 => Some(Command::Announced),
        [CLASS_MQ, MQ_PAIRS, low, high] if features & NET_MQ != 0 => {
            let pairs = u16::from_le_bytes([*low, *high]);
            (1..=pairs_max).contains(&pairs).then_some(Command::Pairs(pairs))
        }
        _ => None,
    }
}

/// Answers all commands in the ring, each after `obey` has carried it out. Whether to come again at once.
pub(super) fn serve(
    ring: &mut Ring,
    features: u64,
    pairs_max: u16,
    mut obey: impl FnMut(Command),
) -> Result<bool, RingFault> {
    for _ in 0..ring.size() {
        let Some(chain) = ring.take()? else {
            ring.tell()?;
            return ring.listen();
        };
        let bytes = ring.read(&chain, COMMAND_BYTES_MAX)?;
        let command = parse(&bytes, features, pairs_max);
        if let Some(command) = command {
            obey(command);
        }
        let written = ring.write(&chain, &[if command.is_some() { OK } else { ERROR }])?;
        ring.give_back(chain.head(), written)?;
    }
    ring.tell()?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_agreed_on_is_a_command() {
        let all = NET_MQ | NET_ANNOUNCE;
        assert_eq!(parse(&[4, 0, 3, 0], all, 4), Some(Command::Pairs(3)));
        assert_eq!(parse(&[3, 0], all, 4), Some(Command::Announced));
        let refused: [(&[u8], u64); 8] = [
            (&[4, 0, 3, 0], NET_ANNOUNCE),
            (&[3, 0], NET_MQ),
            (&[4, 0, 0, 0], all),
            (&[4, 0, 5, 0], all),
            (&[4, 0, 1], all),
            (&[4, 1, 1, 0], all),
            (&[0, 0, 1], all),
            (&[], all),
        ];
        for (bytes, features) in refused {
            assert_eq!(parse(bytes, features, 4), None, "{bytes:?}");
        }
    }
}
