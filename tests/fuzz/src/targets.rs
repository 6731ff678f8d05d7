//! The targets, one module for each kind of sender.

mod boot;
mod directory;
mod frames;
mod gateway;
mod hypervisor;
mod identity;
mod machine;
mod mesh;
mod replica;
mod store;
mod switch;
mod vhost;
mod vhost_net;
mod vmm_api;

/// Something that reads foreign bytes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name: that of its folders, too.
    pub name: &'static str,
    /// Feeds it one input. Panics if it finds something wrong.
    pub run: fn(&[u8]),
    /// Valid inputs to begin from.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// How many mutated inputs a test run tries: a few seconds' worth, unoptimised.
    pub quick_cases: u32,
    /// The longest input.
    pub len_max: usize,
}

/// All of them.
pub const ALL: &[Target] = &[
    Target {
        name: "peer_frame",
        run: frames::peer_frame,
        seeds: frames::frame_seeds,
        quick_cases: 200_000,
        len_max: 4096,
    },
    Target {
        name: "data_stream",
        run: frames::data_stream,
        seeds: frames::stream_seeds,
        quick_cases: 200_000,
        len_max: 65_536,
    },
    Target {
        name: "join_token",
        run: identity::join_token,
        seeds: identity::token_seeds,
        quick_cases: 60_000,
        len_max: 1024,
    },
    Target {
        name: "join_messages",
        run: identity::join_messages,
        seeds: identity::message_seeds,
        quick_cases: 150_000,
        len_max: 4096,
    },
    Target {
        name: "signing_request",
        run: identity::signing_request,
        seeds: identity::request_seeds,
        quick_cases: 40_000,
        len_max: 4096,
    },
    Target {
        name: "certificate",
        run: identity::certificate,
        seeds: identity::certificate_seeds,
        quick_cases: 60_000,
        len_max: 4096,
    },
    Target {
        name: "vhost_messages",
        run: vhost::messages,
        seeds: vhost::message_seeds,
        quick_cases: 5_000,
        len_max: 4096,
    },
    Target {
        name: "vhost_rings",
        run: vhost::rings,
        seeds: vhost::ring_seeds,
        quick_cases: 8_000,
        len_max: 4096,
    },
    Target {
        name: "vhost_net_rings",
        run: vhost_net::rings,
        seeds: vhost_net::seeds,
        quick_cases: 8_000,
        len_max: 4096,
    },
    Target {
        name: "journal_batch",
        run: store::journal_batch,
        seeds: store::journal_seeds,
        quick_cases: 60_000,
        len_max: 65_536,
    },
    Target {
        name: "superblock",
        run: store::superblock,
        seeds: store::superblock_seeds,
        quick_cases: 60_000,
        len_max: 8192,
    },
    Target {
        name: "whole_disk",
        run: store::whole_disk,
        seeds: store::disk_seeds,
        quick_cases: 150,
        len_max: 65_536,
    },
    Target {
        name: "directory_command",
        run: directory::commands,
        seeds: directory::command_seeds,
        quick_cases: 20_000,
        len_max: 4096,
    },
    Target {
        name: "directory_script",
        run: directory::script,
        seeds: directory::script_seeds,
        quick_cases: 8_000,
        len_max: 2048,
    },
    Target {
        name: "replica_requests",
        run: replica::requests,
        seeds: replica::seeds,
        quick_cases: 30_000,
        len_max: 2048,
    },
    Target {
        name: "switch_frames",
        run: switch::frames,
        seeds: switch::frame_seeds,
        quick_cases: 4_000,
        len_max: 4096,
    },
    Target {
        name: "tunnel_datagrams",
        run: switch::datagrams,
        seeds: switch::datagram_seeds,
        quick_cases: 30_000,
        len_max: 8192,
    },
    Target {
        name: "mesh_messages",
        run: mesh::messages,
        seeds: mesh::message_seeds,
        quick_cases: 100_000,
        len_max: 4096,
    },
    Target {
        name: "gateway_frames",
        run: gateway::frames,
        seeds: gateway::seeds,
        quick_cases: 60_000,
        len_max: 8192,
    },
    Target {
        name: "lease_book",
        run: gateway::book,
        seeds: gateway::book_seeds,
        quick_cases: 20_000,
        len_max: 4096,
    },
    Target {
        name: "boot_partitions",
        run: boot::partitions,
        seeds: boot::partition_seeds,
        quick_cases: 5_000,
        len_max: 8192,
    },
    Target {
        name: "boot_ext4",
        run: boot::ext4,
        seeds: boot::ext4_seeds,
        quick_cases: 600,
        len_max: 131_072,
    },
    Target { name: "boot_grub", run: boot::grub, seeds: boot::grub_seeds, quick_cases: 4_000, len_max: 4096 },
    Target {
        name: "boot_entries",
        run: boot::entries,
        seeds: boot::entry_seeds,
        quick_cases: 5_000,
        len_max: 4096,
    },
    Target {
        name: "boot_kernel",
        run: boot::kernels,
        seeds: boot::kernel_seeds,
        quick_cases: 20_000,
        len_max: 4096,
    },
    Target {
        name: "vmm_accesses",
        run: machine::accesses,
        seeds: machine::access_seeds,
        quick_cases: 6_000,
        len_max: 2048,
    },
    Target {
        name: "vmm_states",
        run: machine::states,
        seeds: machine::state_seeds,
        quick_cases: 6_000,
        len_max: 16_384,
    },
    Target {
        name: "vmm_rings",
        run: machine::rings,
        seeds: machine::ring_seeds,
        quick_cases: 8_000,
        len_max: 2048,
    },
    Target {
        name: "vmm_requests",
        run: vmm_api::requests,
        seeds: vmm_api::request_seeds,
        quick_cases: 100_000,
        len_max: 4096,
    },
    Target {
        name: "vmm_connection",
        run: vmm_api::connection,
        seeds: vmm_api::connection_seeds,
        quick_cases: 5_000,
        len_max: 80_000,
    },
    Target {
        name: "vm_specs",
        run: hypervisor::specs,
        seeds: hypervisor::spec_seeds,
        quick_cases: 40_000,
        len_max: 16_384,
    },
    Target {
        name: "vm_documents",
        run: hypervisor::documents,
        seeds: hypervisor::document_seeds,
        quick_cases: 60_000,
        len_max: 16_384,
    },
    Target {
        name: "vm_requests",
        run: hypervisor::requests,
        seeds: hypervisor::request_seeds,
        quick_cases: 20_000,
        len_max: 4096,
    },
];

/// The target of this name.
pub fn by_name(name: &str) -> Option<&'static Target> {
    ALL.iter().find(|target| target.name == name)
}

/// Inputs without a form of their own: some patterns that reach every choice of a script.
fn patterns(len: usize) -> Vec<Vec<u8>> {
    let steps = [1_usize, 3, 7, 11, 29, 53, 97, 151];
    steps.iter().map(|step| (0..len).map(|n| (n * step + n / 17) as u8).collect()).collect()
}
