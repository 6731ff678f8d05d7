//! Where frames come from and go to: vhost-user-net, TAP, physical NICs.
