//! The tool behind `scripts/bench`, `scripts/chaos` and `scripts/package`: it measures the program
//! on real servers, runs it on servers that fail, and packages it. It is for developers only, and
//! not shipped.
//!
//! The scripts find or install what is needed and start this program. All servers are started,
//! killed and removed by `scripts/services`.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use clap::Parser;

mod bench;
mod chaos;
mod failure;
mod leftovers;
mod package;
mod ports;
mod proc;
mod process;
#[path = "../../tests/shared/rng.rs"]
mod rng;
mod screen;
mod servers;
mod sql;

use failure::{Result, While, fail};

#[derive(Parser)]
#[command(bin_name = "xtask", about, disable_help_subcommand = true)]
enum Tool {
    Bench(bench::Args),
    Chaos(chaos::Args),
    Package(package::Args),
    ThirdParty(package::Notices),
}

fn main() -> ExitCode {
    let tool = Tool::parse();
    // However this function is left, even by a panic.
    let _end = End;
    let done = leftovers::end_on_signals().and_then(|()| match tool {
        Tool::Bench(args) => bench::run(&args),
        Tool::Chaos(args) => chaos::run(&args),
        Tool::Package(args) => package::run(&args),
        Tool::ThirdParty(args) => package::third_party(&args),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            screen::say(format!("error: {why}"));
            ExitCode::FAILURE
        }
    }
}

struct End;

impl Drop for End {
    fn drop(&mut self) {
        screen::clear();
        leftovers::clear();
    }
}

/// The root of the repository.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate is a part of a workspace")
}

/// Installs what is needed and builds these targets of the program, as every script does. Returns
/// the directory that holds them.
fn make_ready(targets: &[&str]) -> Result<PathBuf> {
    let script = root().join("scripts/lib/ready");
    let ready = leftovers::run_in_foreground(Command::new(&script).args(targets));
    let (status, program) = ready.during(script.display())?;
    if !status.success() {
        return fail("something that is needed is missing, or the program cannot be built");
    }
    let directory = Path::new(program.trim()).parent();
    Ok(directory.expect("scripts/lib/ready prints where the program is").to_owned())
}
