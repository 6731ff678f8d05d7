//! The identity directory: what is written is found again, whatever is wrong is named.

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{START, at, cluster, host};
use ferro_transport::identity::{HOST_CERT_LIFETIME, IdentityDir, IdentityError};

fn bootstrapped(root: &Path, n: u8) -> IdentityDir {
    let dir = IdentityDir::new(root.join(n.to_string()));
    dir.bootstrap(cluster(n), host(n), at(START), HOST_CERT_LIFETIME).unwrap();
    dir
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_bootstrap_is_found_again_and_never_overwritten() {
    let temp = tempfile::tempdir().unwrap();
    let dir = IdentityDir::new(temp.path().join("deep/er"));
    assert!(!dir.is_member());
    let error = dir.load(at(START)).unwrap_err();
    assert!(matches!(error, IdentityError::NotAMember(_)), "{error}");
    let made = dir.bootstrap(cluster(1), host(1), at(START), HOST_CERT_LIFETIME).unwrap();
    let read = dir.load(at(START)).unwrap();
    assert_eq!((read.cluster(), read.host()), (cluster(1), host(1)));
    assert_eq!(read.ca_fingerprint(), made.ca_fingerprint());
    assert_eq!(dir.load_ca().unwrap().unwrap().fingerprint(), made.ca_fingerprint());
    assert_eq!(mode(dir.path()), 0o700);
    assert_eq!(mode(&dir.path().join("host.key")), 0o600);
    assert_eq!(mode(&dir.path().join("ca.key")), 0o600);
    let error = dir.bootstrap(cluster(2), host(2), at(START), HOST_CERT_LIFETIME).unwrap_err();
    assert!(matches!(error, IdentityError::AlreadyAMember(_)), "{error}");
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 4, "{names:?}");
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let dir = bootstrapped(temp.path(), 1);
    for name in ["host.key", "ca.key"] {
        let path = dir.path().join(name);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = dir.load(at(START)).and_then(|_| dir.load_ca().map(|_| ())).unwrap_err();
        assert!(matches!(&error, IdentityError::KeyExposed { mode: 0o640, .. }), "{error}");
        assert!(error.to_string().contains("chmod 0600"), "{error}");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
}

#[test]
fn files_that_do_not_belong_together_are_named() {
    let temp = tempfile::tempdir().unwrap();
    let (ours, theirs) = (bootstrapped(temp.path(), 1), bootstrapped(temp.path(), 2));
    let swap_in = |name: &str| {
        let saved = fs::read(ours.path().join(name)).unwrap();
        fs::write(ours.path().join(name), fs::read(theirs.path().join(name)).unwrap()).unwrap();
        saved
    };
    for (name, check) in [
        ("host.key", (|e| matches!(e, IdentityError::KeyMismatch { .. })) as fn(&IdentityError) -> bool),
        ("host.pem", |e| matches!(e, IdentityError::KeyMismatch { .. })),
        ("ca.pem", |e| matches!(e, IdentityError::WrongCa { .. })),
    ] {
        let saved = swap_in(name);
        let error = ours.load(at(START)).unwrap_err();
        assert!(check(&error) && error.to_string().contains(name), "{name}: {error}");
        fs::write(ours.path().join(name), saved).unwrap();
    }
    let saved = swap_in("ca.key");
    assert!(ours.load_ca().is_err());
    fs::write(ours.path().join("ca.key"), saved).unwrap();
    assert!(ours.load(at(START)).is_ok() && ours.load_ca().is_ok());
}

#[test]
fn damaged_files_are_named() {
    let temp = tempfile::tempdir().unwrap();
    let dir = bootstrapped(temp.path(), 1);
    for name in ["ca.pem", "host.pem", "host.key"] {
        let path = dir.path().join(name);
        let whole = fs::read(&path).unwrap();
        let garbage = b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        for damaged in [&b""[..], &whole[..whole.len() / 2], b"nonsense", garbage, &vec![b'x'; 100 << 10]] {
            fs::write(&path, damaged).unwrap();
            let error = dir.load(at(START)).unwrap_err();
            assert!(error.to_string().contains(name), "{name}: {error}");
        }
        fs::write(&path, whole).unwrap();
        let aside = temp.path().join("aside");
        fs::rename(&path, &aside).unwrap();
        let error = dir.load(at(START)).unwrap_err();
        assert!(error.to_string().contains(name), "{name}: {error}");
        fs::rename(&aside, &path).unwrap();
    }
    assert!(dir.load(at(START)).is_ok());
}

#[test]
fn time_is_checked() {
    let temp = tempfile::tempdir().unwrap();
    let dir = bootstrapped(temp.path(), 1);
    let end = START + HOST_CERT_LIFETIME.as_secs();
    assert!(dir.load(at(end)).is_ok());
    let error = dir.load(at(end + 1)).unwrap_err();
    assert!(matches!(error, IdentityError::Expired { .. }), "{error}");
    let error = dir.load(at(START - 3601)).unwrap_err();
    assert!(matches!(error, IdentityError::NotYetValid { .. }), "{error}");
}

#[test]
fn a_host_comes_back_after_a_long_absence() {
    let temp = tempfile::tempdir().unwrap();
    let dir = bootstrapped(temp.path(), 1);
    let early = dir.load_or_renew(at(START + 10), HOST_CERT_LIFETIME).unwrap();
    assert_eq!(early.validity(), dir.load(at(START)).unwrap().validity());
    let years = START + 5 * 365 * 24 * 3600;
    let renewed = dir.load_or_renew(at(years), HOST_CERT_LIFETIME).unwrap();
    assert!(!renewed.validity().is_renewal_due(at(years)));
    assert_eq!(dir.load(at(years)).unwrap().validity(), renewed.validity());
    fs::remove_file(dir.path().join("ca.key")).unwrap();
    let error = dir.load_or_renew(at(2 * years - START), HOST_CERT_LIFETIME).unwrap_err();
    assert!(matches!(error, IdentityError::Expired { .. }), "{error}");
}

/// A renewal that is cut off after each of its steps leaves a working pair, and the next one mends what is left.
#[test]
fn a_renewal_survives_a_crash_at_any_step() {
    for step in 0..=4 {
        let temp = tempfile::tempdir().unwrap();
        let (old, new) = (bootstrapped(temp.path(), 1), IdentityDir::new(temp.path().join("new")));
        fs::create_dir(new.path()).unwrap();
        for name in ["ca.pem", "ca.key", "host.pem", "host.key"] {
            fs::copy(old.path().join(name), new.path().join(name)).unwrap();
        }
        let later = START + 1000;
        let ca = new.load_ca().unwrap().unwrap();
        let renewed =
            new.renew_with(&ca, &new.load(at(later)).unwrap(), at(later), HOST_CERT_LIFETIME).unwrap();
        let (from, to) = (new.path(), old.path());
        // The steps in the order that the module's head gives.
        let steps: [&dyn Fn(); 4] = [
            &|| assert!(fs::copy(from.join("host.key"), to.join("host.key.new")).is_ok()),
            &|| assert!(fs::copy(from.join("host.pem"), to.join("host.pem.new")).is_ok()),
            &|| fs::rename(to.join("host.key.new"), to.join("host.key")).unwrap(),
            &|| fs::rename(to.join("host.pem.new"), to.join("host.pem")).unwrap(),
        ];
        steps.iter().take(step).for_each(|step| step());
        let survived = old.load(at(later)).unwrap_or_else(|error| panic!("after step {step}: {error}"));
        assert_eq!(survived.validity() == renewed.validity(), step >= 3, "after step {step}");
        old.renew_with(&ca, &survived, at(later + 1), HOST_CERT_LIFETIME).unwrap();
        assert!(old.load(at(later)).is_ok());
        let left: Vec<_> = fs::read_dir(to).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left.len(), 4, "after step {step}: {left:?}");
    }
}
