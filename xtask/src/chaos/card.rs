//! The faults, as cards: a deck is shuffled and drawn until it is empty.

use std::fmt;

use crate::rng::Rng;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Card {
    Kill,
    /// Possibly while it replays what the previous round left uncommitted.
    KillDuringStart,
    KillOne,
    KillOneDuringStart,
    /// One process hangs, and wakes up when the others have ended.
    FreezeOne,
    Stop,
    /// A second instance starts.
    Overtake,
    /// PostgreSQL is killed or restarted.
    Postgres,
    /// The connections to PostgreSQL are terminated.
    Terminate,
    /// PostgreSQL crashes and loses commits that it had acknowledged.
    LoseCommits,
    /// The primary is lost, and a standby is promoted.
    Promote,
    /// The broker is killed or restarted.
    Broker,
    /// The clock of a machine is set.
    Clock,
}

impl Card {
    const ALL: [Card; 13] = [
        Card::Kill,
        Card::KillDuringStart,
        Card::KillOne,
        Card::KillOneDuringStart,
        Card::FreezeOne,
        Card::Stop,
        Card::Overtake,
        Card::Postgres,
        Card::Terminate,
        Card::LoseCommits,
        Card::Promote,
        Card::Broker,
        Card::Clock,
    ];

    /// How many of these are in a deck.
    fn weight(self, cluster: bool) -> usize {
        match (self, cluster) {
            (Card::Kill, false) => 3,
            (Card::KillDuringStart, false) => 2,
            (Card::KillDuringStart, true) => 0,
            (Card::KillOne, true) => 2,
            (Card::KillOne | Card::KillOneDuringStart | Card::FreezeOne, false) => 0,
            _ => 1,
        }
    }

    /// The fewest processes it needs: if it affects one process, there must be others to notice.
    pub fn least_processes(self) -> usize {
        match self {
            Card::KillOne | Card::KillOneDuringStart | Card::FreezeOne => 2,
            _ => 1,
        }
    }
}

impl fmt::Display for Card {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Card::Kill => "kill -9",
            Card::KillDuringStart => "kill -9 during the start",
            Card::KillOne => "kill -9 of one",
            Card::KillOneDuringStart => "kill -9 of one during the start",
            Card::FreezeOne => "one is frozen",
            Card::Stop => "a clean stop",
            Card::Overtake => "a second instance",
            Card::Postgres => "PostgreSQL",
            Card::Terminate => "terminated connections",
            Card::LoseCommits => "a lost commit",
            Card::Promote => "a promoted standby",
            Card::Broker => "the broker",
            Card::Clock => "the clock",
        })
    }
}

/// A full deck, with each card as often as its weight.
pub struct Deck {
    cluster: bool,
    rng: Rng,
    left: Vec<Card>,
}

impl Deck {
    pub fn new(cluster: bool, seed: u64) -> Deck {
        Deck { cluster, rng: Rng::new(seed), left: Vec::new() }
    }

    pub fn draw(&mut self) -> Card {
        if self.left.is_empty() {
            self.left = full(self.cluster);
            for at in (1..self.left.len()).rev() {
                self.left.swap(at, self.rng.below(at as u64 + 1) as usize);
            }
        }
        self.left.pop().expect("a full deck has cards")
    }
}

fn full(cluster: bool) -> Vec<Card> {
    let times = |card: Card| std::iter::repeat_n(card, card.weight(cluster));
    Card::ALL.into_iter().flat_map(times).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thirteen_rounds_bring_each_card() {
        for cluster in [false, true] {
            let mut deck = Deck::new(cluster, 7);
            for _ in 0..3 {
                let mut drawn: Vec<Card> = (0..13).map(|_| deck.draw()).collect();
                drawn.sort();
                assert_eq!(drawn, full(cluster));
            }
        }
        for card in Card::ALL {
            assert!(full(true).contains(&card) || full(false).contains(&card), "{card}");
        }
    }

    #[test]
    fn one_process_has_no_others_that_notice() {
        assert!(full(false).iter().all(|card| card.least_processes() == 1));
    }

    #[test]
    fn a_seed_is_a_sequence_of_cards() {
        let draw = |seed| {
            let mut deck = Deck::new(true, seed);
            (0..40).map(|_| deck.draw()).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }
}
