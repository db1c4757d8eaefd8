//! What a check has found, on the screen and as JSON. Pure: the width and the signs are given.

use serde_json::{Value, json};
use sessionizer_core::fault::Fault;

use super::codes::{Code, Section};
use crate::dataflow::ports::LedgerError;
use crate::ui::text::plural;

/// The result of one check.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    Good,
    /// A start would succeed, and somebody should look at this.
    Warning,
    /// A start would fail, or not do what was meant. Holds the exit code.
    Failed(u8),
}

/// One line of the report.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    pub code: Code,
    pub outcome: Outcome,
    pub text: String,
    /// What to do, in order: sentences, commands or SQL.
    pub remedies: Vec<String>,
}

/// The words in the messages of a start that announce a remedy.
const ANNOUNCEMENTS: [&str; 9] = [
    "; grant it: ",
    ". Grant them: ",
    ". Give it another: ",
    ". To keep them: ",
    ". To make room: ",
    ". Make one, for example: ",
    "; to rule it out: ",
    ": the job needs sessions of its own: ",
    ". Nothing was changed. ",
];

/// How remedies that are not announced begin, with the punctuation before them.
const INSTRUCTIONS: [&str; 20] = [
    ": grant it ",
    "; check ",
    ". Either ",
    ": either ",
    ": create it, ",
    ": create the ",
    "; create the ",
    "; name a table ",
    ": give it ",
    ": give both ",
    ": start with ",
    ": start it with ",
    ". Start with --accept-lost-offsets",
    ". Log in as ",
    ". Run as ",
    ". Start that program ",
    ". Restore ",
    ": the job needs UTF8 ",
    ": raise the limit ",
    "; alter ",
];

/// Splits a message of a start into what is wrong and what to do.
fn split(message: &str) -> (String, Vec<String>) {
    let announced = ANNOUNCEMENTS.iter().map(|words| (words, words.len()));
    let instructed = INSTRUCTIONS.iter().map(|words| (words, ": ".len()));
    let places = announced
        .chain(instructed)
        .filter_map(|(words, before)| message.find(words).map(|at| (at, at + before)));
    match places.min() {
        None => (message.to_owned(), Vec::new()),
        Some((wrong, remedy)) => {
            let remedies = message[remedy..].lines().map(str::to_owned).collect();
            (message[..wrong].to_owned(), remedies)
        }
    }
}

impl Finding {
    pub fn good(code: Code, text: impl Into<String>) -> Self {
        Finding { code, outcome: Outcome::Good, text: text.into(), remedies: Vec::new() }
    }

    pub fn warning(code: Code, text: impl Into<String>, remedy: impl Into<String>) -> Self {
        let remedies = vec![remedy.into()];
        Finding { code, outcome: Outcome::Warning, text: text.into(), remedies }
    }

    pub fn failed(
        code: Code,
        exit: u8,
        text: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let remedies = vec![remedy.into()];
        Finding { code, outcome: Outcome::Failed(exit), text: text.into(), remedies }
    }

    /// A warning in the words of a start.
    pub fn advice(code: Code, message: &str) -> Self {
        let (text, remedies) = split(message);
        Finding { code, outcome: Outcome::Warning, text, remedies }
    }

    /// Why a start would fail.
    pub fn of_fault(code: Code, fault: &Fault) -> Self {
        let (text, remedies) = split(&fault.to_string());
        Finding { code, outcome: Outcome::Failed(fault.exit_code().min(2)), text, remedies }
    }

    /// Why a start would fail, or has to wait.
    pub fn of_error(code: Code, error: &LedgerError) -> Self {
        match error {
            LedgerError::Fatal(fault) => Finding::of_fault(code, fault),
            LedgerError::Retry(why) => {
                // A timeout of a statement, or of a lock: nothing is wrong with what was asked for.
                let is_slow = ["(57014)", "(55P03)"].iter().any(|code| why.contains(code));
                let slow = "raise --timeout, and see who holds a lock: select * from \
                            pg_stat_activity where state <> 'idle' order by xact_start";
                Finding {
                    code,
                    outcome: Outcome::Failed(1),
                    text: why.clone(),
                    remedies: is_slow.then(|| slow.to_owned()).into_iter().collect(),
                }
            }
        }
    }

    /// Adds a remedy if there is none yet.
    pub fn or_remedy(mut self, remedy: impl Into<String>) -> Self {
        if self.remedies.is_empty() {
            self.remedies.push(remedy.into());
        }
        self
    }

    pub fn has_failed(&self) -> bool {
        matches!(self.outcome, Outcome::Failed(_))
    }
}

