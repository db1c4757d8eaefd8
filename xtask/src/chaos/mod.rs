//! `scripts/chaos`: the job on real servers with real faults, judged by the audit.

mod card;
mod faults;
mod game;
mod instance;
mod peers;
mod round;
mod verdict;

use std::time::{SystemTime, UNIX_EPOCH};

use self::game::Game;
use crate::failure::{Failure, Result};
use crate::{leftovers, make_ready, screen};

/// Runs the job on a private Kafka and PostgreSQL while events flow and things go wrong
///
/// The events are out of order, some late, some broken. In each round the job is started with
/// other workers and connections, and then, at a random moment, something happens: it is killed
/// (also during its start or its replay), stopped, or overtaken by a second instance;
/// PostgreSQL is killed or restarted, or its connections are terminated; it is killed and loses
/// commits that it had acknowledged, or a standby is promoted that lacks them; the broker is killed
/// or restarted; the clock of the job's machine is set, by up to a day. Every thirteen rounds
/// include each of these. An audit follows every round. Finally the job reads to the end of the
/// topic, and a last audit decides.
///
/// With several processes the job is another cluster at each start, and one of its processes may
/// be killed (also during the start), stopped or frozen: the others must end by themselves, soon
/// and with the right code, and a process that wakes up later must end, too, and write nothing.
/// Each process is a machine with its own clock.
///
/// Leaves nothing behind, however it ends, even on Ctrl-C; but after a failure it exits with 1,
/// keeps the servers and logs, and says where they are.
#[derive(clap::Args)]
#[command(override_usage = "scripts/chaos [OPTIONS]")]
pub struct Args {
    /// The number of rounds; ten take about a minute
    #[arg(long, value_name = "N", default_value_t = 10)]
    rounds: u64,
    /// The largest number of processes of the job
    #[arg(long, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u64).range(1..=99))]
    processes: u64,
    /// Repeats a sequence of rounds (not the exact moments); random by default
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Events a second
    #[arg(long, value_name = "N", default_value_t = 2000,
          value_parser = clap::value_parser!(u64).range(1..))]
    rate: u64,
}

pub fn run(args: &Args) -> Result<()> {
    let seed = args.seed.unwrap_or_else(short_seed);
    let built = make_ready(&["--bin", "sessionizer"])?;
    let mut game = Game::start(args, seed, built.join("sessionizer"))?;
    let played = play(&mut game, args.rounds);
    let Err(why) = played else {
        verdict::tell(&game);
        return Ok(());
    };
    verdict::show_logs(&game);
    leftovers::keep_directory();
    let directory = game.servers.directory.display();
    let logs = format!("the job's logs are {directory}/job-*.log");
    let servers = "the servers still run";
    let sweep = format!("`scripts/services sweep {directory}` ends them");
    Err(Failure(format!("{why}\nFAILED (seed {seed}): {logs}, {servers} ({sweep})")))
}

fn play(game: &mut Game, rounds: u64) -> Result<()> {
    for round in 1..=rounds {
        screen::show(&format!("round {round} of {rounds}"));
        round::play(game, round)?;
    }
    screen::show("the last run, to the end of the topic");
    verdict::settle(game)
}

/// Short, because people type it.
fn short_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::from(now.map_or(0, |now| now.subsec_nanos())) % 100_000
}
