//! The sessions of a day by visitor and by network.
//!
//! Every row passes through here, so the maps that it looks into are small: a visitor with an IPv4
//! address takes eight bytes.

use std::collections::{BTreeMap, HashMap};

use foldhash::fast::RandomState;

use super::network::{Network, Visitor};

/// The sessions of the visitors of a host. Counts may be negative while the rows of the start are
/// being read; a visitor whose count is zero is not kept.
#[derive(Clone, Debug, Default)]
pub struct Visits {
    /// By address. A visitor's sessions of a day are apart, so there cannot be more of them than
    /// milliseconds.
    ipv4: HashMap<u32, i32, RandomState>,
    others: BTreeMap<Visitor, i64>,
    networks: HashMap<Network, NetworkVisits, RandomState>,
}

/// The sessions of a network.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NetworkVisits {
    pub sessions: i64,
    /// How many of its visitors have a positive count.
    pub addresses: i64,
}

impl Visits {
    /// Adds `n` sessions of a visitor. Returns how many it has now, and how many its network has,
    /// if it has one.
    pub fn add(&mut self, visitor: &Visitor, n: i64) -> (i64, Option<i64>) {
        let now = match visitor.ipv4() {
            Some(address) => self.add_ipv4(address, n),
            None => self.add_other(visitor, n),
        };
        let Some(network) = visitor.network() else { return (now, None) };
        let visits = self.networks.entry(network).or_default();
        visits.sessions += n;
        visits.addresses += i64::from(now > 0) - i64::from(now - n > 0);
        let sessions = visits.sessions;
        if *visits == NetworkVisits::default() {
            self.networks.remove(&network);
        }
        (now, Some(sessions))
    }

    fn add_ipv4(&mut self, address: u32, n: i64) -> i64 {
        let sessions = self.ipv4.entry(address).or_default();
        *sessions += n as i32;
        let now = *sessions;
        if now == 0 {
            self.ipv4.remove(&address);
        }
        i64::from(now)
    }

    fn add_other(&mut self, visitor: &Visitor, n: i64) -> i64 {
        // Without a copy of the address if it is there.
        let Some(sessions) = self.others.get_mut(visitor) else {
            if n != 0 {
                self.others.insert(visitor.clone(), n);
            }
            return n;
        };
        *sessions += n;
        let now = *sessions;
        if now == 0 {
            self.others.remove(visitor);
        }
        now
    }

    /// How many visitors there are.
    pub fn visitors(&self) -> usize {
        self.ipv4.len() + self.others.len()
    }

    /// The sessions of a visitor.
    pub fn of_visitor(&self, visitor: &Visitor) -> i64 {
        match visitor.ipv4() {
            Some(address) => self.ipv4.get(&address).map_or(0, |n| i64::from(*n)),
            None => self.others.get(visitor).copied().unwrap_or(0),
        }
    }

    /// The sessions of a network.
    pub fn of_network(&self, network: Network) -> NetworkVisits {
        self.networks.get(&network).copied().unwrap_or_default()
    }

    /// The most sessions of one visitor of a network.
    pub fn most_of(&self, network: Network) -> i64 {
        let ipv4 = network.ipv4().filter_map(|address| self.ipv4.get(&address));
        let others = self.others.range(Visitor::first(network)..);
        let others = others.take_while(|(visitor, _)| visitor.network() == Some(network));
        ipv4.map(|n| i64::from(*n)).chain(others.map(|(_, n)| *n)).max().unwrap_or(0)
    }

    /// The visitors with more sessions than this, in no order.
    pub fn visitors_above(&self, min: i64) -> impl Iterator<Item = Visitor> {
        let ipv4 = self.ipv4.iter().filter(move |(_, n)| i64::from(**n) > min);
        let others = self.others.iter().filter(move |(_, n)| **n > min);
        let ipv4 = ipv4.map(|(address, _)| Visitor::at(*address));
        ipv4.chain(others.map(|(visitor, _)| visitor.clone()))
    }

    /// The networks with more sessions than this, in no order.
    pub fn networks_above(&self, min: i64) -> impl Iterator<Item = Network> {
        let many = self.networks.iter().filter(move |(_, visits)| visits.sessions > min);
        many.map(|(network, _)| *network)
    }
}
