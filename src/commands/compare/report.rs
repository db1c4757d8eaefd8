//! What a comparison found: counts by class, examples, the verdict.

use std::borrow::Cow;
use std::io::{self, Write};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use serde_json::{Value, json};
use sessionizer_core::fault::Fault;
use sessionizer_core::key::Key;

use super::classes::{Class, Common, Stretch, WindowRow};
use crate::commands::http::printable;
use crate::ui::text::{count, plural};

/// The width limit of a table, in columns.
const WIDTH: u16 = 100;

/// How much belongs to a class.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Counts {
    stretches: u64,
    /// In the job's table, and in the other one.
    rows: [u64; 2],
    events: [u64; 2],
}

/// What was found.
pub struct Report {
    table: String,
    against: String,
    common: Common,
    /// Whether the topic was read for late events.
    topic_was_read: bool,
    counts: [Counts; Class::ALL.len()],
    examples: Vec<(Class, Key, Stretch)>,
}

impl Report {
    pub fn new(table: String, against: String, common: Common, topic_was_read: bool) -> Self {
        let counts = [Counts::default(); Class::ALL.len()];
        Report { table, against, common, topic_was_read, counts, examples: Vec::new() }
    }

    fn of(&mut self, class: Class) -> &mut Counts {
        &mut self.counts[Class::ALL.iter().position(|c| *c == class).expect("all are listed")]
    }

    fn all(&self) -> impl Iterator<Item = (Class, &Counts)> {
        Class::ALL.into_iter().zip(&self.counts)
    }

    fn count_of(&self, class: Class) -> u64 {
        self.all().find(|(of, _)| *of == class).map_or(0, |(_, counts)| counts.stretches)
    }

    /// The period that is compared.
    pub fn common(&self) -> Common {
        self.common
    }

    /// Counts what a visitor did in a stretch of time. At most `show` of each class are kept.
    pub fn add(&mut self, key: &Key, stretch: Stretch, class: Class, show: usize) {
        let counts = self.of(class);
        counts.stretches += 1;
        let events = stretch.events();
        for (at, rows) in [stretch.ours.len(), stretch.theirs.len()].into_iter().enumerate() {
            counts.rows[at] += rows as u64;
            counts.events[at] += events[at];
        }
        let kept = || self.examples.iter().filter(|(of, ..)| *of == class).count();
        if class != Class::Same && kept() < show {
            self.examples.push((class, key.clone(), stretch));
        }
    }

    /// One sentence that says that everything is explained, or the fault that says how much is not.
    pub fn verdict(&self) -> Result<String, Fault> {
        let all: u64 = self.counts.iter().map(|counts| counts.stretches).sum();
        let same = self.count_of(Class::Same);
        let open = self.count_of(Class::NotClosed) + self.count_of(Class::BeforeBeginning);
        match self.count_of(Class::Unexplained) {
            0 if same == 0 => Err(Fault::environment(format!(
                "no session of {} is in {} as well: do both read the same topic?",
                self.table, self.against
            ))),
            0 => Ok(format!(
                "{} of {} are the same in both tables, {} cannot be compared, and nothing is \
                 unexplained.",
                count(same),
                plural(all, "session"),
                count(open)
            )),
            unexplained => Err(Fault::environment(format!(
                "{} unexplained. Does `sessionizer audit` find that {} equals the batch answer? \
                 Then the other table is wrong there",
                plural(unexplained, "difference"),
                self.table
            ))),
        }
    }

