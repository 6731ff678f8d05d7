//! The workspace as `cargo metadata` tells it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

/// All crates of the workspace.
#[derive(Debug)]
pub struct Workspace {
    /// Where the workspace's `Cargo.toml` is.
    pub root: PathBuf,
    /// The crates by name.
    pub crates: BTreeMap<String, Crate>,
}

/// One crate.
#[derive(Debug, Deserialize)]
pub struct Crate {
    /// Its name.
    pub name: String,
    /// Its `Cargo.toml`.
    pub manifest_path: PathBuf,
    /// Its licence.
    pub license: Option<String>,
    /// The registries it may be published to: `Some` of an empty list is none.
    pub publish: Option<Vec<String>>,
    /// What it depends on, as its `Cargo.toml` says.
    pub dependencies: Vec<Dependency>,
    /// What is built from it.
    pub targets: Vec<Target>,
}

/// One line of a crate's dependencies.
#[derive(Debug, Deserialize)]
pub struct Dependency {
    /// The crate depended on.
    pub name: String,
    /// What for.
    #[serde(default, deserialize_with = "kind")]
    pub kind: Kind,
    /// Where it is, if it is no registry's.
    pub path: Option<PathBuf>,
}

/// What a dependency is for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub enum Kind {
    /// The crate itself.
    #[default]
    Normal,
    /// Its tests, examples and benchmarks.
    Dev,
    /// Its build script.
    Build,
}

/// One thing that is built from a crate.
#[derive(Debug, Deserialize)]
pub struct Target {
    /// `lib`, `bin`, `example`, `test`, `bench`, `custom-build`.
    pub kind: Vec<String>,
    /// Its root module.
    pub src_path: PathBuf,
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Crate>,
    workspace_root: PathBuf,
}

fn kind<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Kind, D::Error> {
    match Option::<String>::deserialize(from)?.as_deref() {
        None => Ok(Kind::Normal),
        Some("dev") => Ok(Kind::Dev),
        Some("build") => Ok(Kind::Build),
        Some(other) => Err(serde::de::Error::custom(format!("unknown kind of dependency {other}"))),
    }
}

impl Workspace {
    /// The workspace that this crate is in. Panics if cargo can't say: nothing can be tested then. The place is asked for when
    /// the test runs: cargo takes a test that was built in a checkout elsewhere as fresh.
    pub fn read() -> Self {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let output = Command::new(cargo)
            .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
            .current_dir(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo says where the package is"))
            .output()
            .expect("cargo runs");
        assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
        let metadata: Metadata = serde_json::from_slice(&output.stdout).expect("cargo metadata writes JSON");
        let crates = metadata.packages.into_iter().map(|p| (p.name.clone(), p)).collect();
        Self { root: metadata.workspace_root, crates }
    }

    /// Every edge from one crate of the workspace to another.
    pub fn edges(&self) -> impl Iterator<Item = (&Crate, Kind, &Crate)> {
        self.crates.values().flat_map(move |from| {
            from.dependencies.iter().filter_map(move |dependency| {
                let path = dependency.path.as_ref()?;
                let to = self.crates.get(&dependency.name).filter(|to| to.folder() == path.as_path());
                // A path that leads out of the workspace is no dependency that we could ship.
                Some((
                    from,
                    dependency.kind,
                    to.unwrap_or_else(|| panic!("{}: {}", from.name, path.display())),
                ))
            })
        })
    }

    /// The path of a file within the workspace.
    pub fn relative<'a>(&self, path: &'a Path) -> &'a Path {
        path.strip_prefix(&self.root).unwrap_or(path)
    }
}

impl Crate {
    /// Where it is.
    pub fn folder(&self) -> &Path {
        self.manifest_path.parent().expect("a manifest is in a folder")
    }

    /// The text of its `Cargo.toml`.
    pub fn manifest(&self) -> String {
        std::fs::read_to_string(&self.manifest_path).expect("a manifest can be read")
    }
}
