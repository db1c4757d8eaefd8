//! The parts of a report: files of `queries/`, built into the program, and how each is drawn.

/// One query, and what people need to know about it.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// The name of its file.
    pub name: &'static str,
    file: &'static str,
    pub chart: Chart,
    /// The column that holds addresses of visitors.
    pub address: Option<&'static str>,
    /// Columns that do not fit on a terminal 80 characters wide.
    pub wide: &'static [&'static str],
}

/// How the rows are drawn on the page.
#[derive(Clone, Copy, Debug)]
pub enum Chart {
    Nothing,
    /// A bar for each row: the column with its label, and the one with its length.
    Bars(&'static str, &'static str),
    /// A line for each host: the column with the position, and the one with the height.
    Lines(&'static str, &'static str),
    /// The rows are shown as cells, darker for larger values.
    Heat,
}

macro_rules! part {
    ($name:literal, $chart:expr) => {
        part!($name, $chart, None, &[])
    };
    ($name:literal, $chart:expr, $address:expr, $wide:expr) => {
        Part {
            name: $name,
            file: include_str!(concat!("../../../queries/", $name, ".sql")),
            chart: $chart,
            address: $address,
            wide: $wide,
        }
    };
}

/// All parts, in the order of a report.
pub const PARTS: [Part; 10] = [
    part!("hosts_side_by_side", Chart::Bars("host", "sessions")),
    part!(
        "week_against_week",
        Chart::Bars("host", "sessions_change"),
        None,
        &["sessions_before", "visitors_before", "events_before"]
    ),
    part!("sessions_per_hour", Chart::Lines("hour", "sessions")),
    part!(
        "distribution_by_host_and_day",
        Chart::Lines("day", "average_length"),
        None,
        &["events_p99", "length_p99"]
    ),
    part!("bounce_rate", Chart::Bars("host", "one_event_percent")),
    part!("returning_visitors", Chart::Lines("day", "returning_percent")),
    part!("busiest_hours", Chart::Heat),
    part!("longest_sessions", Chart::Nothing, Some("ip"), &["last_event"]),
    part!("unlike_the_rest", Chart::Nothing, Some("visitor"), &[]),
    part!("spanning_midnight", Chart::Nothing),
];

impl Part {
    /// The question that the query answers.
    pub fn question(&self) -> &'static str {
        self.file.lines().next().unwrap_or_default().trim_start_matches("-- ")
    }

    /// What the figures mean and assume: the paragraphs at the top of the file, except those about
    /// the index and about how to run it.
    pub fn notes(&self) -> Vec<String> {
        let head = self.file.lines().take_while(|line| line.starts_with("--"));
        let head: Vec<&str> = head.map(|line| line.trim_start_matches("--").trim()).collect();
        let paragraphs = head.split(|line| line.is_empty()).skip(1).map(|lines| lines.join(" "));
        let is_for_people = |text: &String| {
            !text.is_empty()
                && !["Index: ", "Reads the table "].iter().any(|of| text.starts_with(of))
        };
        paragraphs.filter(is_for_people).collect()
    }

    /// The statement, without what is for psql alone.
    pub fn sql(&self) -> &'static str {
        let (_, sql) = self.file.split_once("\\endif\n").expect("every query has a part for psql");
        sql.trim().trim_end_matches(';')
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_has_a_question_notes_and_one_statement() {
        for part in PARTS {
            assert!(part.question().ends_with('?'), "{}", part.name);
            assert!(!part.notes().is_empty(), "{}", part.name);
            assert!(part.notes().iter().all(|note| !note.contains("psql -v")), "{}", part.name);
            let sql = part.sql();
            assert!(!sql.contains(';') && !sql.contains("\n\\"), "{}", part.name);
            // A part of the table is a subquery, which needs a name.
            let named = sql.matches(":sessions s\n").count() + sql.matches(":sessions s)").count();
            let named = named + sql.matches(":sessions s,").count();
            assert!(named > 0 && named == sql.matches(":sessions").count(), "{}", part.name);
        }
    }
}
