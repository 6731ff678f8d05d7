//! The switch's own address in a port group: ARP, ND, ping, DHCP.

mod book;
mod lease;

pub use book::{BadBook, Book, DECLINED_S, LEASES_MAX, MARGIN_S, PORT_LEASES_MAX};
pub use lease::{Lease, LeaseAnswer, LeaseWanted, Refusal, Rules, Use, WallSeconds, Wish};
