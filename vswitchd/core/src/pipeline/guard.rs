//! What only routers and DHCP servers say, kept away from those who would believe it from a guest.
//!
//! ```text
//!   port ─► ICMPv6 134, 137; ICMP 9, 5 ────────► router_guard: dropped
//!        ─► UDP from 67 or to 68, from 547 or to 546 ─► dhcp_guard: dropped
//!        ─► IPv6 headers that lead nowhere within what is read ─► dropped by either
//! ```
//!
//! Guests ask (router solicitations, DHCP's questions) as they like. The rules against evasion are those of RFC 7113, section 2.1:
//! a packet whose headers can't be followed to its transport's may be anything, and is treated as the worst; a fragment other than
//! the first says nothing by itself. Nothing here looks at addresses: who speaks in a gateway's name is refused before, by
//! [`super::gateway`].

use crate::config::Policy;
use crate::frame::ip::{Ip, protocol};
use crate::frame::{Ether, be16, ether_type};

use super::count::Cause;

/// Router advertisement and redirect of ICMP (RFC 1256, section 3; RFC 792).
const ICMP: [u8; 2] = [9, 5];
/// The same of `ICMPv6` (RFC 4861, sections 4.2 and 4.5).
const ICMP_V6: [u8; 2] = [134, 137];
/// Where servers send from, and where clients listen: RFC 2131, section 4.1; RFC 8415, section 7.2.
const DHCP: (u16, u16) = (67, 68);
const DHCP_V6: (u16, u16) = (547, 546);

/// Whether a port of this policy may send this.
pub(super) fn check(policy: &Policy, head: &[u8], ether: &Ether) -> Result<(), Cause> {
    if !policy.router_guard && !policy.dhcp_guard {
        return Ok(());
    }
    let obscure = if policy.router_guard { Cause::RouterGuard } else { Cause::DhcpGuard };
    let Some(ip) = Ip::parse(head, ether) else {
        // Of IPv4 a header that can't be read is nobody's; behind IPv6 anything may follow.
        return if ether.ether_type == ether_type::IPV6 { Err(obscure) } else { Ok(()) };
    };
    if !ip.is_whole() {
        return Err(obscure);
    }
    if ip.later {
        return Ok(());
    }
    // Without padding, and without what is behind the end of a first fragment.
    let transport = head.get(ip.l4..ip.end.min(head.len())).unwrap_or_default();
    match (ip.v6, ip.protocol) {
        (true, protocol::ICMP_V6) | (false, protocol::ICMP) if policy.router_guard => {
            let bad = if ip.v6 { ICMP_V6 } else { ICMP };
            match transport.first() {
                Some(kind) if !bad.contains(kind) => Ok(()),
                _ => Err(Cause::RouterGuard),
            }
        }
        (v6, protocol::UDP) if policy.dhcp_guard => {
            let (server, client) = if v6 { DHCP_V6 } else { DHCP };
            if transport.len() < 4 || be16(transport, 0) == server || be16(transport, 2) == client {
                return Err(Cause::DhcpGuard);
            }
            Ok(())
        }
        _ => Ok(()),
    }
}
