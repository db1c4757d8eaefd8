//! How to reach Postgres, and the names of the job and its table.

use std::path::PathBuf;

use sessionizer_core::secret::Secret;
use sessionizer_core::time::Gap;

use crate::cli::RunArgs;
use crate::config::kafka::LONGEST_NAME;
use crate::config::secret_files::from_pgpass;
use crate::config::value::{duration_ms, name, whole};
use crate::config::{Environment, Problems};
use crate::ledger::url;
use crate::ledger::url::PostgresUrl;
use crate::ledger::{LedgerConfig, SessionEnd};

/// Postgres silently truncates longer names.
const LONGEST_IDENTIFIER: usize = 63;

/// Reads where Postgres is, and the login.
fn read_login(
    problems: &mut Problems<'_>,
    env: &Environment,
) -> Option<(PostgresUrl, String, Secret)> {
    let url = match env.value("POSTGRES_URL") {
        Some(text) => problems.take("POSTGRES_URL", url::parse(&text)),
        None => {
            let what = "is not set: jdbc:postgresql://host:port/database or postgres://...";
            problems.add("POSTGRES_URL", what);
            None
        }
    }?;
    let files = [
        ("sslrootcert", &url.root_cert),
        ("sslcert", &url.client_cert),
        ("sslkey", &url.client_key),
    ];
    for (parameter, file) in files {
        if file.as_ref().is_some_and(|file: &PathBuf| !file.is_absolute()) {
            problems.add("POSTGRES_URL", format!("{parameter} must be an absolute path"));
        }
    }
    if url.schemas.iter().any(|schema| schema.len() > LONGEST_IDENTIFIER) {
        let what = format!("currentSchema has a name of more than {LONGEST_IDENTIFIER} bytes");
        problems.add("POSTGRES_URL", what);
    }
    let default = || "postgres".to_owned();
    let user = url.user.clone().or_else(|| env.value("POSTGRES_USER")).unwrap_or_else(default);
    problems.take("POSTGRES_USER", name(&user, LONGEST_IDENTIFIER));
    let mut password = url.password.clone().or_else(|| env.secret("POSTGRES_PASSWORD"));
    if password.is_none() {
        password = problems.take("PGPASSFILE", from_pgpass(env, &url, &user))?;
    }
    let password = Secret::new(password.unwrap_or_else(default));
    Some((url, user, password))
}

/// The name of the job.
pub fn read_job(
    problems: &mut Problems<'_>,
    job: Option<&str>,
    env: &Environment,
) -> Option<String> {
    let job = job.map(str::trim).filter(|job| !job.is_empty()).map(str::to_owned);
    match job {
        Some(job) => problems.take("--job", name(&job, LONGEST_NAME)),
        None => env.value("KAFKA_GROUP"),
    }
}

/// Reads how to reach the state of a job, which holds the settings fixed at its creation.
pub fn read_ledger_of(
    problems: &mut Problems<'_>,
    job: Option<&str>,
    env: &Environment,
) -> Option<LedgerConfig> {
    let login = read_login(problems, env);
    let job = read_job(problems, job, env);
    let (url, user, password) = login?;
    Some(LedgerConfig {
        url,
        user,
        password,
        job: job?,
        table: String::new(),
        shards: 0,
        gap: Gap::from_millis(1)?,
        session_end: SessionEnd::Window,
        accept_empty_table: false,
    })
}

/// The same for a command that does not read the settings of Kafka, among which the job's name
/// would be missed. `what` says what the job is named for.
pub fn read_ledger_alone(
    problems: &mut Problems<'_>,
    job: Option<&str>,
    what: &str,
    env: &Environment,
) -> Option<LedgerConfig> {
    let ledger = read_ledger_of(problems, job, env);
    if job.is_none() && env.value("KAFKA_GROUP").is_none() && !problems.concern("--job") {
        problems.add("--job", format!("is not given, nor KAFKA_GROUP: {what}"));
    }
    ledger
}

/// Reads everything that concerns Postgres.
pub fn read_ledger(
    problems: &mut Problems<'_>,
    args: &RunArgs,
    env: &Environment,
) -> Option<LedgerConfig> {
    let login = read_login(problems, env);
    let gap = problems.take("--gap", duration_ms(&args.gap, 1, 31_536_000_000_000));
    let session_end = [SessionEnd::Window, SessionEnd::LastEvent]
        .into_iter()
        .find(|which| which.name() == args.session_end.trim())
        .ok_or_else(|| format!("is {:?}: it can be window or last-event", args.session_end));
    let session_end = problems.take("--session-end", session_end);
    let shards = problems.take("--shards", whole(&args.shards, 1, 65_536));
    let table = problems.take("--table", read_table(&args.table));
    let job = read_job(problems, args.job.as_deref(), env);
    let (url, user, password) = login?;
    Some(LedgerConfig {
        url,
        user,
        password,
        job: job?,
        table: table?,
        shards: shards? as u32,
        gap: Gap::from_millis(gap? as i64)?,
        session_end: session_end?,
        accept_empty_table: args.accept_empty_table,
    })
}

/// A table by its name, or by schema and name.
pub fn read_table(text: &str) -> Result<String, String> {
    let table = text.trim();
    let parts: Vec<&str> = table.split('.').collect();
    if parts.len() > 2 || parts.iter().any(|part| part.trim().is_empty()) {
        return Err(format!("is {table:?}: it must be name or schema.name"));
    }
    let is_quoted = |part: &&str| part.len() > 1 && part.starts_with('"') && part.ends_with('"');
    if parts.iter().any(is_quoted) {
        return Err(format!("is {table:?}: write names as they are, without quotes"));
    }
    let of_system = |schema: &str| {
        ["sessionizer", "information_schema"].contains(&schema) || schema.starts_with("pg_")
    };
    if let [schema, _] = parts[..]
        && of_system(schema)
    {
        return Err(format!("is {table:?}, in a schema that is not for tables of users"));
    }
    for part in parts {
        name(part, LONGEST_IDENTIFIER)
            .map_err(|what| format!("has the part {part:?}, which {what}"))?;
    }
    Ok(table.to_owned())
}
