//! What is shipped: a package for Debian, an archive, the bill of materials, and the licences of
//! what others have written. `scripts/package` builds the program first.

mod crates;
mod deb;
mod notices;
mod sbom;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use comfy_table::presets::NOTHING;
use comfy_table::{CellAlignment, Table};

use crate::failure::{Result, While, fail};
use crate::root;
use crates::Parts;

/// Packages a program that has been built. See `scripts/package --help`.
#[derive(clap::Args)]
pub struct Args {
    /// The program
    #[arg(long, value_name = "FILE")]
    binary: PathBuf,
    /// Where the packages go
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// Writes the file THIRD_PARTY.
#[derive(clap::Args)]
pub struct Notices {
    /// Only say whether it is up to date
    #[arg(long)]
    check: bool,
}

pub fn third_party(args: &Notices) -> Result<()> {
    notices::third_party(args.check)
}

/// What there is to package.
struct Built {
    /// Without symbols.
    program: PathBuf,
    version: String,
    /// The directory in which files for the packages are made.
    stage: PathBuf,
    out: PathBuf,
}

pub fn run(args: &Args) -> Result<()> {
    fs::create_dir_all(&args.out).during(args.out.display())?;
    let out = fs::canonicalize(&args.out).during(args.out.display())?;
    let binary = fs::canonicalize(&args.binary).during(args.binary.display())?;
    let told = output(Command::new(&binary).arg("--version"))?;
    let told = told.lines().next().unwrap_or_default().to_owned();
    let parts = Parts::read()?;
    let Some(commit) = told.strip_prefix(&format!("sessionizer {} (", parts.version)) else {
        return fail(format!("{} is {told}, not {}", binary.display(), parts.version));
    };
    let commit = commit.trim_end_matches(')');
    let stage = out.join("stage");
    let _ = fs::remove_dir_all(&stage);
    fs::create_dir_all(&stage).during(stage.display())?;
    let name = format!("sessionizer-{}-{}-linux", parts.version, std::env::consts::ARCH);
    let symbols = out.join(format!("{name}.debug"));
    let built =
        Built { program: stage.join("sessionizer"), version: parts.version.clone(), stage, out };
    strip(&binary, &built.program, &symbols)?;
    documents(&built)?;
    let bom = built.out.join(format!("{name}.cdx.json"));
    let document = serde_json::to_string_pretty(&sbom::document(&parts, commit));
    fs::write(&bom, document.during("the bill of materials")? + "\n").during(bom.display())?;
    fs::copy(&bom, built.stage.join("sessionizer.cdx.json")).during(bom.display())?;
    let archive = archive(&built, &name)?;
    let deb = deb::build(&built)?;
    let program = size(&built.program)?;
    fs::remove_dir_all(&built.stage).during(built.stage.display())?;
    println!("{told}");
    println!("{}", table(&binary, program, &[deb, archive, bom, symbols])?);
    Ok(())
}

/// Separates the symbols, which a debugger finds by the name of their file.
fn strip(binary: &Path, program: &Path, symbols: &Path) -> Result<()> {
    let objcopy = || Command::new("objcopy");
    let mut keep = objcopy();
    keep.args(["--only-keep-debug", "--compress-debug-sections=zlib"]).arg(binary).arg(symbols);
    output(&mut keep)?;
    output(Command::new("strip").arg("-o").arg(program).arg(binary))?;
    let mut link = String::from("--add-gnu-debuglink=");
    link.push_str(&symbols.to_string_lossy());
    output(objcopy().arg(link).arg(program))?;
    Ok(())
}

/// The manual and the completions, as the program itself prints them.
fn documents(built: &Built) -> Result<()> {
    output(Command::new(&built.program).arg("man").arg(built.stage.join("man")))?;
    let folder = built.stage.join("completions");
    fs::create_dir(&folder).during(folder.display())?;
    for (shell, file) in
        [("bash", "sessionizer"), ("zsh", "_sessionizer"), ("fish", "sessionizer.fish")]
    {
        let script = output(Command::new(&built.program).args(["completions", shell]))?;
        fs::write(folder.join(file), script + "\n").during(shell)?;
    }
    Ok(())
}

/// For systems other than Debian: the same files, without an installer.
fn archive(built: &Built, name: &str) -> Result<PathBuf> {
    let tree = built.stage.join(name);
    fs::create_dir(&tree).during(tree.display())?;
    let mut copy = Command::new("cp");
    copy.arg("-R").args(["sessionizer", "man", "completions", "sessionizer.cdx.json"]);
    output(copy.arg(&tree).current_dir(&built.stage))?;
    let mut copy = Command::new("cp");
    copy.arg("-R").args([
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
        "THIRD_PARTY",
        "deploy",
        "queries",
    ]);
    output(copy.arg(&tree).current_dir(root()))?;
    let archive = built.out.join(format!("{name}.tar.xz"));
    let mut tar = Command::new("tar");
    tar.args(["--create", "--xz", "--owner=0", "--group=0", "--numeric-owner", "--sort=name"]);
    output(tar.arg("--file").arg(&archive).arg(name).current_dir(&built.stage))?;
    fs::remove_dir_all(&tree).during(tree.display())?;
    Ok(archive)
}

fn table(binary: &Path, program: u64, files: &[PathBuf]) -> Result<Table> {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(["file", "MB"]);
    table.add_row(["the program as it was built".to_owned(), megabytes(size(binary)?)]);
    table.add_row(["the program without symbols".to_owned(), megabytes(program)]);
    for file in files {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        table.add_row([name, megabytes(size(file)?)]);
    }
    table.column_mut(1).expect("there are two").set_cell_alignment(CellAlignment::Right);
    Ok(table)
}

fn size(file: &Path) -> Result<u64> {
    Ok(fs::metadata(file).during(file.display())?.len())
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e6)
}

/// Runs a command and returns what it has printed, without the newline at the end.
fn output(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().during(&name)?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return fail(format!("{name} failed: {why}"));
    }
    let text = String::from_utf8(output.stdout).during(&name)?;
    Ok(text.trim_end_matches('\n').to_owned())
}
