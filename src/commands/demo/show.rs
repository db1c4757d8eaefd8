//! What the demo prints: at most 80 columns, for somebody who sees it for the first time.

use std::io::Write;
use std::time::Duration;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use sessionizer_core::fault::Fault;

use crate::cli::DemoArgs;
use crate::commands::demo::{GAP, NAME};
use crate::ledger;
use crate::ledger::LedgerConfig;
use crate::ui::bars::bars;
use crate::ui::text;

const COLUMNS: u16 = 80;

/// The columns of a session as the tables show them.
const SESSION: &str = "case when length(ip) > 20 then left(ip, 19) || '…' else ip end as ip,
    host, to_char(session_start, 'HH24:MI:SS') as session_start,
    to_char(session_end, 'HH24:MI:SS') as session_end, num_logs";

/// Titles, and the queries whose results are printed below them. `{n:...}` is a count.
const RESULTS: [(&str, &str); 4] = [
    (
        "The longest sessions",
        "select {session} from {table} order by num_logs desc, session_start limit 5",
    ),
    (
        "Sessions by host",
        "select host, {n:count(*)} as sessions, {n:count(distinct ip)} as visitors,
                {n:sum(num_logs)} as events, round(avg(num_logs), 1) as \"events per session\"
         from {table} group by host order by count(*) desc, host limit 5",
    ),
    (
        "Records that are not valid events (kept in sessionizer.dead_letters)",
        "select reason, {n:sum(records)} as records, left(min(detail), 43) ||
                case when length(min(detail)) > 43 then '…' else '' end as example
         from sessionizer.dead_letters where job = '{name}' group by reason
         order by sum(records) desc, reason",
    ),
    (
        "Where every record went: into a session or to the dead letters",
        "select {n:records} as records, {n:closed} as \"in closed sessions\",
                {n:open} as \"in open ones\", {n:dead} as \"dead letters\",
                {n:difference} as difference
         from sessionizer.balance where job = '{name}'",
    ),
];

/// What is about to happen.
pub fn intro(rate: f64) {
    // As for the log: the demo goes on if nobody can read it.
    let _ = writeln!(
        std::io::stderr(),
        "\nVisitors of three sites send {} events a second: out of order by up to 2 s,\n\
         one in 200 later than that, one in 500 broken. A minute of history comes first.\n\
         A session ends here after {GAP} without an event; the default is 5m.\n",
        text::count(rate as u64)
    );
}

/// The first rows of the table, while the job goes on.
pub fn first_rows(config: &LedgerConfig, after: Duration) -> Result<(), Fault> {
    let sql = "select {session} from {table} order by num_logs desc, session_start limit 5";
    let table = answer(config, sql)?;
    let title = format!("The first rows, {:.1} s after the start", after.as_secs_f64());
    bars().suspend(|| println!("{title}\n{table}\n"));
    Ok(())
}

/// The results.
pub fn results(config: &LedgerConfig) -> Result<(), Fault> {
    for (title, sql) in RESULTS {
        println!("\n{title}\n{}", answer(config, sql)?);
    }
    Ok(())
}

/// What the audit says, if it was possible.
pub fn verdict(sent: u64, audited: Option<String>) {
    match audited {
        Some(sentence) => {
            let verdict = format!("The topic was reread and audited. {sentence}");
            println!("\n{}", wrap(&verdict));
        }
        None => println!(
            "\nNot audited: of the {} records that were sent, the demo's broker has kept only\n\
             the newest. A shorter demo, or one with a lower --rate, is audited at its end.",
            text::count(sent)
        ),
    }
}

/// What to do next.
pub fn next_steps(args: &DemoArgs) {
    let program = std::env::args().next().unwrap_or_else(|| "sessionizer".to_owned());
    println!(
        "\nNext, with your own Kafka and PostgreSQL:\n    \
         export KAFKA_URL=broker-1:9092,broker-2:9092\n    \
         export KAFKA_TOPIC=web-events\n    \
         export KAFKA_GROUP=sessionizer\n    \
         export POSTGRES_URL=jdbc:postgresql://db.example:5432/analytics\n    \
         {program} -w 4"
    );
    if !args.temporary_database {
        println!("The demo's rows stay in the table {NAME} until the next demo.");
    } else if !args.keep {
        println!("To look around first: scripts/demo --keep");
    }
}

/// Wraps a text to lines of at most 80 columns.
fn wrap(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is a line");
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= usize::from(COLUMNS) {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines.join("\n")
}

fn answer(config: &LedgerConfig, sql: &str) -> Result<Table, Fault> {
    let failed = |why| Fault::environment(format!("the results cannot be shown: {why}"));
    let table = ledger::qualified_table_name(config).map_err(|why| failed(why.to_string()))?;
    let table = table.ok_or_else(|| failed(format!("the table {NAME} is gone")))?;
    let rows = ledger::query(config, &spell_out(sql, &table));
    Ok(draw(rows.map_err(|why| failed(why.to_string()))?))
}

/// Fills in the names, and formats counts with thousands separators.
fn spell_out(sql: &str, table: &str) -> String {
    let names = [("{session}", SESSION), ("{table}", table), ("{name}", NAME)];
    let mut sql = names.iter().fold(sql.to_owned(), |sql, (name, value)| sql.replace(name, value));
    while let Some(at) = sql.find("{n:") {
        let end = at + sql[at..].find('}').expect("a count ends");
        let count = format!("to_char({}, 'FM999,999,999,990')", &sql[at + 3..end]);
        sql.replace_range(at..=end, &count);
    }
    sql
}

/// The rows below their header; numbers are right-aligned.
fn draw(rows: Vec<Vec<String>>) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    if table.width().is_none_or(|width| width > COLUMNS) {
        table.set_width(COLUMNS);
    }
    let mut rows = rows.into_iter();
    let Some(header) = rows.next() else {
        table.add_row(["none"]);
        return table;
    };
    let rows: Vec<Vec<String>> = rows.collect();
    let number = |text: &String| text.chars().all(|c| c.is_ascii_digit() || ",.-".contains(c));
    let numbers: Vec<bool> =
        (0..header.len()).map(|at| rows.iter().all(|row| number(&row[at]))).collect();
    table.set_header(header);
    table.add_rows(rows);
    for (column, _) in table.column_iter_mut().zip(numbers).filter(|(_, number)| *number) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_written_with_separators() {
        let sql = spell_out("select {n:count(*)} as a, {n:b} from {table} as {name}", "s.t");
        let count = |of: &str| format!("to_char({of}, 'FM999,999,999,990')");
        assert_eq!(
            sql,
            format!("select {} as a, {} from s.t as {NAME}", count("count(*)"), count("b"))
        );
    }

    #[test]
    fn text_is_wrapped_between_words() {
        let text = ["word"; 40].join(" ");
        let wrapped = wrap(&text);
        assert!(wrapped.lines().all(|line| line.len() <= 80), "{wrapped}");
        assert_eq!(wrapped.lines().next().map(str::len), Some(79));
        assert_eq!(wrapped.replace('\n', " "), text);
    }

    #[test]
    fn tables_are_at_most_80_columns_wide() {
        let long = "x".repeat(200);
        let rows = [["a", "b"], ["1,234", &long], ["17", "y"]];
        let table = draw(rows.map(|row| row.map(str::to_owned).to_vec()).to_vec()).to_string();
        assert!(table.lines().all(|line| line.chars().count() <= 80), "{table}");
        assert!(table.contains("│    17 ┆"), "numbers stand to the right:\n{table}");
        assert!(draw(Vec::new()).to_string().contains("none"));
    }
}
