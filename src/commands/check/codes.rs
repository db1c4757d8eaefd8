//! The codes of `sessionizer check`. A code never changes its meaning: people search for it, and
//! scripts test for it. docs/OPERATIONS.md has a paragraph for each; a test compares its headings
//! with this table.

/// A part of the check. The names are those of `--only`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Section {
    Settings,
    Kafka,
    Data,
    Postgres,
    Plan,
}

impl Section {
    pub const ALL: [Section; 5] =
        [Section::Settings, Section::Kafka, Section::Data, Section::Postgres, Section::Plan];

    /// The name for `--only` and in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Section::Settings => "settings",
            Section::Kafka => "kafka",
            Section::Data => "data",
            Section::Postgres => "postgres",
            Section::Plan => "plan",
        }
    }

    /// The heading on the screen.
    pub const fn heading(self) -> &'static str {
        match self {
            Section::Settings => "Settings",
            Section::Kafka => "Kafka",
            Section::Data => "Events",
            Section::Postgres => "PostgreSQL",
            Section::Plan => "What a start would do",
        }
    }
}

/// What a line is about: the letter of its section and a number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Code {
    S01,
    S02,
    S03,
    S04,
    K01,
    K02,
    K03,
    K04,
    K05,
    K06,
    K07,
    K08,
    K09,
    D01,
    D02,
    D03,
    P01,
    P02,
    P03,
    P04,
    P05,
    P06,
    P07,
    P08,
    P09,
    P10,
    P11,
    P12,
    P13,
    P14,
    P15,
    P16,
    P17,
    P18,
    P19,
    L01,
    L02,
    L03,
    L04,
}

impl Code {
    /// Every code, with its title in docs/OPERATIONS.md.
    pub const ALL: [(Code, &'static str); 39] = [
        (Code::S01, "settings"),
        (Code::S02, "variables that nothing reads"),
        (Code::S03, "open files and threads"),
        (Code::S04, "files that settings name"),
        (Code::K01, "brokers"),
        (Code::K02, "TLS and login of Kafka"),
        (Code::K03, "topic"),
        (Code::K04, "leaders"),
        (Code::K05, "right to read the topic"),
        (Code::K06, "consumer group"),
        (Code::K07, "partitions"),
        (Code::K08, "open transactions"),
        (Code::K09, "largest record batch"),
        (Code::D01, "events that decode"),
        (Code::D02, "unit of event_time"),
        (Code::D03, "clock of the events"),
        (Code::P01, "connection and login of PostgreSQL"),
        (Code::P02, "pooler"),
        (Code::P03, "writes"),
        (Code::P04, "encoding"),
        (Code::P05, "owners in the schema sessionizer"),
        (Code::P06, "schema sessionizer"),
        (Code::P07, "rights in the schema sessionizer"),
        (Code::P08, "table"),
        (Code::P09, "room in the table"),
        (Code::P10, "key of the table"),
        (Code::P11, "rights on the table"),
        (Code::P12, "row level security"),
        (Code::P13, "triggers"),
        (Code::P14, "publications"),
        (Code::P15, "roles"),
        (Code::P16, "connections"),
        (Code::P17, "clock of the server"),
        (Code::P18, "synchronous_commit"),
        (Code::P19, "state of the job"),
        (Code::L01, "plan"),
        (Code::L02, "offsets that Kafka has lost"),
        (Code::L03, "what has changed since the last start"),
        (Code::L04, "running instance"),
    ];

    /// The code as it is shown: `SZ-K03`.
    pub fn id(self) -> String {
        format!("SZ-{self:?}")
    }

    pub fn title(self) -> &'static str {
        let known = Code::ALL.iter().find(|(code, _)| *code == self);
        known.map_or("", |(_, title)| *title)
    }

    pub fn section(self) -> Section {
        match self {
            _ if self <= Code::S04 => Section::Settings,
            _ if self <= Code::K09 => Section::Kafka,
            _ if self <= Code::D03 => Section::Data,
            _ if self <= Code::P19 => Section::Postgres,
            _ => Section::Plan,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCES: [&str; 5] = [
        include_str!("settings.rs"),
        include_str!("kafka.rs"),
        include_str!("data.rs"),
        include_str!("postgres.rs"),
        include_str!("plan.rs"),
    ];

    #[test]
    fn a_code_names_its_section() {
        for (code, _) in Code::ALL {
            let letter = match code.section() {
                Section::Settings => 'S',
                Section::Kafka => 'K',
                Section::Data => 'D',
                Section::Postgres => 'P',
                Section::Plan => 'L',
            };
            assert!(code.id().starts_with(&format!("SZ-{letter}")), "{code:?}");
        }
    }

    #[test]
    fn every_code_is_used_and_explained_and_nothing_else_is() {
        let manual = include_str!("../../../docs/OPERATIONS.md");
        let explained: Vec<&str> =
            manual.lines().filter_map(|line| line.strip_prefix("#### ")).collect();
        let wanted: Vec<String> =
            Code::ALL.iter().map(|(code, title)| format!("{}: {title}", code.id())).collect();
        assert_eq!(explained, wanted, "the headings of docs/OPERATIONS.md and the table of codes");
        let mut after = manual.split("\n#### ").skip(1);
        for (code, _) in Code::ALL {
            let paragraph = after.next().unwrap_or_default().lines().skip(1);
            let paragraph: String = paragraph.take_while(|line| !line.starts_with('#')).collect();
            assert!(paragraph.len() > 40, "{code:?} has no paragraph in docs/OPERATIONS.md");
            let used = format!("Code::{code:?}");
            assert!(SOURCES.iter().any(|source| source.contains(&used)), "{code:?} is never used");
        }
    }
}
