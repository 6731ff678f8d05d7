//! Words into types: what can be refused without knowing the network is refused here.

use std::path::{Component, Path};

use ferro_protocol::api::switch::{Attachment, TRACE_FRAME_BYTES_MAX};
use ferro_protocol::api::{ApiError, ErrorCode};
use ferro_protocol::net::NetName;

/// The longest path of a Unix socket (`sun_path`, with its final zero).
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// The longest name of an interface (`IFNAMSIZ`, with its final zero).
const INTERFACE_BYTES_MAX: usize = 15;
/// The most pairs of queues of a port.
const QUEUE_PAIRS_MAX: u16 = 16;
/// An Ethernet header.
const FRAME_BYTES_MIN: usize = 14;

/// A name in a path, a query or a body; `what` says of what.
pub(super) fn name(text: &str, what: &str) -> Result<NetName, ApiError> {
    text.parse().map_err(|bad| {
        let next = format!("give the name of a {what}");
        ApiError::new(ErrorCode::BadName, format!("{bad}"), next)
    })
}

/// What a port is to be attached to.
pub(super) fn attachment(port: &NetName, to: &Attachment) -> Result<(), ApiError> {
    let bad = |message: String, next: &str| Err(ApiError::new(ErrorCode::BadAttachment, message, next));
    match to {
        Attachment::VhostUser { socket, connect, queue_pairs } => {
            if !(1..=QUEUE_PAIRS_MAX).contains(queue_pairs) {
                let message = format!("port {port} can't have {queue_pairs} pairs of queues");
                return bad(message, "choose from 1 to 16");
            }
            match socket {
                None if *connect => {
                    let message = format!("port {port} is to connect to a socket, and none is given");
                    bad(message, "give the path of the socket that the virtual machine monitor listens on")
                }
                Some(path) if !is_socket_path(path) => {
                    let message = format!("{path:?} is not a path that a socket can be at");
                    bad(message, "give an absolute path without `..`, of at most 107 bytes")
                }
                _ => Ok(()),
            }
        }
        Attachment::Tap { interface } if !is_interface(interface) => {
            let message = format!("{interface:?} is not a name that an interface can have");
            bad(message, "use 1 to 15 characters without blanks, '/' and ':', as in tap0")
        }
        Attachment::Tap { .. } => Ok(()),
    }
}

fn is_socket_path(text: &str) -> bool {
    let path = Path::new(text);
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let folder = text.ends_with('/');
    path.is_absolute() && plain && !folder && !text.contains('\0') && text.len() <= SOCKET_PATH_BYTES_MAX
}

fn is_interface(text: &str) -> bool {
    let good = |c: char| !c.is_whitespace() && !c.is_control() && c != '/' && c != ':' && c != '%';
    (1..=INTERFACE_BYTES_MAX).contains(&text.len())
        && text.chars().all(good)
        && !matches!(text, "." | ".." | "all" | "default")
}

/// A frame to trace.
pub(super) fn frame(hex: &str) -> Result<Vec<u8>, ApiError> {
    let bad = |message: String| {
        let next = "give the bytes from the destination address on, without the frame check sequence, two digits each";
        Err(ApiError::new(ErrorCode::BadFrame, message, next))
    };
    let digits = hex.as_bytes();
    if digits.len() > 2 * TRACE_FRAME_BYTES_MAX {
        return bad(format!("the frame has more than {TRACE_FRAME_BYTES_MAX} bytes"));
    }
    if !digits.len().is_multiple_of(2) {
        return bad("the frame has half a byte too much".to_owned());
    }
    let digit = |c: u8| (c as char).to_digit(16).map(|digit| digit as u8);
    let bytes: Option<Vec<u8>> =
        digits.chunks_exact(2).map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?)).collect();
    match bytes {
        None => bad("the frame is not written in hexadecimal digits".to_owned()),
        Some(bytes) if bytes.len() < FRAME_BYTES_MIN => {
            bad(format!("the frame has {} bytes: an Ethernet header alone has 14", bytes.len()))
        }
        Some(bytes) => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attachments_have_bounds() {
        let port: NetName = "vm1".parse().unwrap();
        let vhost = |socket: Option<&str>, connect, queue_pairs| Attachment::VhostUser {
            socket: socket.map(str::to_owned),
            connect,
            queue_pairs,
        };
        let tap = |interface: &str| Attachment::Tap { interface: interface.to_owned() };
        for good in [vhost(None, false, 1), vhost(Some("/run/vm.sock"), true, 16), tap("tap-1")] {
            assert_eq!(attachment(&port, &good), Ok(()), "{good:?}");
        }
        let long = format!("/{}", "x".repeat(107));
        for bad in [
            vhost(None, true, 1),
            vhost(None, false, 0),
            vhost(None, false, 17),
            vhost(Some("vm.sock"), false, 1),
            vhost(Some("/run/../vm.sock"), false, 1),
            vhost(Some("/run/"), false, 1),
            vhost(Some(&long), false, 1),
            tap(""),
            tap("a/b"),
            tap(".."),
            tap("sixteen-bytes-xx"),
            tap("a b"),
            tap("tap%d"),
        ] {
            assert_eq!(attachment(&port, &bad).unwrap_err().code, ErrorCode::BadAttachment, "{bad:?}");
        }
    }

    #[test]
    fn frames_are_bytes_within_bounds() {
        assert_eq!(frame(&"0aF9".repeat(7)).unwrap()[..2], [0x0a, 0xf9]);
        for bad in ["", "0", "zz", &"00".repeat(13), &"é".repeat(14), &"00".repeat(TRACE_FRAME_BYTES_MAX + 1)]
        {
            assert_eq!(frame(bad).unwrap_err().code, ErrorCode::BadFrame, "{bad}");
        }
    }
}
