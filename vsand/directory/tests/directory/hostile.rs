//! Messages that no honest host sends.

use vsand_directory::{COMMAND_BYTES_MAX, DirectoryError, MESSAGE_BYTES_MAX, service};

use crate::harness::{Command, Hosts, host, run};

#[test]
fn garbage_is_refused_and_forgotten() {
    run(async {
        let hosts = Hosts::cluster(1).await;
        hosts.add(1, "a").await;
        let directory = hosts.directory(1);
        let mut noise = 1u64;
        let mut random = || {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (noise >> 56) as u8
        };
        for service in 0..0x200 {
            for len in [0, 1, 2, 17, 33, 40, 64, 200] {
                // Half of them pass the version and the cluster, so that the message behind is reached.
                let mut bytes = vec![1, 16];
                bytes.extend_from_slice(&[0xc1; 16]);
                bytes.push(16);
                bytes.extend_from_slice(&[1; 16]);
                bytes.push(0);
                bytes.extend((0..len).map(|_| random()));
                let answer = directory.handle(host(9), service, &bytes).await;
                assert!(answer.len() < MESSAGE_BYTES_MAX);
                directory.handle(host(9), service, &bytes[36..]).await;
            }
        }
        directory.handle(host(9), service::APPEND, &vec![1; MESSAGE_BYTES_MAX + 1]).await;
        assert_eq!(hosts.add(1, "a").await, 2);
    });
}

#[test]
fn a_command_that_is_too_large_is_refused() {
    run(async {
        let hosts = Hosts::cluster(1).await;
        let refused = hosts.directory(1).propose(&Command::Ballast(vec![0; COMMAND_BYTES_MAX])).await;
        assert!(matches!(refused, Err(DirectoryError::TooLarge { .. })), "{refused:?}");
        assert_eq!(hosts.add(1, "a").await, 1);
    });
}
