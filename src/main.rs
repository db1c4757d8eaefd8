//! From arguments to configuration, command and exit code; signals and panics.

use std::io::{ErrorKind, Write, stderr};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use log::{error, info, warn};
use sessionizer::cli;
use sessionizer::cli::{Command, RunArgs};
use sessionizer::commands::{
    audit, check, compare, completions, demo, forget, health, man, open, produce, redrive, report,
    reset, schema, status,
};
use sessionizer::config::Environment;
use sessionizer::dataflow::run_state::{Interruption, RunState};
use sessionizer::job::system;
use sessionizer::ui::logging;
use sessionizer::{config, job};
use sessionizer_core::fault::Fault;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// How long a command may take to notice a stop request by itself.
const NOTICE_TIMEOUT: Duration = Duration::from_millis(300);

fn main() -> ExitCode {
    abort_on_panic();
    system::prevent_core_dumps();
    system::outlive_file_size_limit();
    let (cli, env) = match cli::parse(std::env::args_os(), std::env::vars_os()) {
        Ok(parsed) => parsed,
        Err(error) => return show(&error),
    };
    let understood = logging::start(&cli.log_format, env.value("RUST_LOG"));
    // A check reports them itself.
    let is_check = matches!(cli.command, Some(Command::Check(_)));
    for warning in env.warnings().iter().filter(|_| !is_check) {
        warn!("{warning}");
    }
    if let Err(what) = understood {
        let (name, what) = env.blame("--log-format", what);
        error!("{name} {what}");
        return ExitCode::from(2);
    }
    let run_state = Arc::new(RunState::default());
    run_state.set_interruption(when_stopped(cli.command.as_ref()));
    // Only the job and the demo have something to commit.
    let commits = matches!(cli.command, None | Some(Command::Demo(_)));
    let first = match &cli.command {
        _ if commits => "stopping: committing what was read",
        // Ctrl-C is how one leaves it.
        Some(Command::Status(_) | Command::Health(_) | Command::Open(_)) => "",
        _ => "stopping",
    };
    stop_on_signals(&run_state, first);
    let result = match &cli.command {
        None => run_job(&cli.run, &env, &run_state),
        Some(Command::Produce(args)) => produce::produce(args, &env, &run_state),
        Some(Command::Audit(args)) => audit::audit(args, &env, &run_state),
        Some(Command::Check(args)) => match check::check(args, &env, &run_state) {
            Ok(code) => return ExitCode::from(code),
            Err(fault) => Err(fault),
        },
        Some(Command::Compare(args)) => compare::compare(args, &env, &run_state),
        Some(Command::Report(args)) => report::report(args, &env, &run_state),
        Some(Command::Reset(args)) => reset::reset(args, &env, &run_state),
        Some(Command::Open(args)) => open::open(args, &env),
        Some(Command::Forget(args)) => forget::forget(args, &env, &run_state),
        Some(Command::Redrive(args)) => redrive::redrive(args, &env, &run_state),
        Some(Command::Status(args)) => status::status(args, &env, &run_state),
        Some(Command::Health(args)) => health::health(args, &env),
        Some(Command::Demo(args)) => demo::demo(args, &env, &run_state),
        Some(Command::Schema) => schema::schema(),
        Some(Command::Completions(args)) => completions::completions(args),
        Some(Command::Man(args)) => man::man(args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(fault) => {
            error!("{fault}");
            ExitCode::from(fault.exit_code())
        }
    }
}

/// What the first signal does to a command that waits for a server or for an answer.
fn when_stopped(command: Option<&Command>) -> Interruption {
    let (message, exit_code) = match command {
        // They have to commit or to deliver something, and notice it.
        None | Some(Command::Demo(_) | Command::Produce(_)) => return Interruption::Noticed,
        Some(Command::Audit(args)) if args.every.is_some() => ("", 0),
        Some(Command::Status(args)) if args.watch => ("", 0),
        Some(Command::Audit(_)) => ("the audit was stopped before its end", 1),
        Some(Command::Check(_)) => ("the check was stopped before its end", 1),
        Some(Command::Compare(_)) => ("the comparison was stopped before its end", 1),
        Some(Command::Report(_)) => ("the report was stopped before its end", 1),
        Some(Command::Reset(_) | Command::Forget(_)) => ("stopped; nothing was removed", 1),
        Some(Command::Redrive(_)) => ("stopped; nothing was changed", 1),
        Some(_) => ("stopped before the end", 1),
    };
    Interruption::Anywhere { message, exit_code }
}

fn run_job(args: &RunArgs, env: &Environment, run_state: &Arc<RunState>) -> Result<(), Fault> {
    let config = config::read(args, env)?;
    logging::set_job(&config.ledger.job);
    system::check_open_files(&config)?;
    system::check_threads(&config)?;
    job::run(&config, run_state)
}

/// Shows help, the version, or what is wrong with the arguments.
fn show(message: &clap::Error) -> ExitCode {
    match message.print() {
        Err(why) if cli::only_shows(message) && why.kind() != ErrorKind::BrokenPipe => {
            // The log has not begun yet.
            let _ = writeln!(stderr(), "error: cannot write to standard output: {why}");
            ExitCode::from(1)
        }
        Err(_) if cli::only_shows(message) => end_without_output("Broken pipe"),
        _ => ExitCode::from(message.exit_code() as u8),
    }
}

/// The reason, if this is the panic of `println!` on a closed output, which is not a bug of ours.
fn output_closed(panic: &str) -> Option<&str> {
    panic.strip_prefix("failed printing to stdout: ")
}

/// A reader that has seen enough is not an error: the exit code is then that of a program ended by
/// SIGPIPE. Any other failure, such as a full disk, is reported.
fn end_without_output(why: &str) -> ! {
    if why.contains("Broken pipe") {
        std::process::exit(128 + signal_hook::consts::SIGPIPE);
    }
    error!("cannot write to standard output: {why}");
    std::process::exit(1);
}

/// A panic in any thread is a broken invariant: memory can no longer be trusted, and only a restart
/// from the durable state is safe.
fn abort_on_panic() {
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if let Some(why) =
            panic.payload().downcast_ref::<String>().and_then(|what| output_closed(what))
        {
            end_without_output(why);
        }
        match logging::is_json() {
            // Each line of the log is an object.
            true => error!("{panic}"),
            false => default_hook(panic),
        }
        error!("a broken invariant: this is a bug. The next start continues from what is durable");
        std::process::abort();
    }));
}

