//! What the program is made of: the crates that are linked into it, as cargo has resolved them, the
//! C libraries that some of them bring, and what the page brings.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::failure::{Failure, Result, While, fail};
use crate::root;

/// What is shipped is built with these, in addition to the default. [`super::COMMAND`] says so too.
const FEATURES: &str = "oidc";
/// The list must not depend on the machine that makes it. Other Linux systems have no other crates.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// C libraries: name, the crate that brings the source, licence, and the file that has its text.
const C_LIBRARIES: [(&str, &str, &str, &str); 5] = [
    ("curl", "curl-sys", "curl", "curl/COPYING"),
    ("librdkafka", "rdkafka-sys", "BSD-2-Clause", "librdkafka/LICENSES.txt"),
    ("openssl", "openssl-src", "Apache-2.0", "openssl/LICENSE.txt"),
    ("zlib", "libz-sys", "Zlib", "src/zlib/LICENSE"),
    ("zstd", "zstd-sys", "BSD-3-Clause", "zstd/LICENSE"),
];

/// A part of the program that others have written.
pub struct Part {
    pub name: String,
    pub version: String,
    /// An SPDX expression.
    pub license: String,
    /// As package URLs name it.
    pub purl: String,
    /// The files with the texts of its licences.
    pub texts: Vec<PathBuf>,
    /// SHA-256 of what was downloaded, if that is known.
    pub checksum: Option<String>,
    /// The package URLs of what it uses.
    pub uses: Vec<String>,
}

/// All parts, and the package URLs of those that the program itself uses.
pub struct Parts {
    pub version: String,
    pub crates: Vec<Part>,
    pub libraries: Vec<Part>,
    pub uses: Vec<String>,
}

impl Parts {
    pub fn all(&self) -> impl Iterator<Item = &Part> {
        self.crates.iter().chain(&self.libraries)
    }

    /// Asks cargo, which downloads what is not here yet.
    pub fn read() -> Result<Parts> {
        let mut cargo = Command::new(std::env::var("CARGO").unwrap_or("cargo".to_owned()));
        cargo.args(["metadata", "--format-version=1", "--locked", "--features", FEATURES]);
        let output = cargo.args(["--filter-platform", PLATFORM]).current_dir(root()).output();
        let output = output.during("cargo metadata")?;
        if !output.status.success() {
            return fail(format!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr)));
        }
        let metadata = serde_json::from_slice(&output.stdout).during("cargo metadata")?;
        let lock = root().join("Cargo.lock");
        Parts::of(&metadata, &fs::read_to_string(&lock).during(lock.display())?)
    }

    fn of(metadata: &Value, lock: &str) -> Result<Parts> {
        let packages = by_id(&metadata["packages"]);
        let nodes = by_id(&metadata["resolve"]["nodes"]);
        let is_ours = |id: &str| packages[id]["source"].is_null();
        let program = packages.iter().find(|(_, package)| package["name"] == "sessionizer");
        let (program, package) = program.ok_or_else(|| Failure("no sessionizer".to_owned()))?;
        let version = text(package, "version");

        let (mut linked, mut todo) = (BTreeSet::new(), vec![*program]);
        while let Some(id) = todo.pop() {
            if linked.insert(id) {
                todo.extend(uses(nodes[id], &packages));
            }
        }
        let (ours, theirs): (Vec<&str>, Vec<&str>) = linked.iter().partition(|id| is_ours(id));
        let checksums = checksums(lock);
        let mut crates = Vec::new();
        for id in theirs {
            let mut part = of_crate(packages[id], &checksums)?;
            part.uses = uses(nodes[id], &packages).map(|id| purl(packages[id])).collect();
            part.uses.sort();
            crates.push(part);
        }
        crates.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
        let mut libraries = Vec::new();
        for library in C_LIBRARIES {
            libraries.push(of_library(library, packages.values().copied())?);
        }
        libraries.push(of_page()?);
        let direct = ours.iter().flat_map(|id| uses(nodes[id], &packages));
        let direct = direct.filter(|id| !is_ours(id)).map(|id| purl(packages[id]));
        let mut uses: Vec<String> =
            direct.chain(libraries.iter().map(|l| l.purl.clone())).collect();
        uses.sort();
        uses.dedup();
        Ok(Parts { version, crates, libraries, uses })
    }
}

fn by_id(list: &Value) -> HashMap<&str, &Value> {
    let list = list.as_array().into_iter().flatten();
    list.filter_map(|each| Some((each["id"].as_str()?, each))).collect()
}

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or_default().to_owned()
}

fn purl(package: &Value) -> String {
    format!("pkg:cargo/{}@{}", text(package, "name"), text(package, "version"))
}

