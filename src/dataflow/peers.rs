//! Figures that the processes of a cluster send to process 0 for its page: texts that the links
//! carry without interpreting them.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::ui::text::duration;

/// A report that is older than this is ignored.
pub const MAX_REPORT_AGE: Duration = Duration::from_secs(5);

/// What this process reports, and what others have reported to it.
#[derive(Default)]
pub struct PeerReports(Mutex<ReportState>);

#[derive(Default)]
struct ReportState {
    /// The text for process 0, until a link has taken it.
    outgoing: Option<String>,
    reports: BTreeMap<usize, (Instant, String)>,
    /// When each process was last heard from.
    last_heard: BTreeMap<usize, Instant>,
}

impl PeerReports {
    fn lock(&self) -> MutexGuard<'_, ReportState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves a text for process 0; one that was not taken is replaced.
    pub fn set_outgoing(&self, text: String) {
        self.lock().outgoing = Some(text);
    }

    /// Takes the text to send.
    pub fn take_outgoing(&self) -> Option<String> {
        self.lock().outgoing.take()
    }

    /// Notes the report of a process.
    pub fn record_report(&self, process: usize, text: String) {
        self.lock().reports.insert(process, (Instant::now(), text));
    }

    /// Notes a sign of life.
    pub fn record_heartbeat(&self, process: usize) {
        self.lock().last_heard.insert(process, Instant::now());
    }

    /// The reports of the other processes that are recent enough.
    pub fn reports(&self) -> Vec<String> {
        let state = self.lock();
        let fresh = state.reports.values().filter(|(at, _)| at.elapsed() < MAX_REPORT_AGE);
        fresh.map(|(_, text)| text.clone()).collect()
    }

    /// When each process was last heard from, in words.
    pub fn last_contacts(&self) -> Vec<(usize, String)> {
        let state = self.lock();
        let ago = |at: &Instant| format!("heard {} ago", duration(at.elapsed()));
        state.last_heard.iter().map(|(process, at)| (*process, ago(at))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_text_is_kept() {
        let peers = PeerReports::default();
        ["a", "b"].iter().for_each(|text| peers.set_outgoing((*text).to_owned()));
        assert_eq!((peers.take_outgoing().as_deref(), peers.take_outgoing()), (Some("b"), None));
        ["c", "d"].iter().for_each(|text| peers.record_report(2, (*text).to_owned()));
        peers.record_report(1, "e".to_owned());
        assert_eq!(peers.reports(), ["e", "d"]);
    }
}
