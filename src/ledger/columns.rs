//! The columns of a table: whether they can hold sessions, and everything that is wrong with them,
//! in one message.

use std::collections::BTreeMap;

use postgres::GenericClient;
use sessionizer_core::fault::Message;

use crate::dataflow::ports::LedgerError;
use crate::ledger::LedgerConfig;
use crate::ledger::errors::classify;
use crate::ledger::table::refuse;

const COLUMNS: [&str; 5] = ["ip", "host", "session_start", "session_end", "num_logs"];

/// A text that is another one after any change to the columns of a job's table, or if another table
/// has taken its name.
pub const FINGERPRINT: &str = "
    select coalesce(string_agg(concat_ws(' ', attrelid, attnum, xmin), ',' order by attnum), '')
    from pg_attribute
    where attnum > 0 and attrelid = (select to_regclass(format('%I.%I', table_schema, table_name))
                                     from sessionizer.jobs where job = $1)";

/// Checks that the columns can hold what we write; returns the type of the times. The error names
/// everything that is wrong.
pub fn check(
    client: &mut impl GenericClient,
    config: &LedgerConfig,
    oid: u32,
    shown: &str,
    advice: &mut Vec<Message>,
) -> Result<&'static str, LedgerError> {
    let columns = client
        .query(
            "select a.attname::text, format_type(a.atttypid, null),
                    a.attnotnull and not a.atthasdef and a.attidentity = ''
                        and a.attgenerated = '',
                    a.atttypmod, a.attgenerated <> '' or a.attidentity = 'a',
                    case when not c.collisdeterministic then c.collname::text end,
                    format_type(a.atttypid, a.atttypmod),
                    a.attname in ('ip', 'host') or base.typcategory = 'S'
                        or exists (select from pg_cast
                                   where castsource = base.oid
                                         and casttarget = case a.attname when 'num_logs'
                                                          then 'int8'::regtype
                                                          else 'timestamptz'::regtype end)
             from pg_attribute a left join pg_collation c on c.oid = a.attcollation
             join pg_type t on t.oid = a.atttypid
             join pg_type base on base.oid = coalesce(nullif(t.typbasetype, 0), t.oid)
             where a.attrelid = $1 and a.attnum > 0 and not a.attisdropped",
            &[&oid],
        )
        .map_err(|why| classify(&why, "looking at the columns of the table"))?;
    let mut types: BTreeMap<String, Type> = Default::default();
    let mut problems = Problems::default();
    for row in columns {
        let (name, ty, needed): (String, String, bool) = (row.get(0), row.get(1), row.get(2));
        if COLUMNS.contains(&&*name) {
            let column = Column {
                name: &name,
                ty: &ty,
                modifier: row.get(3),
                generated: row.get(4),
                collation: row.get(5),
                full_type: row.get(6),
            };
            column.check(shown, &mut problems);
            advice.extend(column.advice(shown));
            types.insert(name, Type { name: ty, can_be_cast: row.get(7) });
        } else if needed {
            problems.add(format!("its column {name} needs a value and has no default"));
        }
    }
    let time_type = check_types(&types, shown, &mut problems);
    // Commands that find the table by its job are not told its name.
    let table = if config.table.is_empty() { shown } else { &config.table };
    problems.message().map_or(Ok(time_type), |all| Err(refuse(table, all)))
}

/// The type of a column.
struct Type {
    name: String,
    /// Whether Postgres can convert its values to those of the type that we write.
    can_be_cast: bool,
}

/// A column that we write.
struct Column<'a> {
    name: &'a str,
    ty: &'a str,
    /// The precision or length of the type, as Postgres keeps it.
    modifier: i32,
    generated: bool,
    /// Only one in which different texts can be equal.
    collation: Option<&'a str>,
    /// With the modifier.
    full_type: &'a str,
}

impl Column<'_> {
    /// Checks that it takes every value as it is.
    fn check(&self, shown: &str, problems: &mut Problems) {
        let Column { name, ty, full_type, .. } = self;
        // timestamp(0) to (2) would round, but a row must be found again by its times.
        if ty.starts_with("timestamp") && (0..3).contains(&self.modifier) {
            problems.add(format!("its column {name} does not hold milliseconds"));
            problems.mend(format!("alter table {shown} alter column {name} type {ty};"));
        }
        if self.generated {
            problems.add(format!("its column {name} is generated: the job writes it itself"));
        }
        if let Some(collation) = self.collation {
            problems.add(format!(
                "its column {name} has the collation {collation}, in which different texts can be \
                 equal, so that sessions of different visitors would be one"
            ));
            let change = format!("alter column {name} type {full_type} collate \"C\"");
            problems.mend(format!("alter table {shown} {change};"));
        }
    }

    /// What to say of a column with too little room for some values.
    fn advice(&self, shown: &str) -> Option<Message> {
        let Column { name, full_type, .. } = self;
        // An IPv6 address has up to 45 characters, a host name up to 253.
        let longest = if *name == "ip" { 45 } else { 253 };
        let is_short =
            self.ty == "character varying" && self.modifier >= 0 && self.modifier - 4 < longest;
        is_short.then(|| {
            let problem = format!(
                "the column {name} of the table {shown} is a {full_type}: a session with a longer \
                 {name} cannot be stored and becomes a dead letter (row_refused)"
            );
            let remedy = format!("alter table {shown} alter column {name} type text;");
            Message::new(problem).remedy(". To make room: ", remedy)
        })
    }
}

