//! Figures that the processes of a cluster send to process 0 for its page: texts that the links
//! carry without interpreting them.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::ui::text::duration;

/// A report that is older than this is ignored.
pub const TRUE_FOR: Duration = Duration::from_secs(5);

/// What this process reports, and what others have reported to it.
#[derive(Default)]
pub struct Peers(Mutex<Mail>);

#[derive(Default)]
struct Mail {
    /// The text for process 0, until a link has taken it.
    out: Option<String>,
    inbox: BTreeMap<usize, (Instant, String)>,
    /// When each process was last heard from.
    heard: BTreeMap<usize, Instant>,
}

impl Peers {
    fn lock(&self) -> MutexGuard<'_, Mail> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves a text for process 0; one that was not taken is replaced.
    pub fn tell(&self, text: String) {
        self.lock().out = Some(text);
    }

    /// Takes the text to send.
    pub fn take(&self) -> Option<String> {
        self.lock().out.take()
    }

    /// Notes the report of a process.
    pub fn hear(&self, process: usize, text: String) {
        self.lock().inbox.insert(process, (Instant::now(), text));
    }

    /// Notes a sign of life.
    pub fn alive(&self, process: usize) {
        self.lock().heard.insert(process, Instant::now());
    }

    /// The reports of the other processes that are recent enough.
    pub fn inbox(&self) -> Vec<String> {
        let mail = self.lock();
        let fresh = mail.inbox.values().filter(|(at, _)| at.elapsed() < TRUE_FOR);
        fresh.map(|(_, text)| text.clone()).collect()
    }

    /// When each process was last heard from, in words.
    pub fn reports(&self) -> Vec<(usize, String)> {
        let mail = self.lock();
        let ago = |at: &Instant| format!("heard {} ago", duration(at.elapsed()));
        mail.heard.iter().map(|(process, at)| (*process, ago(at))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_text_is_kept() {
        let peers = Peers::default();
        ["a", "b"].iter().for_each(|text| peers.tell((*text).to_owned()));
        assert_eq!((peers.take().as_deref(), peers.take()), (Some("b"), None));
        ["c", "d"].iter().for_each(|text| peers.hear(2, (*text).to_owned()));
        peers.hear(1, "e".to_owned());
        assert_eq!(peers.inbox(), ["e", "d"]);
    }
}
