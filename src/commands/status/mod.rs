//! `sessionizer status`: what a running job does, on one screen, without psql.

mod screen;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use sessionizer_core::fault::Fault;

use crate::cli::StatusArgs;
use crate::commands::http::{Endpoint, printable};
use crate::commands::output::print;
use crate::config::Environment;
use crate::dataflow::run_state::RunState;
use crate::monitor::job_state::NOT_READ_YET;
use crate::ui::can_redraw;
use crate::ui::text::duration;

/// How often `--watch` refreshes, and how soon it notices that it is to stop.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);
const STOP_CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// The first question makes the job read its balance from Postgres. How often and how soon the job is
/// asked again, so that a single look shows it.
const TRIES: usize = 10;
const TRY_INTERVAL: Duration = Duration::from_millis(200);

/// Moves the cursor to the top left.
const HOME: &str = "\x1b[H";
/// Lines are cut rather than wrapped, also those whose letters are wider than others: a screen that
/// scrolls would lose its first line.
const NO_WRAP: &str = "\x1b[?7l";
const WRAP: &str = "\x1b[?7h";
/// Clears to the end of the line.
const CLEAR_LINE: &str = "\x1b[K";
/// Clears what is below.
const CLEAR_BELOW: &str = "\x1b[J";

/// Shows what the job does, once or repeatedly.
pub fn status(
    args: &StatusArgs,
    env: &Environment,
    run_state: &Arc<RunState>,
) -> Result<(), Fault> {
    let endpoint = Endpoint::find(args.url.as_deref(), &args.job, "/status", env)?;
    if !args.watch {
        let answer = complete(|| ask(&endpoint), TRY_INTERVAL)?;
        return print(&answer.shown(args.json, None)).map(drop);
    }
    // JSON is not for a screen.
    let redraws = !args.json && can_redraw(&std::io::stdout());
    if redraws {
        print("\x1b[2J")?;
    }
    let mut last: Option<(Instant, String)> = None;
    while !run_state.stopping() {
        // The cursor stays on the line below.
        let (width, height) = size();
        let height = redraws.then(|| height.saturating_sub(1)).filter(|height| *height > 0);
        let text = match ask(&endpoint) {
            Ok(answer) => {
                let text = answer.shown(args.json, height);
                last = Some((Instant::now(), text.clone()));
                text
            }
            Err(Fault::Config(why)) => return Err(Fault::Config(why)),
            Err(why) => match &last {
                None => return Err(why),
                Some((since, text)) => {
                    let ago = duration(since.elapsed());
                    format!("lost the job {ago} ago ({why}); what it said last:\n\n{text}")
                }
            },
        };
        let is_read = match redraws {
            true => print(&redrawn(&text, width, height))?,
            false => print(&text)?,
        };
        if !is_read {
            return Ok(());
        }
        let until = Instant::now() + REFRESH_INTERVAL;
        while Instant::now() < until && !run_state.stopping() {
            std::thread::sleep(STOP_CHECK_INTERVAL);
        }
    }
    Ok(())
}

/// What draws a text on a terminal over the one before.
fn redrawn(text: &str, width: usize, height: Option<usize>) -> String {
    let lines = text.lines().take(height.unwrap_or(usize::MAX));
    let lines: Vec<String> =
        lines.map(|line| format!("{}{CLEAR_LINE}\n", screen::cut(line, width))).collect();
    format!("{HOME}{NO_WRAP}{}{CLEAR_BELOW}{WRAP}", lines.concat())
}

/// What the job says of itself.
struct Answer {
    body: String,
    document: Value,
}

impl Answer {
    fn shown(&self, json: bool, height: Option<usize>) -> String {
        match json {
            true => format!("{}\n", self.body),
            false => screen::screen(&self.document, size().0, height),
        }
    }

    fn lacks_balance(&self) -> bool {
        self.document["balance"]["why"]["difference"] == NOT_READ_YET
    }
}

fn ask(endpoint: &Endpoint) -> Result<Answer, Fault> {
    let at = &endpoint.shown;
    let reply = endpoint.ask()?;
    if reply.status != 200 {
        let body = printable(reply.body.lines().next().unwrap_or_default());
        return Err(Fault::config(format!("{at} answers with {}: {body}", reply.status)));
    }
    let document = serde_json::from_str(&reply.body).map_err(|why| {
        Fault::config(format!("what answers at {at} is not a sessionizer job: {why}"))
    })?;
    Ok(Answer { body: reply.body, document })
}

/// Asks until the job has read its balance, or for as long as that may take.
fn complete(
    mut ask: impl FnMut() -> Result<Answer, Fault>,
    interval: Duration,
) -> Result<Answer, Fault> {
    let mut answer = ask()?;
    for _ in 1..TRIES {
        if !answer.lacks_balance() {
            break;
        }
        std::thread::sleep(interval);
        answer = ask()?;
    }
    Ok(answer)
}

/// The width and the height of the terminal. Where there is none, nothing limits the width, and the
/// height is 0.
fn size() -> (usize, usize) {
    match terminal_size::terminal_size_of(std::io::stdout()) {
        Some((width, height)) => (usize::from(width.0), usize::from(height.0)),
        None => (usize::MAX, 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_line_is_wider_than_the_terminal_and_nothing_scrolls() {
        let text =
            format!("lost the job 3 s ago ({}); what it said last:\n\na\nb\n", "x".repeat(90));
        let drawn = redrawn(&text, 40, Some(3));
        let cut = format!("lost the job 3 s ago ({}…", "x".repeat(17));
        assert_eq!(drawn, format!("{HOME}{NO_WRAP}{cut}\x1b[K\n\x1b[K\na\x1b[K\n\x1b[J{WRAP}"));
        assert!(redrawn(&text, usize::MAX, None).contains("what it said last"));
    }

    #[test]
    fn one_look_waits_for_the_balance_but_not_for_ever() {
        for (read_after, asked) in [(0, 1), (2, 3), (100, TRIES)] {
            let mut times = 0;
            let ask = || {
                times += 1;
                let balance = match times > read_after {
                    true => serde_json::json!({"difference": 0}),
                    false => serde_json::json!({"why": {"difference": NOT_READ_YET}}),
                };
                let document = serde_json::json!({ "balance": balance });
                Ok(Answer { body: document.to_string(), document })
            };
            let answer = complete(ask, Duration::ZERO).expect("it answers");
            assert_eq!(times, asked, "{read_after}");
            assert_eq!(answer.lacks_balance(), read_after == 100, "{}", answer.shown(true, None));
        }
    }
}
