//! `sessionizer forget`: removes a visitor from everything that a job has stored.
//!
//! It shows what will be removed and asks for the address again: nobody is likely to mistype it
//! twice in the same way. The address is printed on the terminal, and is in no log of the job.

use std::io::{BufRead, IsTerminal};

use comfy_table::{CellAlignment, Table, presets};
use log::warn;
use sessionizer_core::fault::Fault;

use crate::cli::ForgetArgs;
use crate::commands::http::printable;
use crate::commands::output;
use crate::commands::output::say;
use crate::config;
use crate::config::{Environment, Problems};
use crate::dataflow::ports::LedgerError;
use crate::dataflow::run_state::{Interruption, RunState};
use crate::ledger;
use crate::ledger::{LedgerConfig, Removed, Visitor};
use crate::ui::text::{count, plural};

/// What a stop request does once everything is removed.
const REMOVED: Interruption = Interruption::Anywhere {
    message: "stopped: the visitor was removed; the planner's statistics may hold its values until \
              Postgres analyzes the table",
    exit_code: 1,
};

/// Shows what would be removed, asks, and removes it.
pub fn forget(args: &ForgetArgs, env: &Environment, run_state: &RunState) -> Result<(), Fault> {
    let (config, visitor) = read(args, env)?;
    let found = ledger::forget(&config, &visitor, None).map_err(not_begun)?;
    if found.is_nothing() {
        if found.cut > 0 && !args.dry_run {
            ledger::forget(&config, &visitor, Some(run_state)).map_err(give_up)?;
        }
        return say(&format!(
            "The job {} has stored nothing about {} in {}.\n{}",
            config.job,
            name(&visitor),
            found.database,
            cut_note(&found).map_or(String::new(), |text| text + "\n")
        ));
    }
    if args.dry_run || !args.yes {
        say(&format!(
            "This removes {} from the job {},\nin {}:\n\n{}\n\n",
            name(&visitor),
            config.job,
            found.database,
            table(&found)
        ))?;
    }
    if args.dry_run {
        return say("Nothing was removed: this was a trial (--dry-run).\n");
    }
    if !args.yes {
        confirm(&visitor.ip)?;
    }
    let removed = ledger::forget(&config, &visitor, Some(run_state)).map_err(give_up)?;
    run_state.set_interruption(REMOVED);
    if let Err(why) = ledger::analyze(&config, &removed.table) {
        warn!(
            "the planner's statistics may hold values of the visitor until Postgres analyzes the \
             table {}: {why}",
            removed.table
        );
    }
    say(&format!(
        "Removed from the job {},\nin {}:\n\n{}\n\nKafka has the records until its retention \
         removes them;\nbackups and the WAL of Postgres are up to you.\n",
        config.job,
        removed.database,
        table(&removed)
    ))
}

fn read(args: &ForgetArgs, env: &Environment) -> Result<(LedgerConfig, Visitor), Fault> {
    let mut problems = Problems::new(env);
    let what = "the job to remove the visitor from";
    let ledger = config::read_ledger_alone(&mut problems, args.job.name.as_deref(), what, env);
    if args.ip.is_empty() {
        problems.add("--ip", "is empty: give the address of the visitor");
    }
    let visitor = Visitor { ip: args.ip.clone(), host: args.host.clone() };
    match ledger {
        Some(ledger) if problems.is_empty() => Ok((ledger, visitor)),
        _ => Err(problems.fault()),
    }
}

/// The fault that ends the command before it has removed anything.
fn not_begun(error: LedgerError) -> Fault {
    output::give_up(error, |why| format!("nothing was removed: Postgres cannot be used: {why}"))
}

fn give_up(error: LedgerError) -> Fault {
    output::give_up(error, |why| {
        format!(
            "either everything was removed or nothing (run it again): Postgres cannot be used: {why}"
        )
    })
}

fn name(visitor: &Visitor) -> String {
    match &visitor.host {
        Some(host) => format!("{} on the host {}", printable(&visitor.ip), printable(host)),
        None => printable(&visitor.ip),
    }
}

/// What is removed, as a table.
fn table(removed: &Removed) -> String {
    let Removed { rows, open, letters, blanked, anomalies, .. } = removed;
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(["", "removed", "events"]);
    let events = |(_, records): &(u64, u64)| count(*records);
    for (what, number, events) in [
        (format!("rows of {}", removed.table), rows.0, events(rows)),
        ("open sessions".to_owned(), open.0, events(open)),
        ("dead letters".to_owned(), letters.0, events(letters)),
        ("payloads of others that mention it".to_owned(), *blanked, String::new()),
        ("anomalies".to_owned(), *anomalies, String::new()),
    ] {
        table.add_row([what, count(number), events]);
    }
    for column in [1, 2] {
        let column = table.column_mut(column).expect("it has three");
        column.set_cell_alignment(CellAlignment::Right);
    }
    let mut text: Vec<String> =
        table.to_string().lines().map(|line| line.trim_end().to_owned()).collect();
    if removed.found_rows && rows.0 > 0 {
        text.push(
            "Rows may hold events from before the job: those of the job still count as closed."
                .to_owned(),
        );
    }
    text.extend(cut_note(removed));
    text.join("\n")
}

/// What becomes of dead letters that may be events of the visitor.
fn cut_note(removed: &Removed) -> Option<String> {
    (removed.cut > 0).then(|| {
        format!(
            "Of {}, too little of the payload was kept to tell whose they are:\nif they are of \
             the visitor, no redrive merges them.",
            plural(removed.cut, "dead letter")
        )
    })
}

/// Asks for the address.
fn confirm(ip: &str) -> Result<(), Fault> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(Fault::config(
            "nothing was removed: there is no terminal to ask at. Add --yes to remove it without \
             being asked"
                .to_owned(),
        ));
    }
    say("Type the address to remove it: ")?;
    let mut typed = String::new();
    stdin
        .lock()
        .read_line(&mut typed)
        .map_err(|why| Fault::environment(format!("nothing was removed: no answer: {why}")))?;
    if typed.trim() == ip.trim() {
        return Ok(());
    }
    Err(Fault::config("nothing was removed: that is not the address"))
}
