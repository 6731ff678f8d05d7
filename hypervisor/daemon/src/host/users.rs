//! Users of this host. Only `/etc/passwd` is asked: the vmms' user is made by the package, not by a directory service, and the
//! answer must not depend on a network.

use hypervisor_core::command::vmm::User;

/// The largest file that is read.
const FILE_BYTES_MAX: u64 = 4 << 20;

/// A local user by name; none if there is none.
pub fn find_user(name: &str) -> Option<User> {
    let path = "/etc/passwd";
    if std::fs::metadata(path).ok()?.len() > FILE_BYTES_MAX {
        return None;
    }
    find_in(&std::fs::read_to_string(path).ok()?, name)
}

fn find_in(file: &str, name: &str) -> Option<User> {
    file.lines().find_map(|line| {
        let mut fields = line.split(':');
        if fields.next() != Some(name) {
            return None;
        }
        let (uid, gid) = (fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        Some(User { uid, gid })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_their_whole_name() {
        let file = "root:x:0:0::/root:/bin/sh\nferro:x:7:8::/:\nferro-vmm:x:900:901::/:/usr/sbin/nologin\nbroken:x\n";
        assert_eq!(find_in(file, "ferro-vmm"), Some(User { uid: 900, gid: 901 }));
        assert_eq!(find_in(file, "ferro-vm"), None);
        assert_eq!(find_in(file, "broken"), None);
    }
}
