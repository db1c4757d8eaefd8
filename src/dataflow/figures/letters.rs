//! What is shown of dead letters: how many there are for each reason, and the newest as examples.

use std::collections::{BTreeMap, VecDeque};

use sessionizer_core::binding::{Offset, Partition};

use crate::dataflow::messages::DeadLetter;

/// How many dead letters of each reason are kept as examples, and how much of their payload.
const EXAMPLES: usize = 3;
const EXAMPLE_CHARS: usize = 200;

/// The dead letters of a process.
#[derive(Default)]
pub(super) struct Letters {
    by_reason: BTreeMap<String, LetterFigures>,
}

/// Dead letters with one reason.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LetterFigures {
    pub count: u64,
    pub last_ms: u64,
    /// The newest first.
    pub examples: VecDeque<Example>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Example {
    pub at_ms: u64,
    /// `None`: it stands for several records.
    pub place: Option<(Partition, Offset)>,
    pub detail: String,
    pub payload: Option<String>,
    pub cut: bool,
}

impl Letters {
    pub(super) fn by_reason(&self) -> &BTreeMap<String, LetterFigures> {
        &self.by_reason
    }

    /// Notes dead letters.
    pub(super) fn note(&mut self, letters: &[DeadLetter], at_ms: u64) {
        let mut rest = letters;
        // Letters with the same reason mostly come in a row.
        while let Some(first) = rest.first() {
            let same = rest.iter().take_while(|letter| letter.reason == first.reason).count();
            let (run, others) = rest.split_at(same);
            rest = others;
            let of_reason = self.entry(first.reason.name());
            of_reason.count += same as u64;
            of_reason.last_ms = at_ms;
            if let Some(last) = run.last() {
                of_reason.keep(Example::of(last, at_ms));
            }
        }
    }

    /// Notes a session that the table has refused, and how many records it stands for.
    pub(super) fn note_refused(&mut self, reason: &str, records: u64, at_ms: u64, detail: String) {
        let of_reason = self.entry(reason);
        of_reason.count += records;
        of_reason.last_ms = at_ms;
        of_reason.keep(Example { at_ms, place: None, detail, payload: None, cut: false });
    }

    fn entry(&mut self, reason: &str) -> &mut LetterFigures {
        if !self.by_reason.contains_key(reason) {
            self.by_reason.insert(reason.to_owned(), LetterFigures::default());
        }
        self.by_reason.get_mut(reason).expect("just inserted")
    }
}

impl LetterFigures {
    fn keep(&mut self, example: Example) {
        self.examples.push_front(example);
        self.examples.truncate(EXAMPLES);
    }
}

impl Example {
    fn of(letter: &DeadLetter, at_ms: u64) -> Self {
        let whole = letter.payload.as_deref();
        // A character has at most four bytes.
        let start = whole.map(|bytes| &bytes[..bytes.len().min(4 * EXAMPLE_CHARS)]);
        let text = start.map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        let payload = text.map(|text| text.chars().take(EXAMPLE_CHARS).collect::<String>());
        let shown = payload.as_ref().map_or(0, String::len) as u64;
        Example {
            at_ms,
            place: Some((letter.partition, letter.offset)),
            detail: letter.detail.chars().take(EXAMPLE_CHARS).collect(),
            cut: payload.is_some() && shown < letter.payload_bytes,
            payload,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sessionizer_core::event::Reason;
    use sessionizer_core::key::Shard;

    use crate::dataflow::figures::Figures;

    fn letter(reason: Reason, payload: &[u8]) -> DeadLetter {
        DeadLetter {
            shard: Shard(0),
            partition: Partition { topic: 0, number: 3 },
            offset: Offset::new(7),
            reason,
            detail: "x".repeat(500),
            payload: Some(payload.to_vec()),
            payload_bytes: payload.len() as u64,
        }
    }

    #[test]
    fn dead_letters_are_counted_by_reason_with_the_newest_as_examples() {
        let figures = Figures::default();
        let bad: Vec<DeadLetter> =
            (0..5).map(|n| letter(Reason::BadJson, format!("bad {n}").as_bytes())).collect();
        for bad in &bad {
            figures.dead(std::slice::from_ref(bad), 1);
        }
        figures.dead(&[letter(Reason::Future, b"{}"), bad[0].clone()], 2);
        figures.refused("row_refused", 12, 3, "too long".to_owned());
        let letters = figures.letters();
        assert_eq!(letters["bad_json"].count, 6);
        let shown = letters["bad_json"].examples.iter().map(|example| example.payload.clone());
        let shown: Vec<String> = shown.flatten().collect();
        assert_eq!(shown, ["bad 0", "bad 4", "bad 3"]);
        assert_eq!((letters["future"].count, letters["row_refused"].count), (1, 12));
    }

    #[test]
    fn examples_are_cut_between_characters() {
        let long = "é".repeat(1_000);
        let example = Example::of(&letter(Reason::BadJson, long.as_bytes()), 1);
        assert_eq!(example.payload, Some("é".repeat(EXAMPLE_CHARS)));
        assert!(example.cut && example.detail.len() == EXAMPLE_CHARS);
        assert!(!Example::of(&letter(Reason::BadJson, b"short"), 1).cut);
    }
}