/// Everything that was found, in order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    pub findings: Vec<Finding>,
    /// What is known of the partitions and the plan, for JSON.
    pub partitions: Vec<Value>,
    pub plan: Value,
}

impl Report {
    /// The exit code: what somebody has to correct takes precedence over what may pass by itself,
    /// and that over a running instance.
    pub fn exit_code(&self) -> u8 {
        let failed = |code: u8| self.findings.iter().any(|f| f.outcome == Outcome::Failed(code));
        [2, 1, 3].into_iter().find(|code| failed(*code)).unwrap_or(0)
    }

    /// The last line.
    pub fn summary(&self) -> String {
        let failed: Vec<&Finding> = self.findings.iter().filter(|f| f.has_failed()).collect();
        let warnings = self.findings.iter().filter(|f| f.outcome == Outcome::Warning).count();
        let warnings = match warnings {
            0 => String::new(),
            warnings => format!(", {}", plural(warnings, "warning")),
        };
        let mut codes: Vec<String> = failed.iter().map(|finding| finding.code.id()).collect();
        codes.dedup();
        match self.exit_code() {
            0 => format!("good: {}{warnings}", plural(self.findings.len(), "check")),
            3 if failed.len() == 1 => format!("an instance of the job is running{warnings}"),
            code => {
                let what = match code {
                    1 => "it may resolve itself (--wait 60s)",
                    _ => "it has to be corrected by hand",
                };
                let failed = plural(failed.len(), "failure");
                format!("{failed}{warnings}: {}; {what}", codes.join(", "))
            }
        }
    }

    /// The whole report as a JSON document. docs/OPERATIONS.md describes it.
    pub fn json(&self, at_ms: u64, job: Option<&str>) -> Value {
        let findings: Vec<Value> = self.findings.iter().map(as_json).collect();
        json!({
            "format": 1,
            "version": env!("CARGO_PKG_VERSION"),
            "at": at_ms,
            "job": job,
            "exit_code": self.exit_code(),
            "summary": self.summary(),
            "findings": findings,
            "partitions": self.partitions,
            "plan": self.plan,
        })
    }
}

fn as_json(finding: &Finding) -> Value {
    let (outcome, exit) = match finding.outcome {
        Outcome::Good => ("good", 0),
        Outcome::Warning => ("warning", 0),
        Outcome::Failed(exit) => ("failed", exit),
    };
    json!({
        "code": finding.code.id(),
        "title": finding.code.title(),
        "section": finding.code.section().name(),
        "outcome": outcome,
        "exit_code": exit,
        "text": finding.text,
        "remedies": finding.remedies,
    })
}

/// How lines are shown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Style {
    pub width: usize,
    /// Signs beyond ASCII, as on a terminal with UTF-8.
    pub signs: bool,
    pub colours: bool,
}

/// The indent of what follows the first line of a finding.
const INDENT: &str = "            ";

impl Style {
    /// The lines of a finding, below the heading of its section if it is the first one there.
    pub fn finding(self, finding: &Finding, before: Option<Section>) -> String {
        let mut out = String::new();
        let section = finding.code.section();
        if before != Some(section) {
            if before.is_some() {
                out.push('\n');
            }
            out.push_str(section.heading());
            out.push('\n');
        }
        let (sign, colour) = match (finding.outcome, self.signs) {
            (Outcome::Good, true) => ("√", "32"),
            (Outcome::Warning, true) => ("‼", "33"),
            (Outcome::Failed(_), true) => ("×", "31"),
            (Outcome::Good, false) => ("ok  ", "32"),
            (Outcome::Warning, false) => ("warn", "33"),
            (Outcome::Failed(_), false) => ("FAIL", "31"),
        };
        let sign = match self.colours {
            true => format!("\x1b[{colour}m{sign}\x1b[0m"),
            false => sign.to_owned(),
        };
        let head = format!("  {sign} {}  ", finding.code.id());
        let extra = if self.signs { "" } else { "   " };
        let indent = format!("{INDENT}{extra}");
        let room = self.width.saturating_sub(indent.len()).max(20);
        for (at, line) in wrapped(&finding.text, room).iter().enumerate() {
            out.push_str(if at == 0 { &head } else { &indent });
            out.push_str(line);
            out.push('\n');
        }
        for remedy in &finding.remedies {
            for line in remedy_lines(remedy, room.saturating_sub(2)) {
                out.push_str(&format!("{indent}  {line}\n"));
            }
        }
        out
    }
}