/// The crates that a crate is linked with: not what only builds or tests it, nor macros, which run
/// in the compiler.
fn uses<'a>(
    node: &'a Value,
    packages: &HashMap<&str, &Value>,
) -> impl Iterator<Item = &'a str> + use<'a> {
    let deps = node["deps"].as_array().into_iter().flatten();
    let mut linked: Vec<&str> = deps
        .filter(|dep| {
            dep["dep_kinds"].as_array().into_iter().flatten().any(|kind| kind["kind"].is_null())
        })
        .filter_map(|dep| dep["pkg"].as_str())
        .filter(|id| {
            let targets = packages[id]["targets"].as_array();
            let mut kinds = targets.into_iter().flatten().flat_map(|t| t["kind"].as_array());
            !kinds.any(|kinds| kinds.iter().any(|kind| kind == "proc-macro"))
        })
        .collect();
    linked.sort_unstable();
    linked.into_iter()
}

fn of_crate(package: &Value, checksums: &BTreeMap<(String, String), String>) -> Result<Part> {
    let (name, version) = (text(package, "name"), text(package, "version"));
    // The old way to write a choice.
    let license = text(package, "license").replace('/', " OR ");
    if license.is_empty() {
        return fail(format!("the crate {name} names no licence: look at its sources"));
    }
    let checksum = checksums.get(&(name.clone(), version.clone())).cloned();
    let texts = license_files(&text(package, "manifest_path"))?;
    Ok(Part { purl: purl(package), name, version, license, texts, checksum, uses: Vec::new() })
}

/// The files beside the manifest that have the text of a licence.
fn license_files(manifest: &str) -> Result<Vec<PathBuf>> {
    let folder = PathBuf::from(manifest).parent().map(PathBuf::from).unwrap_or_default();
    let mut files = Vec::new();
    for entry in fs::read_dir(&folder).during(folder.display())? {
        let path = entry.during(folder.display())?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        let begins = ["LICENSE", "LICENCE", "COPYING", "NOTICE", "UNLICENSE"];
        if path.is_file() && begins.iter().any(|begin| name.starts_with(begin)) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// A C library, whose version is the part after the plus in that of the crate. zlib's crate does
/// not say it, so its own header does.
fn of_library<'a>(
    (name, from, license, file): (&str, &str, &str, &str),
    mut packages: impl Iterator<Item = &'a Value>,
) -> Result<Part> {
    let found = packages.find(|package| package["name"] == from);
    let package = found.ok_or_else(|| Failure(format!("{name}: there is no crate {from}")))?;
    let manifest = PathBuf::from(text(package, "manifest_path"));
    let folder = manifest.parent().expect("a manifest is in a folder");
    let told = text(package, "version");
    let told = told
        .split_once('+')
        .map(|(_, version)| version.trim_start_matches(|c: char| !c.is_ascii_digit()).to_owned());
    let header = || {
        let header = fs::read_to_string(folder.join("src/zlib/zlib.h")).ok()?;
        let line = header.lines().find_map(|line| line.strip_prefix("#define ZLIB_VERSION \""))?;
        Some(line.trim_end_matches('"').to_owned())
    };
    let version = told.or_else(header).ok_or_else(|| Failure(format!("{name}: no version")))?;
    let texts = vec![folder.join(file)];
    if !texts[0].is_file() {
        return fail(format!("the licence of {name} is no longer at {}", texts[0].display()));
    }
    Ok(Part {
        purl: format!("pkg:generic/{name}@{version}"),
        name: name.to_owned(),
        version,
        license: license.to_owned(),
        texts,
        checksum: None,
        uses: Vec::new(),
    })
}

/// The library that draws the charts of the page: its first line names the version.
fn of_page() -> Result<Part> {
    let folder = root().join("src/monitor/page");
    let script = folder.join("uplot.js");
    let script = fs::read_to_string(&script).during(script.display())?;
    let first = script.lines().next().unwrap_or_default();
    let version = first.split_once("(v").and_then(|(_, rest)| Some(rest.split_once(')')?.0));
    let version = version.ok_or_else(|| Failure(format!("no version of uPlot in {first}")))?;
    Ok(Part {
        name: "uplot".to_owned(),
        version: version.to_owned(),
        license: "MIT".to_owned(),
        purl: format!("pkg:npm/uplot@{version}"),
        texts: vec![folder.join("uplot.LICENSE")],
        checksum: None,
        uses: Vec::new(),
    })
}

/// By name and version, from Cargo.lock.
fn checksums(lock: &str) -> BTreeMap<(String, String), String> {
    let field = |block: &str, name: &str| {
        let begin = format!("{name} = \"");
        let line = block.lines().find_map(|line| line.strip_prefix(&begin))?;
        Some(line.trim_end_matches('"').to_owned())
    };
    let blocks = lock.split("[[package]]");
    let of_block = |block| {
        Some(((field(block, "name")?, field(block, "version")?), field(block, "checksum")?))
    };
    blocks.filter_map(of_block).collect()
}
