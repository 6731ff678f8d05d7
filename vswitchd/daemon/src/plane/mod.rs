//! The control plane: configuration from the directory or a file, peers, ports, leases.