/// Checks that all columns exist and can hold what we write; returns the type of the times.
fn check_types(
    types: &BTreeMap<String, Type>,
    shown: &str,
    problems: &mut Problems,
) -> &'static str {
    let mut check = |column: &str, allowed: &[&str]| match types.get(column) {
        Some(ty) if allowed.contains(&ty.name.as_str()) => Some(&ty.name),
        None => {
            problems.add(format!("it has no column {column}"));
            problems.mend(format!("alter table {shown} add column {column} {};", allowed[0]));
            None
        }
        Some(Type { name: ty, can_be_cast }) => {
            let allowed_types = allowed.join(" or ");
            let reason = format!("its column {column} is of type {ty}, it must be {allowed_types}");
            if *can_be_cast {
                let using = match (ty.as_str(), allowed[0]) {
                    // A cast would append the length of the network.
                    ("inet" | "cidr", "text") => format!(" using host({column})"),
                    (_, to) => format!(" using {column}::{to}"),
                };
                let change = format!("alter column {column} type {}{using}", allowed[0]);
                problems.add(reason);
                problems.mend(format!("alter table {shown} {change};"));
            } else {
                problems.advise(
                    format!("{reason}; Postgres has no cast between the two"),
                    format!("give {column} another name, and add a column of that type"),
                );
            }
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
        let reason = format!("session_start is {start} and session_end is {end}");
        problems.advise(reason, "give both the same type".to_owned());
    }
    if start.is_some_and(|start| start == times[0]) { "timestamptz" } else { "timestamp" }
}

/// What is wrong with the columns, and the SQL that corrects it.
#[derive(Default)]
struct Problems {
    reasons: Vec<String>,
    /// What SQL alone does not correct, and what does.
    advised: Vec<(String, String)>,
    sql: Vec<String>,
}

impl Problems {
    fn add(&mut self, reason: String) {
        self.reasons.push(reason);
    }

    fn advise(&mut self, reason: String, advice: String) {
        self.advised.push((reason, advice));
    }

    fn mend(&mut self, sql: String) {
        self.sql.push(sql);
    }

    /// All reasons, then all remedies; `None` if nothing is wrong. Advice follows its reasons, and
    /// SQL, which names its column, comes last.
    fn message(&self) -> Option<Message> {
        let (reasons, advice): (Vec<_>, Vec<_>) = self.advised.iter().cloned().unzip();
        let reasons = [self.reasons.clone(), reasons].concat();
        if reasons.is_empty() {
            return None;
        }
        let message = Message::new(reasons.join("; "));
        let joint = if advice.is_empty() { "; " } else { ": " };
        let sql = (!self.sql.is_empty()).then(|| self.sql.join(" "));
        let remedies: Vec<String> = advice.into_iter().chain(sql).collect();
        match remedies.is_empty() {
            true => Some(message),
            false => Some(message.remedy(joint, remedies.join("; "))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RIGHT: [&str; 5] =
        ["text", "text", "timestamp with time zone", "timestamp with time zone", "bigint"];

    /// What is wrong with columns of these types; `None` is a column that is missing.
    fn wrong(types: [Option<(&str, bool)>; 5]) -> Option<Message> {
        let typed = |(name, ty): (&str, Option<(&str, bool)>)| {
            let (ty, can_be_cast) = ty?;
            Some((name.to_owned(), Type { name: ty.to_owned(), can_be_cast }))
        };
        let types = COLUMNS.into_iter().zip(types).filter_map(typed).collect();
        let mut problems = Problems::default();
        check_types(&types, "t", &mut problems);
        problems.message()
    }

    #[test]
    fn whatever_is_wrong_with_a_type_there_is_a_remedy_for_its_column() {
        let right = RIGHT.map(|ty| Some((ty, true)));
        assert_eq!(wrong(right), None);
        let others = [
            "bytea",
            "inet",
            "integer",
            "json",
            "timestamp without time zone",
            "character varying",
        ];
        for (at, column) in COLUMNS.iter().enumerate() {
            let castable = others.map(|ty| Some((ty, true)));
            let others =
                others.map(|ty| Some((ty, false))).into_iter().chain(castable).chain([None]);
            for other in others {
                let mut types = right;
                types[at] = other;
                let Some(message) = wrong(types) else {
                    let (ty, _) = other.expect("a column that is missing is a problem");
                    assert!(at < 2 && ty == "character varying", "{column} is of type {ty}");
                    continue;
                };
                let remedies = message.remedies().join(" ");
                let is_named = remedies.contains(column) || remedies.contains("both the same type");
                assert!(is_named, "{column}, {other:?}: {message}");
                assert!(!message.problem.contains(&remedies), "{message}");
            }
        }
    }

    #[test]
    fn remedies_follow_all_that_is_wrong() {
        let right = RIGHT.map(|ty| Some((ty, true)));
        let [ip, host, start, _, logs] = right;
        let end = Some(("timestamp without time zone", true));
        let message = wrong([ip, None, start, end, logs]).expect("two things are wrong");
        let problem = "it has no column host; session_start is timestamp with time zone and \
                       session_end is timestamp without time zone";
        let remedy = "give both the same type; alter table t add column host text;";
        assert_eq!(message, Message::new(problem).remedy(": ", remedy));
        let (number, bytes) = (Some(("integer", true)), Some(("bytea", false)));
        let message = wrong([bytes, host, start, start, number]).expect("two are wrong");
        let problem = "its column num_logs is of type integer, it must be bigint; its column ip is \
                       of type bytea, it must be text or character varying; Postgres has no cast \
                       between the two";
        let remedy = "give ip another name, and add a column of that type; alter table t alter \
                      column num_logs type bigint using num_logs::bigint;";
        assert_eq!(message, Message::new(problem).remedy(": ", remedy));
    }
}
