//! `sessionizer reset`: removes a job and its rows together, so that the next start begins afresh.
//!
//! It shows what it is connected to and what will be removed, and asks for the job's name: if two
//! databases are open in two terminals, this shows which one it is.

use std::io::{BufRead, IsTerminal};

use indicatif::HumanCount;
use sessionizer_core::fault::Fault;

use crate::cli::ResetArgs;
use crate::commands::output;
use crate::commands::output::say;
use crate::config;
use crate::config::{Environment, Problems};
use crate::dataflow::ports::LedgerError;
use crate::dataflow::run_state::RunState;
use crate::ledger;
use crate::ledger::{LedgerConfig, ResetPlan, RowCount};

/// Looks, asks, removes.
pub fn reset(args: &ResetArgs, env: &Environment, run_state: &RunState) -> Result<(), Fault> {
    let config = read(args, env)?;
    let plan = ledger::look_before_reset(&config).map_err(give_up)?;
    say(&describe(&plan))?;
    if !args.yes {
        confirm(&plan.job)?;
    }
    ledger::reset(&config, run_state).map_err(give_up)?;
    say(&format!(
        "Removed. The next start of the job {} is its first: it reads the topic from the earliest \
         offset, unless --from says otherwise. The offsets of its consumer group in Kafka stay as \
         they are and do not matter for that.\n",
        plan.job
    ))
}

fn read(args: &ResetArgs, env: &Environment) -> Result<LedgerConfig, Fault> {
    let mut problems = Problems::new(env);
    let what = "the job to remove";
    let ledger = config::read_ledger_alone(&mut problems, args.job.name.as_deref(), what, env);
    ledger.filter(|_| problems.is_empty()).ok_or_else(|| problems.fault())
}

fn give_up(error: LedgerError) -> Fault {
    output::give_up(error, |why| format!("nothing was removed: Postgres cannot be used: {why}"))
}

/// Describes what will be removed.
fn describe(plan: &ResetPlan) -> String {
    let ResetPlan { database, job, created_at, started_at, started_by, table, .. } = plan;
    let count = |number: i64| HumanCount(u64::try_from(number).unwrap_or(0)).to_string();
    let mut rows = match plan.rows {
        RowCount::NoTable => "the table is not there".to_owned(),
        RowCount::NotATable => "it is a view or the like now, and stays as it is".to_owned(),
        RowCount::Exactly(1) => "1 row".to_owned(),
        RowCount::Exactly(rows) => format!("{} rows", count(rows)),
        RowCount::About(rows) => format!("about {} rows", count(rows)),
    };
    if plan.found_rows && matches!(plan.rows, RowCount::Exactly(_) | RowCount::About(_)) {
        rows.push_str("\n                 with those from before the job");
    }
    let open = match plan.open {
        0 => "none".to_owned(),
        records => format!("{} records in them", count(records)),
    };
    format!(
        "This removes, in {database}:\n\
         \x20 job            {job}\n\
         \x20                created {created_at}\n\
         \x20                started {started_at} by {started_by}\n\
         \x20 table          {table}: {rows}\n\
         \x20 open sessions  {open}\n\
         \x20 dead letters   {}\n\
         The table itself and other jobs stay.\n",
        count(plan.dead_letters)
    )
}

/// Asks for the job's name.
fn confirm(job: &str) -> Result<(), Fault> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(Fault::config(
            "nothing was removed: there is no terminal to ask at. Add --yes to remove it without \
             being asked"
                .to_owned(),
        ));
    }
    say(&format!("Type the job's name to remove it ({job}): "))?;
    let mut typed = String::new();
    stdin
        .lock()
        .read_line(&mut typed)
        .map_err(|why| Fault::environment(format!("nothing was removed: no answer: {why}")))?;
    if typed.trim() == job.trim() {
        return Ok(());
    }
    Err(Fault::config("nothing was removed: that is not the job's name"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Database;

    #[test]
    fn what_will_be_gone_is_shown_with_where_it_is() {
        let database = Database {
            server: "db:5432".to_owned(),
            database: "web".to_owned(),
            user: "me".to_owned(),
        };
        let mut plan = ResetPlan {
            database,
            job: "visits".to_owned(),
            created_at: "2026-01-01 00:00:00+00".to_owned(),
            started_at: "2026-01-02 00:00:00+00".to_owned(),
            started_by: "pid 1 on a".to_owned(),
            table: "public.sessionized_events".to_owned(),
            rows: RowCount::Exactly(4_115),
            found_rows: true,
            dead_letters: 1_200,
            open: 0,
        };
        let text = describe(&plan);
        for part in [
            "the database web at db:5432 as me",
            "public.sessionized_events: 4,115 rows\n                 with those from before the job\n",
            "open sessions  none\n",
            "dead letters   1,200\n",
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
        assert!(text.lines().all(|line| line.len() <= 80), "{text}");
        plan.rows = RowCount::NoTable;
        assert!(describe(&plan).contains("sessionized_events: the table is not there\n"));
    }
}
