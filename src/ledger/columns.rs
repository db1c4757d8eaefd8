//! The columns of a table: whether they can hold sessions, and everything that is wrong with them,
//! in one message.

use std::collections::BTreeMap;

use postgres::GenericClient;

use crate::dataflow::ports::LedgerError;
use crate::ledger::LedgerConfig;
use crate::ledger::connect::classify;
use crate::ledger::table::refuse;

const COLUMNS: [&str; 5] = ["ip", "host", "session_start", "session_end", "num_logs"];

/// Checks that the columns can hold what we write; returns the type of the times. The error names
/// everything that is wrong.
pub fn check(
    client: &mut impl GenericClient,
    config: &LedgerConfig,
    oid: u32,
    shown: &str,
    advice: &mut Vec<String>,
) -> Result<&'static str, LedgerError> {
    let columns = client
        .query(
            "select a.attname::text, format_type(a.atttypid, null),
                    a.attnotnull and not a.atthasdef and a.attidentity = ''
                        and a.attgenerated = '',
                    a.atttypmod, a.attgenerated <> '' or a.attidentity = 'a',
                    case when not c.collisdeterministic then c.collname::text end,
                    format_type(a.atttypid, a.atttypmod)
             from pg_attribute a left join pg_collation c on c.oid = a.attcollation
             where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped",
            &[&oid],
        )
        .map_err(|why| classify(&why, "looking at the columns of the table"))?;
    let mut types: BTreeMap<String, String> = Default::default();
    let mut problems = Problems::default();
    for row in columns {
        let (column, ty, needed, modifier): (String, String, bool, i32) =
            (row.get(0), row.get(1), row.get(2), row.get(3));
        if !COLUMNS.contains(&&*column) {
            if needed {
                problems.add(format!("its column {column} needs a value and has no default"));
            }
            continue;
        }
        // timestamp(0) to (2) would round, but a row must be found again by its times.
        if ty.starts_with("timestamp") && (0..3).contains(&modifier) {
            problems.add(format!("its column {column} does not hold milliseconds"));
            problems.mend(format!("alter table {shown} alter column {column} type {ty};"));
        }
        if row.get(4) {
            problems.add(format!("its column {column} is generated: the job writes it itself"));
        }
        let full: String = row.get(6);
        if let Some(collation) = row.get::<_, Option<&str>>(5) {
            problems.add(format!(
                "its column {column} has the collation {collation}, in which different texts can be \
                 equal, so that sessions of different visitors would be one"
            ));
            let change = format!("alter column {column} type {full} collate \"C\"");
            problems.mend(format!("alter table {shown} {change};"));
        }
        // An IPv6 address has up to 45 characters, a host name up to 253.
        let longest = if column == "ip" { 45 } else { 253 };
        if ty == "character varying" && modifier >= 0 && modifier - 4 < longest {
            advice.push(format!(
                "the column {column} of the table {shown} is a {full}: a session with a longer \
                 {column} cannot be stored and becomes a dead letter (row_refused). To make room: \
                 alter table {shown} alter column {column} type text;"
            ));
        }
        types.insert(column, ty);
    }
    let time_type = check_types(&types, shown, &mut problems);
    match problems.text() {
        Some(all) => Err(refuse(config, &all)),
        None => Ok(time_type),
    }
}

/// Checks that all columns exist and can hold what we write; returns the type of the times.
fn check_types(
    types: &BTreeMap<String, String>,
    shown: &str,
    problems: &mut Problems,
) -> &'static str {
    let mut check = |column: &str, allowed: &[&str]| match types.get(column) {
        Some(ty) if allowed.contains(&ty.as_str()) => Some(ty),
        None => {
            problems.add(format!("it has no column {column}"));
            problems.mend(format!("alter table {shown} add column {column} {};", allowed[0]));
            None
        }
        Some(ty) => {
            let allowed_types = allowed.join(" or ");
            problems
                .add(format!("its column {column} is of type {ty}, it must be {allowed_types}"));
            let using = match (ty.as_str(), allowed[0]) {
                // A cast would append the length of the network.
                ("inet" | "cidr", "text") => format!(" using host({column})"),
                (_, to) => format!(" using {column}::{to}"),
            };
            let change = format!("alter column {column} type {}{using}", allowed[0]);
            problems.mend(format!("alter table {shown} {change};"));
            None
        }
    };
    for column in ["ip", "host"] {
        check(column, &["text", "character varying"]);
    }
    let times = ["timestamp with time zone", "timestamp without time zone"];
    let (start, end) = (check("session_start", &times), check("session_end", &times));
    check("num_logs", &["bigint"]);
    if let (Some(start), Some(end)) = (start, end)
        && start != end
    {
        problems.add(format!(
            "session_start is {start} and session_end is {end}: give both the same type"
        ));
    }
    if start.is_some_and(|start| start == times[0]) { "timestamptz" } else { "timestamp" }
}

/// What is wrong with the columns, and the SQL that corrects it.
#[derive(Default)]
struct Problems {
    reasons: Vec<String>,
    remedies: Vec<String>,
}

impl Problems {
    fn add(&mut self, reason: String) {
        self.reasons.push(reason);
    }

    fn mend(&mut self, sql: String) {
        self.remedies.push(sql);
    }

    /// All reasons, then all SQL; `None` if nothing is wrong.
    fn text(&self) -> Option<String> {
        if self.reasons.is_empty() {
            return None;
        }
        let reasons = self.reasons.join("; ");
        match self.remedies.is_empty() {
            true => Some(reasons),
            false => Some(format!("{reasons}; {}", self.remedies.join(" "))),
        }
    }
}
