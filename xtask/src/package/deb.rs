//! The package for Debian, from `[package.metadata.deb]` in Cargo.toml, which is what cargo-deb reads.
//!
//! Built with dpkg-deb, which every Debian has: cargo-deb would have to be compiled first. The
//! package has no scripts, so installing it enables and starts nothing.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::failure::{Failure, Result, While, fail};
use crate::package::{Built, output};
use crate::root;

/// Builds the package and returns its path.
pub fn build(built: &Built) -> Result<PathBuf> {
    let package = manifest()?;
    let deb = &package["metadata"]["deb"];
    let text = |field: &str| deb[field].as_str().unwrap_or_default().trim().to_owned();
    let version = format!("{}-1", built.version);
    let architecture = output(Command::new("dpkg").arg("--print-architecture"))?;
    let tree = built.stage.join("deb");
    let _ = fs::remove_dir_all(&tree);
    let mut installed = 0;
    for asset in deb["assets"].as_array().into_iter().flatten() {
        let part = |i: usize| asset[i].as_str().unwrap_or_default();
        let mode = u32::from_str_radix(part(2), 8).during(format!("the mode of {}", part(0)))?;
        for from in sources(built, part(0))? {
            installed += install(&tree, &from, part(1), mode)?;
        }
    }
    installed += changelog(&tree, &version, &text("maintainer"))?;
    let control = tree.join("DEBIAN");
    fs::create_dir_all(&control).during(control.display())?;
    let depends = text("depends").replace("$auto", &libraries(built)?);
    let description: String = text("extended-description")
        .lines()
        .map(|line| if line.trim().is_empty() { " .\n".into() } else { format!(" {line}\n") })
        .collect();
    let fields = format!(
        "Package: sessionizer\nVersion: {version}\nArchitecture: {architecture}\n\
         Maintainer: {}\nInstalled-Size: {}\nDepends: {depends}\nRecommends: {}\n\
         Section: {}\nPriority: optional\nDescription: {}\n{description}",
        text("maintainer"),
        installed.div_ceil(1024),
        text("recommends"),
        text("section"),
        package["description"].as_str().unwrap_or_default(),
    );
    fs::write(control.join("control"), fields).during("control")?;
    fs::write(control.join("md5sums"), sums(&tree)?).during("md5sums")?;
    let file = built.out.join(format!("sessionizer_{version}_{architecture}.deb"));
    let mut dpkg = Command::new("dpkg-deb");
    dpkg.args(["--root-owner-group", "-Zxz", "--build"]).arg(&tree).arg(&file);
    output(&mut dpkg)?;
    fs::remove_dir_all(&tree).during(tree.display())?;
    Ok(file)
}

fn manifest() -> Result<Value> {
    let mut cargo = Command::new(std::env::var("CARGO").unwrap_or("cargo".to_owned()));
    cargo.args(["metadata", "--format-version=1", "--no-deps", "--offline"]).current_dir(root());
    let metadata: Value = serde_json::from_str(&output(&mut cargo)?).during("cargo metadata")?;
    let mut packages = metadata["packages"].as_array().into_iter().flatten();
    let found = packages.find(|package| package["name"] == "sessionizer").cloned();
    found.ok_or_else(|| Failure("Cargo.toml has no package sessionizer".to_owned()))
}

/// The files that an asset names: cargo-deb takes `target/` for wherever cargo builds.
fn sources(built: &Built, from: &str) -> Result<Vec<PathBuf>> {
    let path = match (from, from.strip_prefix("target/package/")) {
        ("target/release/sessionizer", _) => built.program.clone(),
        (_, Some(staged)) => built.stage.join(staged),
        _ => root().join(from),
    };
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let Some((begin, end)) = name.split_once('*') else { return Ok(vec![path]) };
    let folder = path.parent().expect("a file is in a folder");
    let entries = fs::read_dir(folder).during(folder.display())?;
    let mut found: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    found.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with(begin) && name.ends_with(end)
    });
    found.sort();
    if found.is_empty() { fail(format!("there is no {from}")) } else { Ok(found) }
}

/// Copies a file into the tree and returns its size. A target that ends with a slash is a folder;
/// pages of the manual are compressed.
fn install(tree: &Path, from: &Path, to: &str, mode: u32) -> Result<u64> {
    let mut target = tree.join(to);
    if to.ends_with('/') {
        target.push(from.file_name().expect("a file has a name"));
    }
    put(&target, &fs::read(from).during(from.display())?, mode)?;
    if to.starts_with("usr/share/man/") {
        target = compress(&target)?;
    }
    Ok(fs::metadata(&target).during(target.display())?.len())
}

fn put(target: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let folder = target.parent().expect("a file is in a folder");
    fs::create_dir_all(folder).during(folder.display())?;
    fs::write(target, bytes).during(target.display())?;
    fs::set_permissions(target, fs::Permissions::from_mode(mode)).during(target.display())
}

fn compress(file: &Path) -> Result<PathBuf> {
    output(Command::new("gzip").args(["-9", "-n", "-f"]).arg(file))?;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    Ok(file.with_file_name(format!("{name}.gz")))
}

/// What Debian's tools show. The changes themselves are in CHANGELOG.md beside it.
fn changelog(tree: &Path, version: &str, maintainer: &str) -> Result<u64> {
    let date = output(Command::new("date").args(["-R", "-u", "-d", &source_date()]))?;
    let text = format!(
        "sessionizer ({version}) unstable; urgency=medium\n\n  * CHANGELOG.md has the changes.\n\n \
         -- {maintainer}  {date}\n"
    );
    let file = tree.join("usr/share/doc/sessionizer/changelog.Debian");
    put(&file, text.as_bytes(), 0o644)?;
    Ok(fs::metadata(compress(&file)?).during("changelog")?.len())
}

/// The time of the commit, so that the same commit makes the same package.
fn source_date() -> String {
    let mut git = Command::new("git");
    git.args(["log", "-1", "--format=@%ct"]).current_dir(root()).stderr(Stdio::null());
    let date = std::env::var("SOURCE_DATE_EPOCH").map(|seconds| format!("@{seconds}"));
    date.or_else(|_| output(&mut git)).unwrap_or("now".to_owned())
}

/// The packages of the libraries that the program is linked with, as dpkg-shlibdeps finds them.
fn libraries(built: &Built) -> Result<String> {
    // It requires the description of a source package, but only checks that there is one.
    let folder = built.stage.join("shlibdeps");
    let control = folder.join("debian/control");
    put(&control, b"Source: sessionizer\n\nPackage: sessionizer\nArchitecture: any\n", 0o644)?;
    let mut tool = Command::new("dpkg-shlibdeps");
    tool.arg("-O").arg(&built.program).current_dir(&folder).stderr(Stdio::null());
    let found = output(&mut tool)?;
    fs::remove_dir_all(&folder).during(folder.display())?;
    match found.strip_prefix("shlibs:Depends=") {
        Some(packages) => Ok(packages.to_owned()),
        None => fail(format!("dpkg-shlibdeps said {found:?}")),
    }
}

fn sums(tree: &Path) -> Result<String> {
    let mut find = Command::new("sh");
    find.args(["-c", "find usr -type f | LC_ALL=C sort | xargs -d '\\n' md5sum"]);
    Ok(output(find.current_dir(tree))? + "\n")
}