    pub fn print(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(
            out,
            "{} (the job's) and {}\nfrom {} to {}:",
            self.table, self.against, self.common.from, self.common.to
        )?;
        let header = ["", "sessions", "rows", "theirs", "events", "theirs"];
        let mut table = table(&header);
        for (class, counts) in self.all() {
            let Counts { stretches, rows, events } = counts;
            if *stretches == 0 && !matches!(class, Class::Same | Class::Unexplained) {
                continue;
            }
            let mut cells = vec![class.name().to_owned(), count(*stretches)];
            cells.extend([rows[0], rows[1], events[0], events[1]].map(count));
            table.add_row(cells);
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        writeln!(out, "{table}")?;
        for (class, counts) in self.all() {
            if counts.stretches > 0 && class != Class::Same {
                writeln!(out, "{}: {}", class.name(), class.meaning())?;
            }
        }
        self.print_examples(out)?;
        let late = self.all().find(|(class, _)| *class == Class::Late);
        let [ours, theirs] = late.map_or([0, 0], |(_, counts)| counts.events);
        if ours > theirs {
            writeln!(
                out,
                "The other table lacks {} that came late{}. A Flink job counts them in \
                 numLateRecordsDropped.",
                plural(ours - theirs, "event"),
                if self.topic_was_read { "" } else { " (assumed: the topic was not read)" }
            )?;
        }
        Ok(())
    }

    fn print_examples(&self, out: &mut impl Write) -> io::Result<()> {
        if self.examples.is_empty() {
            return Ok(());
        }
        let mut examples = self.examples.iter().collect::<Vec<_>>();
        examples.sort_by_key(|(class, ..)| Class::ALL.iter().position(|of| of == class));
        let mut table =
            table(&["", "ip", "host", "table", "session_start", "session_end", "events"]);
        for (class, key, Stretch { ours, theirs }) in examples {
            let (ip, host) = key.parts();
            let (ip, host) = (printable(ip), printable(&shortened(host)));
            let mut what = [class.name(), &ip, &host];
            let sides = ours.iter().map(|row| ("ours", row));
            for (side, row) in sides.chain(theirs.iter().map(|row| ("theirs", row))) {
                let WindowRow { start, end, events } = row;
                // With a space, at which a narrow table breaks the line.
                let [start, end] = [start, end].map(|time| time.to_string().replace('T', " "));
                let shown = std::mem::take(&mut what).map(str::to_owned);
                let mut cells = shown.to_vec();
                cells.extend([side.to_owned(), start, end, count(*events)]);
                table.add_row(cells);
            }
        }
        writeln!(out, "{table}")
    }

    pub fn json(&self) -> Value {
        let classes = self.all().map(|(class, counts)| {
            let Counts { stretches, rows, events } = counts;
            json!({ "class": class.name(), "sessions": stretches, "rows": rows, "events": events })
        });
        let rows = |rows: &[WindowRow]| -> Vec<Value> {
            let row = |row: &WindowRow| json!({ "start": row.start.to_string(), "end": row.end.to_string(), "events": row.events });
            rows.iter().map(row).collect()
        };
        let examples = self.examples.iter().map(|(class, key, stretch)| {
            let (ip, host) = key.parts();
            json!({
                "class": class.name(), "ip": ip, "host": host,
                "ours": rows(&stretch.ours), "theirs": rows(&stretch.theirs),
            })
        });
        json!({
            "table": self.table,
            "against": self.against,
            "from": self.common.from.to_string(),
            "to": self.common.to.to_string(),
            "topic_was_read": self.topic_was_read,
            "classes": classes.collect::<Vec<_>>(),
            "examples": examples.collect::<Vec<_>>(),
            "unexplained": self.count_of(Class::Unexplained),
        })
    }
}

/// The longest host that a table shows whole, in characters.
const LONGEST_HOST: usize = 60;

/// A host as a cell of the table: names may have thousands of characters.
fn shortened(host: &str) -> Cow<'_, str> {
    match host.char_indices().nth(LONGEST_HOST) {
        None => Cow::Borrowed(host),
        Some((at, _)) => Cow::Owned(format!("{}…", &host[..at])),
    }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_content_arrangement(ContentArrangement::Dynamic);
    let width = table.width().unwrap_or(WIDTH).min(WIDTH);
    table.set_width(width);
    table.set_header(header.iter().copied());
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_host_does_not_fill_the_screen() {
        let longest = "ü".repeat(LONGEST_HOST);
        assert_eq!(shortened(&longest), longest);
        assert_eq!(shortened(&format!("{longest}ü")), format!("{longest}…"));
    }
}
