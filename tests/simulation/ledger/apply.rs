//! What a commit changes in the store, and what a broken rule would change instead.

use sessionizer_core::session::Closed;

use super::*;

impl Store {
    /// What a failed commit leaves behind: nothing, unless a rule is broken.
    pub(super) fn half_done(&mut self, batch: &Batch) {
        match self.sabotage {
            Some(Sabotage::RowsWithoutProgress) => drop(self.apply_rows(batch)),
            Some(Sabotage::DeadLettersWithoutProgress) => self.apply_dead_letters(batch),
            Some(Sabotage::TotalsWithoutProgress) => self.apply_totals(batch),
            Some(Sabotage::SnapshotsWithoutProgress) => self.apply_snapshots(batch),
            Some(Sabotage::ProgressWithoutRows) => {
                self.apply_progress(batch);
                self.apply_dead_letters(batch);
                self.apply_totals(batch);
                self.apply_snapshots(batch);
            }
            Some(Sabotage::ProgressWithoutTotals) => {
                self.apply_progress(batch);
                self.apply_rows(batch);
                self.apply_dead_letters(batch);
            }
            Some(Sabotage::ProgressDoesNotWait) => self.under_way = Some(batch.clone()),
            _ => {}
        }
    }

    pub(super) fn apply(&mut self, batch: &Batch) -> Vec<Correction> {
        self.apply_progress(batch);
        let corrections = self.apply_rows(batch);
        self.apply_dead_letters(batch);
        self.apply_totals(batch);
        self.apply_snapshots(batch);
        corrections
    }

    fn apply_progress(&mut self, batch: &Batch) {
        for step in &batch.steps {
            self.progress[step.shard.0 as usize] = step.to;
        }
    }

    fn apply_rows(&mut self, batch: &Batch) -> Vec<Correction> {
        self.write_rows(&batch.closed)
    }

    pub(super) fn write_rows(&mut self, closed: &[Closed]) -> Vec<Correction> {
        let (late, on_time): (Vec<_>, Vec<_>) = closed.iter().partition(|c| c.late);
        let before = self.breaks(Sabotage::LateBeforeOnTime).then(|| self.table.clone());
        for closed in on_time {
            self.table.entry(closed.key.clone()).or_default().push(closed.span);
        }
        self.late += late.len() as u64;
        let late: Vec<(Key, Span)> = late.iter().map(|c| (c.key.clone(), c.span)).collect();
        let fetched = before.as_ref().unwrap_or(&self.table);
        let runs: Vec<Vec<(Key, Span)>> = match self.sabotage {
            Some(Sabotage::NoClosure) => late.into_iter().map(|one| vec![one]).collect(),
            _ => vec![late],
        };
        let wide = match self.sabotage {
            Some(Sabotage::RowsLookedUpTooNarrowly) => Gap::from_millis(GAP_MS - 1).expect("valid"),
            _ => gap(),
        };
        let mut corrections = Vec::new();
        for late in runs {
            let mut touched = Vec::new();
            for (key, rows) in fetched {
                let touches =
                    |row: &Span| late.iter().any(|(k, span)| k == key && span.touches(row, wide));
                let rows = rows.iter().filter(|row| touches(row));
                touched.extend(rows.map(|row| (key.clone(), *row)));
            }
            corrections.extend(correct(late, touched, gap()));
        }
        for correction in &corrections {
            let stays = self.breaks(Sabotage::CorrectedRowsStay);
            let rows = self.table.entry(correction.key.clone()).or_default();
            rows.retain(|row| stays || !correction.removed.contains(row));
            rows.extend(&correction.added);
        }
        corrections
    }

    fn apply_dead_letters(&mut self, batch: &Batch) {
        for (_, letter) in &batch.dead_letters {
            let place = (letter.partition, letter.offset);
            let before = self.dead_letters.insert(place, letter.clone());
            assert!(before.is_none(), "I5: the dead letter {place:?} came twice");
            if letter.reason == Reason::Late {
                self.dropped.insert(place);
            }
        }
    }

    fn apply_totals(&mut self, batch: &Batch) {
        let first_writer = batch.steps.iter().any(|step| step.shard == Shard(0));
        for totals in &batch.totals {
            let watermark = totals.meta.watermark;
            let row = self.epochs.entry(totals.epoch).or_insert(Totals {
                watermark,
                rules: Some(totals.meta.rules),
                shards_done: 0,
                closed: 0,
                open: 0,
                dead: 0,
            });
            assert_eq!(row.watermark, watermark, "I2: writers disagree on W({})", totals.epoch);
            let rules = Some(totals.meta.rules);
            assert_eq!(row.rules, rules, "I2: writers disagree on the rules of {}", totals.epoch);
            row.shards_done += totals.shards;
            row.closed += totals.closed;
            row.open += totals.open;
            row.dead += totals.dead;
            self.rules.insert(totals.epoch, totals.meta.rules);
            self.watermarks.insert(totals.epoch, watermark);
            let before = self.watermarks.range(..totals.epoch).next_back();
            let after = self.watermarks.range(totals.epoch + 1..).next();
            let falls = before.is_some_and(|(_, other)| *other > watermark)
                || after.is_some_and(|(_, other)| *other < watermark);
            assert!(!falls, "W({}) = {watermark} falls: {before:?}, {after:?}", totals.epoch);
            for binding in &totals.meta.bindings {
                let at = (totals.epoch, binding.partition);
                let known = *self.history.entry(at).or_insert(*binding);
                assert_eq!(known, *binding, "I2: another binding of {at:?}");
                self.check_idle(binding);
                let told = binding.clock_ms.is_some_and(|ms| self.clocks.have_said(ms));
                assert!(told, "no wall clock has said what {at:?} is judged by: {binding:?}");
                let lost = self.breaks(Sabotage::BindingsOfTheFirstWriterOnly) && !first_writer
                    || self.breaks(Sabotage::BindingsOfOnePartitionOnly)
                        && binding.partition.number > 0;
                if !lost {
                    self.bindings.insert(at, *binding);
                }
            }
        }
    }

    fn apply_snapshots(&mut self, batch: &Batch) {
        for (shard, (epoch, bytes)) in &batch.snapshots {
            let run_ends = batch.totals.last().map_or(*epoch, |totals| totals.epoch);
            let epoch = match self.breaks(Sabotage::SnapshotsUnderTheEndOfTheirRun) {
                true => run_ends,
                false => *epoch,
            };
            self.snapshots[shard.0 as usize] = (epoch, bytes.clone());
        }
        if !batch.snapshots.is_empty() {
            self.trim();
        }
    }

    fn trim(&mut self) {
        let base = self.base();
        let newest = self.snapshots.iter().map(|(epoch, _)| *epoch).max().expect("shards");
        let epochs = if self.breaks(Sabotage::EpochsTrimmedTooEarly) { newest } else { base };
        let bindings = if self.breaks(Sabotage::BindingsTrimmedTooEarly) { newest } else { base };
        self.epochs = self.epochs.split_off(&epochs);
        let mut kept = self.bindings.split_off(&(bindings + 1, FIRST));
        let mut last: BTreeMap<Partition, (Epoch, Binding)> = BTreeMap::new();
        for ((epoch, partition), binding) in &self.bindings {
            last.insert(*partition, (*epoch, *binding));
        }
        if self.breaks(Sabotage::LastBindingTrimmed) {
            last.clear();
        }
        kept.extend(last.into_iter().map(|(p, (epoch, binding))| ((epoch, p), binding)));
        self.bindings = kept;
    }
}
