//! The switch's own address in a port group: ARP, ND, ping, DHCP.
