//! What a committed batch changed in the table, row by row.

use std::collections::BTreeSet;

use sessionizer_core::session::Closed;
use sessionizer_core::session::correction::Correction;

use crate::dataflow::messages::Change;
use crate::dataflow::ports::{Batch, Outcome};

/// The changes of one transaction.
pub(super) struct TableChanges {
    pub(super) all: Vec<Change>,
    /// How many of them are rows of sessions that closed on time.
    pub(super) on_time: u64,
}

impl TableChanges {
    /// Those of a batch, given what the ledger did with it.
    pub(super) fn of(batch: Batch, outcome: Outcome) -> Self {
        let Outcome { corrections, refused } = outcome;
        let refused: BTreeSet<Closed> =
            refused.into_iter().map(|refused| refused.session).collect();
        let on_time = batch.closed.into_iter().filter(|closed| !closed.late);
        let on_time = on_time.filter(|closed| !refused.contains(closed));
        let mut all: Vec<Change> =
            on_time.map(|closed| Change { key: closed.key, span: closed.span, diff: 1 }).collect();
        let on_time = all.len() as u64;
        for Correction { key, removed, added } in corrections {
            let change = |diff| {
                let key = &key;
                move |span| Change { key: key.clone(), span, diff }
            };
            all.extend(removed.into_iter().map(change(-1)));
            all.extend(added.into_iter().map(change(1)));
        }
        TableChanges { all, on_time }
    }
}
