//! What a check has found, on the screen and as JSON. Pure: the width and the signs are given.

use serde_json::{Value, json};
use sessionizer_core::fault::{Fault, Message};

use super::codes::{Code, Section};
use crate::dataflow::ports::{Cause, LedgerError};
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
    pub fn advice(code: Code, message: Message) -> Self {
        Finding::of_message(code, Outcome::Warning, message)
    }

    /// Why a start would fail.
    pub fn of_fault(code: Code, fault: &Fault) -> Self {
        let outcome = Outcome::Failed(fault.exit_code().min(2));
        Finding::of_message(code, outcome, fault.message().clone())
    }

    /// Why a start would fail, or has to wait.
    pub fn of_error(code: Code, error: &LedgerError) -> Self {
        match error {
            LedgerError::Fatal(fault) => Finding::of_fault(code, fault),
            LedgerError::Retry(failure) => {
                let mut finding = Finding::of_message(code, Outcome::Failed(1), failure.message());
                if failure.cause == Cause::Timeout {
                    // The limit is that of the check itself.
                    let remedy = "raise --timeout, and see who holds a lock: select * from \
                                  pg_stat_activity where state <> 'idle' order by xact_start";
                    finding.remedies = vec![remedy.to_owned()];
                }
                finding
            }
        }
    }

    fn of_message(code: Code, outcome: Outcome, message: Message) -> Self {
        let remedies = message.remedies();
        Finding { code, outcome, text: message.problem, remedies }
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
    use crate::dataflow::ports::Failure;

    #[test]
    fn a_finding_has_what_is_wrong_and_what_to_do_apart() {
        let message =
            Message::new("t lacks rights: two").remedy("; grant it: ", "grant a;\ngrant b;");
        let fault = Fault::config(message.clone());
        let finding = Finding::of_fault(Code::P11, &fault);
        assert_eq!(finding.text, "t lacks rights: two");
        assert_eq!(finding.remedies, ["grant a;", "grant b;"]);
        assert_eq!(finding.outcome, Outcome::Failed(2));
        assert_eq!(Finding::of_error(Code::P11, &LedgerError::Fatal(fault)), finding);
        let warning = Finding { outcome: Outcome::Warning, ..finding };
        assert_eq!(Finding::advice(Code::P11, message), warning);
        // Without a remedy, nothing in the text is taken for one.
        let quoted = Fault::config("the table is called \"a; check b\"");
        let finding = Finding::of_fault(Code::P08, &quoted).or_remedy("rename it");
        assert_eq!(
            (finding.text, finding.remedies),
            (quoted.to_string(), vec!["rename it".into()])
        );
    }

    #[test]
    fn a_slow_server_is_told_by_the_cause_and_not_by_the_text() {
        let failed = |cause| {
            let (doing, why) = ("asking".to_owned(), "it takes too long (57014)".into());
            Finding::of_error(Code::P19, &LedgerError::Retry(Failure { doing, why, cause }))
        };
        let slow = failed(Cause::Timeout);
        assert_eq!(slow.text, "asking: it takes too long (57014)");
        assert!(slow.remedies[0].starts_with("raise --timeout"), "{slow:?}");
        assert_eq!(failed(Cause::Other).remedies, Vec::<String>::new());
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
