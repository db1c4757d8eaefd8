//! Arguments, configuration, run, exit code.

use std::process::ExitCode;
use std::sync::Arc;

use clap::Parser;
use log::{error, info};
use sessionizer::cli::{Cli, Command, RunArgs};
use sessionizer::control::{Control, Fault};
use sessionizer::{audit, config, demo, logging, produce, run};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::start();
    abort_on_panic();
    let control = Arc::new(Control::default());
    // Only the job has something to commit.
    let commits = matches!(cli.command, None | Some(Command::Demo(_)));
    stop_on_signals(
        &control,
        if commits { "stopping: committing what was read" } else { "stopping" },
    );
    let result = match &cli.command {
        None => run_job(&cli.run, &control),
        Some(Command::Produce(args)) => produce::produce(args, &control),
        Some(Command::Audit(args)) => audit::audit(args, &control),
        Some(Command::Demo(args)) => demo::demo(args, &control),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            error!("{fault}");
            ExitCode::from(fault.exit_code())
        }
    }
}

fn run_job(args: &RunArgs, control: &Arc<Control>) -> Result<(), Fault> {
    let config = config::read(args, &config::environment)?;
    run::run(&config, control)
}

/// A panic is a broken invariant, in whichever thread: what is in memory cannot be trusted, and
/// a restart from what is durable is the one way back.
fn abort_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        error!("a broken invariant: this is a bug. The next start goes on from what is durable");
        std::process::abort();
    }));
}

/// The first SIGTERM or Ctrl-C asks for a clean stop, the second does not ask.
fn stop_on_signals(control: &Arc<Control>, first: &'static str) {
    let control = Arc::clone(control);
    let mut signals = Signals::new([SIGINT, SIGTERM]).expect("signals can be handled");
    let listen = move || {
        // Another process of a cluster may have asked already; that is no second signal.
        let mut asked = false;
        for signal in signals.forever() {
            if std::mem::replace(&mut asked, true) {
                std::process::exit(128 + signal);
            }
            info!("{first}; once more to stop at once");
            control.request_stop();
        }
    };
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(listen)
        .expect("a thread can be started");
}