/// The first SIGTERM, SIGHUP or Ctrl-C asks for a clean stop; the second ends the process at once.
fn stop_on_signals(run_state: &Arc<RunState>, first: &'static str) {
    let run_state = Arc::clone(run_state);
    let mut handled = vec![SIGINT, SIGTERM];
    if !system::ignores_hangup() {
        handled.push(SIGHUP);
    }
    let mut signals = Signals::new(handled).expect("signals can be handled");
    let listen = move || {
        // Another process of the cluster may already have asked for a stop. That does not make this
        // signal the second one.
        let mut asked = false;
        for signal in signals.forever() {
            if std::mem::replace(&mut asked, true) {
                std::process::exit(128 + signal);
            }
            if !first.is_empty() {
                info!("{first}; once more to stop at once");
            }
            run_state.request_stop();
            let run_state = Arc::clone(&run_state);
            start_thread("interruption", move || end_what_waits(&run_state));
        }
    };
    start_thread("signals", listen);
}

/// Ends a command that has not noticed a stop request in time. The outcome of a commit is awaited.
fn end_what_waits(run_state: &RunState) {
    let mut was_committing = false;
    loop {
        thread::sleep(NOTICE_TIMEOUT);
        let is_committing = run_state.interrupt(|interruption| match interruption {
            Interruption::Noticed => None,
            Interruption::Committing => Some(()),
            Interruption::Anywhere { message, exit_code } => {
                if !message.is_empty() {
                    error!("{message}");
                }
                std::process::exit(i32::from(exit_code));
            }
        });
        if is_committing.is_none() {
            return;
        }
        if !std::mem::replace(&mut was_committing, true) {
            info!("waiting for Postgres to commit; once more to stop at once");
        }
    }
}

fn start_thread(name: &str, work: impl FnOnce() + Send + 'static) {
    thread::Builder::new().name(name.to_owned()).spawn(work).expect("a thread can be started");
}
