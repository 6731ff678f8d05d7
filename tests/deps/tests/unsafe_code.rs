//! Where `unsafe` may stand, and that the compiler refuses it everywhere else.

use ferro_deps::{Target, Workspace, code_only, rust_files};

/// The only places, each with its reason.
const ALLOWED: &[(&str, &str)] = &[
    ("vsand/store/src/ring/", "io_uring takes buffers by address, and O_DIRECT needs them aligned"),
    (
        "vsand/code/src/blocks/x86/",
        "instructions that the processor was found to have, loads and stores of vectors",
    ),
    ("protocol/vhost/", "descriptors and memory of another process; the client of its tests (blkio)"),
    ("benches/src/client.rs", "the blkio crate hands completions out uninitialised"),
    ("vswitchd/daemon/src/ports/packet_ring.rs", "AF_PACKET's ring is memory that the kernel writes"),
    ("hypervisor/vmm/", "KVM's ioctls and guest memory"),
];

fn has_unsafe(code: &str) -> bool {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices("unsafe")
        .any(|(at, found)| !code[..at].ends_with(word) && !code[at + found.len()..].starts_with(word))
}

#[test]
fn unsafe_stands_only_where_it_is_needed() {
    let workspace = Workspace::read();
    let mut found = 0;
    for file in rust_files(&workspace.root, &workspace.root) {
        if has_unsafe(&code_only(&file.text)) {
            let allowed = ALLOWED.iter().any(|(place, _)| file.path.starts_with(place));
            assert!(allowed, "{}: unsafe code is not allowed here; see DESIGN.md and STYLE.md", file.path);
            found += 1;
        }
    }
    assert!(found > 0, "the ring has unsafe code and it was not found: this test is blind");
}

/// Every library, program and example refuses unsafe code as a whole; where some is needed, the module that has it is let
/// off by name (`#[allow(unsafe_code)]`), which the test above looks at.
#[test]
fn every_crate_refuses_unsafe_code() {
    let workspace = Workspace::read();
    let root_of_code = |target: &&Target| {
        target.kind.iter().any(|kind| matches!(kind.as_str(), "lib" | "bin" | "example" | "custom-build"))
    };
    let mut without = Vec::new();
    for it in workspace.crates.values() {
        for target in it.targets.iter().filter(root_of_code) {
            let code =
                code_only(&std::fs::read_to_string(&target.src_path).expect("a target has its source"));
            let refused = ["#![forbid(unsafe_code)]", "#![deny(unsafe_code)]"];
            if !refused.iter().any(|attribute| code.contains(attribute)) {
                without.push(workspace.relative(&target.src_path).display().to_string());
            }
        }
    }
    assert!(without.is_empty(), "no #![forbid(unsafe_code)] in {without:#?}");
}

/// An exemption from the lint is as good as the code: only where unsafe code may stand, or on the module in its parent.
#[test]
fn only_those_modules_are_let_off() {
    let workspace = Workspace::read();
    let parents = [
        "vsand/store/src/lib.rs",
        "vsand/code/src/blocks/mod.rs",
        "benches/src/lib.rs",
        "vswitchd/daemon/src/ports/mod.rs",
    ];
    for file in rust_files(&workspace.root, &workspace.root) {
        let code = code_only(&file.text);
        let let_off = ["allow(unsafe_code", "expect(unsafe_code"].iter().any(|a| code.contains(a));
        let good = parents.contains(&file.path.as_str())
            || ALLOWED.iter().any(|(place, _)| file.path.starts_with(place));
        assert!(!let_off || good, "{} lets itself off", file.path);
    }
}

#[test]
fn words_in_comments_and_strings_are_no_code() {
    for quiet in [
        "// unsafe {}",
        "/* unsafe /* nested */ unsafe */ fn a() {}",
        "let a = \"unsafe \\\" unsafe\";",
        "let a = r#\"unsafe \" unsafe\"#;",
        "let a = br\"unsafe\";",
        "let a = ('\"', \"unsafe\", '\\'', \"unsafe\");",
        "#![forbid(unsafe_code)]",
    ] {
        assert!(!has_unsafe(&code_only(quiet)), "{quiet}");
    }
    for loud in [
        "unsafe { a() }",
        "fn a<'a>(a: &'a str) { unsafe {} }",
        "let a = '\"'; unsafe {}",
        "let a = \"//\"; unsafe {}",
        "let a = r\"\\\"; unsafe {}",
        "/* a */ unsafe impl Send for A {}",
    ] {
        assert!(has_unsafe(&code_only(loud)), "{loud}");
    }
    assert_eq!(code_only("a // b\n\"c\nd\" e").lines().count(), 3, "lines stay where they are");
}