/// The lines of a remedy. Commands still work when they are copied: the shell joins lines that end
/// with a backslash, and SQL takes a line break for a space unless it is within quotes.
fn remedy_lines(remedy: &str, room: usize) -> Vec<String> {
    let remedy = remedy.trim_end();
    let is_shell = remedy.starts_with("kafka-");
    let is_sql = remedy.ends_with(';');
    let quotes_blank = remedy.split('"').skip(1).step_by(2).any(|name| name.contains(' '));
    if is_sql && quotes_blank {
        return vec![remedy.to_owned()];
    }
    let mut lines = wrapped(remedy, if is_shell { room.saturating_sub(2) } else { room });
    let last = lines.len().saturating_sub(1);
    if is_shell {
        lines[..last].iter_mut().for_each(|line| line.push_str(" \\"));
    }
    lines
}

/// Breaks a text at spaces into lines of at most this many characters.
fn wrapped(text: &str, room: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.lines() {
        let lead: String = paragraph.chars().take_while(|c| *c == ' ').collect();
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            let long = line.chars().count() + 1 + word.chars().count() > room;
            if !line.trim().is_empty() && long {
                lines.push(std::mem::take(&mut line));
            }
            line.push_str(if line.is_empty() { &lead } else { " " });
            line.push_str(word);
        }
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_split_into_what_is_wrong_and_what_to_do() {
        for (message, text, remedy) in [
            (
                "the login a lacks the right to delete on the table t; grant it: grant delete on t \
                 to \"a\";",
                "the login a lacks the right to delete on the table t",
                "grant delete on t to \"a\";",
            ),
            (
                "the topic x does not exist: create it, or correct KAFKA_TOPIC",
                "the topic x does not exist",
                "create it, or correct KAFKA_TOPIC",
            ),
            (
                "Kafka does not let this login read the topic x: grant it READ on the topic",
                "Kafka does not let this login read the topic x",
                "grant it READ on the topic",
            ),
            (
                "a pooler: the job needs sessions of its own: let POSTGRES_URL lead elsewhere",
                "a pooler",
                "let POSTGRES_URL lead elsewhere",
            ),
        ] {
            assert_eq!(split(message), (text.to_owned(), vec![remedy.to_owned()]));
        }
        assert_eq!(split("nothing to do").1, Vec::<String>::new());
    }

    fn report(outcomes: &[(Code, Outcome)]) -> Report {
        let finding = |(code, outcome): &(Code, Outcome)| {
            let remedies = Vec::new();
            Finding { code: *code, outcome: *outcome, text: "t".to_owned(), remedies }
        };
        Report { findings: outcomes.iter().map(finding).collect(), ..Report::default() }
    }

    #[test]
    fn what_has_to_be_corrected_decides_the_exit_code() {
        let good = (Code::S01, Outcome::Good);
        let failed = |code: u8| (Code::K03, Outcome::Failed(code));
        let running = (Code::L04, Outcome::Failed(3));
        assert_eq!(report(&[good, (Code::S02, Outcome::Warning)]).exit_code(), 0);
        assert_eq!(report(&[good, failed(1)]).exit_code(), 1);
        assert_eq!(report(&[failed(1), failed(2), running]).exit_code(), 2);
        assert_eq!(report(&[good, running]).exit_code(), 3);
    }

    #[test]
    fn the_summary_counts_and_names_the_codes() {
        let warning = (Code::S02, Outcome::Warning);
        assert_eq!(report(&[warning]).summary(), "good: 1 check, 1 warning");
        let summary = report(&[(Code::K03, Outcome::Failed(2)), warning]).summary();
        let want = "1 failure, 1 warning: SZ-K03; it has to be corrected by hand";
        assert_eq!(summary, want);
    }

    #[test]
    fn lines_keep_to_the_width_and_commands_can_be_copied() {
        let sql = format!("grant delete on \"a {}\" to b;", "t".repeat(90));
        let shell = format!("kafka-topics.sh --create --topic {} --partitions 4", "t".repeat(50));
        let finding = Finding {
            code: Code::P11,
            outcome: Outcome::Failed(2),
            text: "word ".repeat(40),
            remedies: vec!["say ".repeat(40), sql.clone(), shell.clone()],
        };
        for signs in [true, false] {
            let text = Style { width: 80, signs, colours: false }.finding(&finding, None);
            assert!(text.starts_with("PostgreSQL\n"), "{text}");
            let long: Vec<&str> = text.lines().filter(|l| l.chars().count() > 80).collect();
            assert_eq!(long.len(), 1, "{text}");
            assert!(long[0].ends_with(&sql), "{text}");
            let joined = text.split_whitespace().filter(|word| *word != "\\");
            assert!(joined.collect::<Vec<_>>().join(" ").ends_with(&shell), "{text}");
            assert!(signs || text.is_ascii(), "{text}");
        }
    }
}
