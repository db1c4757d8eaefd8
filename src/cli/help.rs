//! The help: required settings first, the variable and the default of each flag, examples.

use clap::{Arg, ArgAction, Command};

use crate::cli::variables::{has_variable, names};

const TEMPLATE: &str = "\
{about-with-newline}
{usage-heading} {usage}

{before-help}{all-args}{after-help}";

/// The same for a command without a text before its options, which would leave blank lines.
const PLAIN_TEMPLATE: &str = "\
{about-with-newline}
{usage-heading} {usage}

{all-args}{after-help}";

const JOB: &str = "\
Required environment variables:
  KAFKA_URL      the brokers: host:port[,host:port]
  KAFKA_TOPIC    the topic, or several: a,b
  KAFKA_GROUP    names the job, and the consumer group whose lag tools can show
  POSTGRES_URL   jdbc:postgresql://host:port/database
                 or postgres://host:port/database
";

const JOB_MORE: &str = "
Logins, if the servers ask for them:
  KAFKA_WEB_TRAFFIC_KEY, KAFKA_WEB_TRAFFIC_SECRET
                      both: SASL_SSL with PLAIN; neither: plaintext
  POSTGRES_USER       default: postgres (a user in the URL comes first)
  POSTGRES_PASSWORD   default: postgres (a password in the URL comes first)
  KAFKA_WEB_TRAFFIC_SECRET_FILE, POSTGRES_PASSWORD_FILE
                      files that hold the secret, instead of the variables
  PGPASSFILE          a password file of libpq, if no password is set

The secret that several processes share:
  SESSIONIZER_CLUSTER_SECRET
                      the secret itself, instead of --cluster-secret-file

What is logged:
  RUST_LOG            warn, info (default) or debug

A flag overrides its variable, and a variable overrides --env-file.
";

const PRODUCE: &str = "\
Required environment variables:
  KAFKA_URL      the brokers: host:port[,host:port]
  KAFKA_TOPIC    the topic to write to; it is created if it is missing

If the brokers ask for a login: KAFKA_WEB_TRAFFIC_KEY, KAFKA_WEB_TRAFFIC_SECRET.
";

const AUDIT: &str = "\
Required environment variables, those of the job:
  KAFKA_URL, KAFKA_TOPIC, KAFKA_GROUP, POSTGRES_URL

Logins, if the servers ask for them:
  KAFKA_WEB_TRAFFIC_KEY, KAFKA_WEB_TRAFFIC_SECRET
  POSTGRES_USER, POSTGRES_PASSWORD
";

const CHECK: &str = "\
Reads all settings of the job, by the same variables and flags
(`sessionizer --help`):
  KAFKA_URL, KAFKA_TOPIC, KAFKA_GROUP, POSTGRES_URL, the logins, SESSIONIZER_...
";

const CHECK_EXAMPLES: &str = "\
Exit codes:
  0  everything is good, apart from warnings
  1  something outside fails, and may resolve itself
  2  a setting is wrong, or something else has to be corrected by hand
  3  an instance of the job is running

Examples:
  sessionizer check
  sessionizer check --env-file job.env --gap 30m
  sessionizer check --only kafka,data
  sessionizer check --wait 60s && sessionizer";

const DEMO: &str = "\
Required environment variable:
  POSTGRES_URL   jdbc:postgresql://host:port/database
                 or postgres://host:port/database

The login: POSTGRES_USER, POSTGRES_PASSWORD (default: postgres).
";

const RESET: &str = "\
Required environment variables, those of the job:
  POSTGRES_URL, and KAFKA_GROUP or --job

The login: POSTGRES_USER, POSTGRES_PASSWORD (default: postgres).
";

const CODES: &str = "\
Exit codes:
  0  done, or stopped as asked
  1  something outside failed that may resolve itself: start it again
  2  a setting is wrong, or something else has to be corrected by hand first
  3  another instance of the job has taken over
  4  another process of the job was lost: start all of them again
A second signal ends it at once, with 128 plus the number of the signal.";

const JOB_EXAMPLES: &str = "\
Examples:
  sessionizer                          run the job with the defaults
  sessionizer -w 4 --gap 30m           four workers, a gap of half an hour
  sessionizer --until-end              read to the current end and exit
  sessionizer --from 2026-01-31T12:00:00Z --job second --table second
                                       a second job beside it, from a set time
  sessionizer --env-file job.env --kafka-config ssl.ca.location=/etc/ca.pem

";

const PRODUCE_EXAMPLES: &str = "\
Examples:
  sessionizer produce                            100 events a second, forever
  sessionizer produce --rate 5000 --number 1000000
  sessionizer produce --historical 30d --disorder 10s --late 0.01
  sessionizer produce --access-log access.log.gz --host www.example.org";

const COMPARE_EXAMPLES: &str = "\
Examples:
  sessionizer compare --against flink_sessions
  sessionizer compare --against web.flink_sessions --since 2026-01-31T00:00:00Z
  sessionizer compare --against flink_sessions --no-topic --json | jq .classes";

