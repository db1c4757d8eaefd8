//! Tells the program which commit it was built from, for `--version` and the first line of a run.

use std::process::Command;

fn main() {
    println!("cargo:rerun-if-env-changed=BUILD_COMMIT");
    println!("cargo:rerun-if-changed=build.rs");
    // Where there is no repository (an image, a source archive), whoever builds may say it.
    let told = std::env::var("BUILD_COMMIT").ok().filter(|commit| !commit.trim().is_empty());
    let commit = told.or_else(|| {
        // A commit, a checkout and a rebase each write a line there.
        if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
            println!("cargo:rerun-if-changed={log}");
        }
        git(&["rev-parse", "--short=10", "HEAD"])
    });
    println!("cargo:rustc-env=BUILD_COMMIT={}", commit.as_deref().unwrap_or("unknown commit"));
}

fn git(args: &[&str]) -> Option<String> {
    let root = std::env::var("CARGO_MANIFEST_DIR").ok()?;
    let output = Command::new("git").arg("-C").arg(root).args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.trim().to_owned()).filter(|text| output.status.success() && !text.is_empty())
}
