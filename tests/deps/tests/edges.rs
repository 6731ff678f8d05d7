//! Dependencies point one way. An edge that is not listed here is a mistake, or a decision: then it is written down here
//! and in DESIGN.md.

use std::collections::BTreeSet;

use ferro_deps::{Crate, Kind, Workspace};

/// Which crate may use which. Whatever depends on anything is in [`ANYTHING`].
const ALLOWED: &[(&str, &[&str])] = &[
    ("ferro-protocol", &[]),
    ("ferro-transport", &["ferro-protocol"]),
    ("ferro-vhost", &["ferro-protocol"]),
    ("vsand-code", &[]),
    ("vsand-core", &["vsand-code", "ferro-protocol"]),
    ("vsand-store", &["vsand-core", "ferro-protocol"]),
    ("vsand-directory", &["vsand-core", "ferro-protocol"]),
    (
        "vsand",
        &["vsand-core", "vsand-store", "vsand-directory", "ferro-protocol", "ferro-transport", "ferro-vhost"],
    ),
    ("vswitch-core", &["ferro-protocol"]),
    ("boot-image", &[]),
    ("hypervisor-core", &["ferro-protocol"]),
    ("hypervisord", &["hypervisor-core", "ferro-protocol", "ferro-transport"]),
    ("vswitchd", &["vswitch-core", "ferro-protocol", "ferro-transport", "ferro-vhost"]),
    ("vmm", &["boot-image", "ferro-protocol", "ferro-vhost"]),
    ("ferro-tools", &["ferro-protocol", "ferro-transport"]),
];

/// What only a crate's own tests may use besides.
const ALLOWED_IN_TESTS: &[(&str, &[&str])] = &[
    // The daemons' routers over stand-ins for their control planes, so that what the tools send is what the daemons take.
    ("ferro-tools", &["vsand", "vswitchd", "vswitch-core"]),
];

/// Tests and benchmarks: they may use anything, and nothing may use them.
const ANYTHING: &[&str] = &["ferro-sim", "ferro-blackbox", "ferro-fuzz", "ferro-deps", "ferro-bench"];

/// The folders of the three products.
const PRODUCTS: &[&str] = &["vsand", "vswitchd", "hypervisor"];

fn listed(list: &[(&str, &[&str])], from: &str, to: &str) -> bool {
    list.iter().any(|(name, uses)| *name == from && uses.contains(&to))
}

fn allowed(from: &str, kind: Kind, to: &str) -> bool {
    if ANYTHING.contains(&to) {
        return false;
    }
    let in_tests = kind == Kind::Dev && listed(ALLOWED_IN_TESTS, from, to);
    ANYTHING.contains(&from) || listed(ALLOWED, from, to) || in_tests
}

#[test]
fn every_edge_between_our_crates_is_listed() {
    let workspace = Workspace::read();
    let wrong: Vec<String> = workspace
        .edges()
        .filter(|(from, kind, to)| !allowed(&from.name, *kind, &to.name))
        .map(|(from, kind, to)| format!("{} -> {} ({kind:?})", from.name, to.name))
        .collect();
    assert!(wrong.is_empty(), "edges that DESIGN.md, \"Workspace\", does not allow: {wrong:#?}");
    assert!(workspace.edges().count() > 15, "the edges are not found: this test is blind");
}

#[test]
fn every_crate_has_its_place_in_the_list() {
    let workspace = Workspace::read();
    let known: BTreeSet<&str> =
        ALLOWED.iter().map(|(name, _)| *name).chain(ANYTHING.iter().copied()).collect();
    let there: BTreeSet<&str> = workspace.crates.keys().map(String::as_str).collect();
    assert_eq!(known, there, "left: listed here; right: in the workspace");
    let used = ALLOWED.iter().chain(ALLOWED_IN_TESTS).flat_map(|(_, uses)| *uses);
    for name in used {
        assert!(there.contains(name), "{name} is listed and is no crate");
    }
}

#[test]
fn the_products_do_not_know_each_other() {
    let workspace = Workspace::read();
    let product = |it: &Crate| {
        let folder = workspace.relative(it.folder());
        PRODUCTS.iter().find(|name| folder.starts_with(name)).copied()
    };
    for (from, kind, to) in workspace.edges() {
        if let (Some(a), Some(b)) = (product(from), product(to)) {
            assert_eq!(a, b, "{} -> {} ({kind:?}): one product imports another", from.name, to.name);
        }
    }
}

/// The list itself: no crate reaches itself by way of others, so the arrows do point one way.
#[test]
fn the_list_has_no_circle() {
    let uses = |name: &str| ALLOWED.iter().find(|(from, _)| *from == name).map_or(&[][..], |(_, to)| *to);
    for (start, _) in ALLOWED {
        let mut reached = BTreeSet::new();
        let mut open = vec![*start];
        while let Some(name) = open.pop() {
            for next in uses(name) {
                assert_ne!(next, start, "{start} depends on itself by way of {name}");
                if reached.insert(*next) {
                    open.push(next);
                }
            }
        }
    }
}