const AUDIT_EXAMPLES: &str = "\
Exit codes: 0 the table is right, 1 it is not (or a server failed), 2 as for the
job.
With --every, a difference ends nothing: 0 when it is stopped.

Examples:
  sessionizer audit                    continue from the last audit
  sessionizer audit --every 1h         forever; the page shows the result
  sessionizer audit --full --env-file job.env --show 100";

const STATUS_EXAMPLES: &str = "\
Examples:
  sessionizer status
  sessionizer status --watch
  sessionizer status --json http://10.8.0.1:9464 | jq .tiles";

const REPORT_EXAMPLES: &str = "\
Examples:
  sessionizer report
  sessionizer report --html report.html --from 2026-01-01 --to 2026-01-31
  sessionizer report --csv --only bounce_rate --host www.example.org
  sessionizer report --json --only longest_sessions --addresses | jq .parts";

const OPEN_EXAMPLES: &str = "\
Exit codes: 0 done, also if no session is open; 1 Postgres failed; 2 as for the
job.

Examples:
  sessionizer open
  sessionizer open --ip 192.0.2.7
  sessionizer open --host shop.example --limit 1000 --json | jq '.sessions[].ip'";

const FORGET_EXAMPLES: &str = "\
Exit codes: 0 done, also if nothing of the visitor was found; 1 Postgres failed:
run it again; 2 as for the job, and if it runs or was not stopped cleanly.

Examples:
  sessionizer forget --ip 192.0.2.7 --dry-run
  sessionizer forget --ip 192.0.2.7 --host shop.example --yes";

const REDRIVE_EXAMPLES: &str = "\
Exit codes: 0 done, also if none is an event now; 1 a server failed:
run it again; 2 as for the job, and if it runs or was not stopped cleanly.

Examples:
  sessionizer redrive --reason future --dry-run    after correcting a clock
  sessionizer redrive --reason late --yes          after giving up --late drop
  sessionizer redrive --reason row_refused         after widening the table";

const HEALTH_EXAMPLES: &str = "\
Exit codes: 0 it is ready, 1 it is not or does not answer, 2 what answers is not
a sessionizer job, or is another one.

Examples:
  sessionizer health
  sessionizer health --live http://10.8.0.1:9464";

/// Adds the variables and defaults of the flags, and the surrounding texts.
pub fn describe(root: Command) -> Command {
    let short = "For more, see `sessionizer --help` and `sessionizer help COMMAND`.";
    root.help_template(TEMPLATE)
        .subcommand_help_heading("Commands")
        .before_help(JOB)
        .before_long_help(format!("{JOB}{JOB_MORE}"))
        .after_help(short)
        .after_long_help(format!("{JOB_EXAMPLES}{CODES}"))
        .mut_args(|arg| with_variable("", arg))
        .mut_subcommands(|command| {
            let name = command.get_name().to_owned();
            let (before, after) = match name.as_str() {
                "produce" => (PRODUCE, PRODUCE_EXAMPLES),
                "audit" => (AUDIT, AUDIT_EXAMPLES),
                "check" => (CHECK, CHECK_EXAMPLES),
                "compare" => (AUDIT, COMPARE_EXAMPLES),
                "reset" => (RESET, ""),
                "report" => (RESET, REPORT_EXAMPLES),
                "open" => (RESET, OPEN_EXAMPLES),
                "forget" => (RESET, FORGET_EXAMPLES),
                "redrive" => (AUDIT, REDRIVE_EXAMPLES),
                "demo" => (DEMO, ""),
                "status" => ("", STATUS_EXAMPLES),
                "health" => ("", HEALTH_EXAMPLES),
                _ => ("", ""),
            };
            let command = match before {
                "" => command.help_template(PLAIN_TEMPLATE),
                before => command.before_help(before).help_template(TEMPLATE),
            };
            command
                .after_help(after)
                .mut_args(|arg| with_variable(&name, arg))
                // The flags of the job, which its own help explains.
                .mut_args(|arg| match name == "check" && arg.get_help_heading().is_some() {
                    true => arg.hide(true),
                    false => arg,
                })
        })
}

/// The short help ends with the default, the long one with the variable and the default.
fn with_variable(command: &str, arg: Arg) -> Arg {
    if !has_variable(command, &arg) {
        return arg;
    }
    let flag = arg.get_long().expect("it has a variable").to_owned();
    let variable = names(command, &flag).swap_remove(0);
    let takes = matches!(arg.get_action(), ArgAction::Set | ArgAction::Append);
    let default = match takes {
        true => arg.get_default_values().first().and_then(|value| value.to_str()),
        false => None,
    };
    let default = default.map_or(String::new(), |value| format!(" [default: {value}]"));
    let short = arg.get_help().map(ToString::to_string).unwrap_or_default();
    let long = arg.get_long_help().map(ToString::to_string).unwrap_or_else(|| short.clone());
    let long = format!("{long}\n\n[env: {variable}]{default}");
    arg.help(format!("{short}{default}")).long_help(long).hide_default_value(takes)
}
