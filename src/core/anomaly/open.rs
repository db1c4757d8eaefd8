//! Marathons that are still open. The workers that keep the open sessions report the long ones;
//! here they are compared with the sessions of their host that ended in the 24 complete hours
//! before that of the watermark.
//!
//! When a session closes, its row takes its anomaly over. A commit may cover several epochs and
//! shows its rows at the last of them, so the report that a session has closed may come before its
//! row. Until the row comes, the anomaly stays as it is. It is retracted if there is no row in the
//! end, because the table has refused it.

use std::collections::{BTreeMap, HashMap};

use foldhash::fast::RandomState;
use serde::{Deserialize, Serialize};

use super::history::{Hour, Limits};
use super::host::HostState;
use super::{Anomaly, Evidence, Kind, RowChange, Thresholds};
use crate::key::Key;
use crate::session::Span;
use crate::time::EventTime;

/// For how many advances a closed session waits for its row. An advance takes in at least one
/// epoch, and far fewer epochs than this are in flight.
const HELD: u64 = 128;

/// What has become of a long session that is or was open.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct OpenReport {
    pub key: Key,
    /// Its first event, as it was reported first.
    pub at: EventTime,
    pub now: OpenNow,
}

/// See [`OpenReport`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum OpenNow {
    /// It is open, and has these events so far.
    Open(Span),
    /// It is part of an open session that began earlier.
    Joined,
    /// It has closed.
    Closed,
}

impl Limits {
    /// The marathon that a session is that is still open when the watermark is in this hour.
    pub fn judge_open(&self, ip: &str, host: &str, span: &Span) -> Option<Anomaly> {
        let marathon = self.judge(ip, host, span).find(|found| found.kind == Kind::Marathon)?;
        let Evidence::Session { events, duration_ms, sessions, rank } = marathon.evidence else {
            return None;
        };
        let evidence = Evidence::Open { events, duration_ms, sessions, rank };
        Some(Anomaly { evidence, ..marathon })
    }
}

/// The long sessions that are open, and what has been emitted of them.
#[derive(Clone, Debug, Default)]
pub(super) struct OpenSessions {
    /// By the hash of their name.
    hosts: HashMap<u64, HostSessions, RandomState>,
    advances: u64,
}

#[derive(Clone, Debug)]
struct HostSessions {
    name: Box<str>,
    sessions: BTreeMap<(String, EventTime), OpenSession>,
    /// Whether something has changed since they were judged.
    stale: bool,
}

#[derive(Clone, Debug)]
struct OpenSession {
    span: Span,
    /// When it closed, in advances.
    closed: Option<u64>,
    emitted: Option<Anomaly>,
}

impl OpenSessions {
    /// Takes in a report. Returns the anomaly to retract, if there is one.
    pub(super) fn report(&mut self, host_hash: u64, report: &OpenReport) -> Option<Anomaly> {
        let (ip, host) = report.key.parts();
        let session = (ip.to_owned(), report.at);
        if let OpenNow::Open(span) = report.now {
            let of_host = self.hosts.entry(host_hash).or_insert_with(|| HostSessions {
                name: host.into(),
                sessions: BTreeMap::new(),
                stale: true,
            });
            of_host.stale = true;
            let new = OpenSession { span, closed: None, emitted: None };
            let known = of_host.sessions.entry(session).or_insert(new);
            (known.span, known.closed) = (span, None);
            return None;
        }
        let of_host = self.hosts.get_mut(&host_hash);
        let known = of_host.and_then(|of_host| of_host.sessions.get_mut(&session));
        debug_assert!(known.is_some(), "{report:?}, which was never open");
        if report.now == OpenNow::Closed {
            known?.closed = Some(self.advances);
            return None;
        }
        let of_host = self.hosts.get_mut(&host_hash)?;
        let gone = of_host.sessions.remove(&session)?;
        self.drop_if_empty(host_hash);
        gone.emitted
    }

    /// A row was added: it takes over the closed sessions that it contains. Returns the anomalies
    /// to retract.
    pub(super) fn replace(&mut self, row: &RowChange<'_>) -> Vec<Anomaly> {
        let Some(of_host) = self.hosts.get_mut(&row.host_hash).filter(|_| row.diff > 0) else {
            return Vec::new();
        };
        let ip = row.key.parts().0.to_owned();
        let within = (ip.clone(), row.span.first)..=(ip, row.span.last);
        let of_row = of_host.sessions.range(within).filter(|(_, session)| session.closed.is_some());
        let of_row: Vec<(String, EventTime)> = of_row.map(|(session, _)| session.clone()).collect();
        let gone = of_row.iter().filter_map(|session| of_host.sessions.remove(session)?.emitted);
        let gone = gone.collect();
        self.drop_if_empty(row.host_hash);
        gone
    }

    fn drop_if_empty(&mut self, host_hash: u64) {
        if self.hosts.get(&host_hash).is_some_and(|of_host| of_host.sessions.is_empty()) {
            self.hosts.remove(&host_hash);
        }
    }

    /// What the sessions of a host are compared with has changed.
    pub(super) fn touch(&mut self, host_hash: u64) {
        if let Some(of_host) = self.hosts.get_mut(&host_hash) {
            of_host.stale = true;
        }
    }

    /// What the sessions of all hosts are compared with has changed.
    pub(super) fn touch_all(&mut self) {
        self.hosts.values_mut().for_each(|of_host| of_host.stale = true);
    }

    /// Forgets what has been emitted: everything is emitted again.
    pub(super) fn begin(&mut self) {
        let sessions = self.hosts.values_mut().flat_map(|of_host| of_host.sessions.values_mut());
        sessions.for_each(|session| session.emitted = None);
        self.touch_all();
    }

    /// Judges the sessions whose circumstances have changed, when the watermark is in the hour
    /// `now`; and gives up those whose row does not come.
    pub(super) fn judge(
        &mut self,
        hosts: &HashMap<u64, HostState, RandomState>,
        now: Hour,
        thresholds: &Thresholds,
        changed: &mut Vec<(Anomaly, i64)>,
    ) {
        self.advances += 1;
        let advances = self.advances;
        self.hosts.retain(|hash, of_host| {
            of_host.sessions.retain(|_, session| {
                let is_held = session.closed.is_none_or(|since| since + HELD > advances);
                let gone = session.emitted.take_if(|_| !is_held);
                changed.extend(gone.map(|gone| (gone, -1)));
                is_held
            });
            if std::mem::take(&mut of_host.stale) {
                let known = hosts.get(hash).filter(|host| host.is_known(now));
                let limits = known.and_then(|host| Limits::of(&host.hours, now, thresholds));
                of_host.judge(limits.as_ref(), changed);
            }
            !of_host.sessions.is_empty()
        });
    }
}

impl HostSessions {
    fn judge(&mut self, limits: Option<&Limits>, changed: &mut Vec<(Anomaly, i64)>) {
        for ((ip, _), session) in &mut self.sessions {
            // What has closed stays as it is: its row decides.
            if session.closed.is_some() && session.emitted.is_some() {
                continue;
            }
            let found = limits.and_then(|limits| limits.judge_open(ip, &self.name, &session.span));
            if session.emitted != found {
                changed.extend(session.emitted.take().map(|before| (before, -1)));
                changed.extend(found.clone().map(|found| (found, 1)));
                session.emitted = found;
            }
        }
    }
}

#[cfg(test)]
mod tests;
