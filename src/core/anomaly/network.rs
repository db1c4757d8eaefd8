//! The network of an address: the first 24 bits of IPv4, the first 48 of IPv6.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZero;

use serde::{Deserialize, Serialize};

/// A network: its version in the highest bits, and below them the bits that its addresses share.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Network(NonZero<u64>);

const SHARED_BITS: u32 = 48;
const IPV4: NonZero<u64> = NonZero::new(1 << SHARED_BITS).expect("not zero");
const IPV6: NonZero<u64> = NonZero::new(2 << SHARED_BITS).expect("not zero");

impl Network {
    fn of(ip: IpAddr) -> Self {
        match ip.to_canonical() {
            IpAddr::V4(ip) => Network(IPV4 | u64::from(ip.to_bits() >> 8)),
            IpAddr::V6(ip) => Network(IPV6 | (ip.to_bits() >> 80) as u64),
        }
    }

    /// Its IPv4 addresses; none if it is an IPv6 network.
    pub fn ipv4(self) -> impl Iterator<Item = u32> {
        let first = (self.0.get() << 8) as u32;
        let count = if self.0.get() < IPV6.get() { 256 } else { 0 };
        (0..count).map(move |last| first | last)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shared = self.0.get() & (IPV4.get() - 1);
        match self.0.get() < IPV6.get() {
            true => write!(f, "{}/24", Ipv4Addr::from_bits((shared << 8) as u32)),
            false => write!(f, "{}/48", Ipv6Addr::from_bits(u128::from(shared) << 80)),
        }
    }
}

/// The network of `ip` as text; `None` if it is not an address.
///
/// ```
/// use sessionizer_core::anomaly::network;
///
/// assert_eq!(network("192.0.2.77").as_deref(), Some("192.0.2.0/24"));
/// assert_eq!(network("2001:db8:1:2::3").as_deref(), Some("2001:db8:1::/48"));
/// assert_eq!(network("::ffff:192.0.2.77").as_deref(), Some("192.0.2.0/24"));
/// assert_eq!(network("proxy.example"), None);
/// ```
pub fn network(ip: &str) -> Option<String> {
    Some(Network::of(ip.parse().ok()?).to_string())
}

/// The address of a visitor. All visitors of a network are next to each other in their order, and
/// an IPv4 address takes no memory besides this.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct Visitor {
    network: Option<Network>,
    rest: Rest,
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
enum Rest {
    /// The last byte of an IPv4 address.
    Byte(u8),
    /// The address as it is written: another spelling is another visitor, as in the table.
    Text(Box<str>),
}

impl Visitor {
    /// The visitor with this address.
    pub fn of(ip: &str) -> Self {
        let parsed = ip.parse::<IpAddr>().ok();
        let rest = match parsed {
            // There is only one way to write it.
            Some(IpAddr::V4(ip)) => Rest::Byte(ip.octets()[3]),
            _ => Rest::Text(ip.into()),
        };
        Visitor { network: parsed.map(Network::of), rest }
    }

    /// The visitor with this IPv4 address.
    pub fn at(ipv4: u32) -> Self {
        let network = Network::of(Ipv4Addr::from_bits(ipv4).into());
        Visitor { network: Some(network), rest: Rest::Byte(ipv4 as u8) }
    }

    /// A lower bound: no visitor of this network sorts before it.
    pub fn first(network: Network) -> Self {
        Visitor { network: Some(network), rest: Rest::Byte(0) }
    }

    /// Its network; `None` if it does not have an address.
    pub fn network(&self) -> Option<Network> {
        self.network
    }

    /// Its IPv4 address, if it has one and it is written as such.
    pub fn ipv4(&self) -> Option<u32> {
        match (self.network, &self.rest) {
            (Some(Network(bits)), Rest::Byte(last)) => {
                Some((bits.get() << 8) as u32 | u32::from(*last))
            }
            _ => None,
        }
    }
}

impl fmt::Display for Visitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.rest, self.network) {
            (Rest::Byte(last), Some(Network(bits))) => {
                write!(f, "{}", Ipv4Addr::from_bits((bits.get() << 8) as u32 | u32::from(*last)))
            }
            (Rest::Byte(last), None) => write!(f, "{last}"),
            (Rest::Text(ip), _) => f.write_str(ip),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn visitors_come_back_as_they_were_written_and_are_sorted_by_network() {
        let written = [
            "proxy.example",
            "",
            "01.2.3.4",
            "10.0.0.255",
            "10.0.1.0",
            "::ffff:10.0.1.7",
            "255.255.255.255",
            "::1",
            "2001:db8::1",
            "2001:DB8::1",
            "2001:db8:0:9::1",
            "2001:db8:1::1",
        ];
        let mut visitors: Vec<Visitor> = written.iter().map(|ip| Visitor::of(ip)).collect();
        for (visitor, ip) in visitors.iter().zip(written) {
            assert_eq!(visitor.to_string(), ip);
            assert!(visitor.network().is_none_or(|network| Visitor::first(network) <= *visitor));
            let address = ip.parse::<Ipv4Addr>().ok().map(Ipv4Addr::to_bits);
            assert_eq!(visitor.ipv4(), address);
            assert_eq!(address.map(Visitor::at).unwrap_or(visitor.clone()), *visitor);
            let of = visitor.network().filter(|_| address.is_some());
            assert!(of.is_none_or(|of| of.ipv4().any(|one| Some(one) == address)));
            if let (Some(network), Ok(IpAddr::V6(ip))) = (visitor.network(), ip.parse()) {
                let addresses = if ip.to_ipv4_mapped().is_some() { 256 } else { 0 };
                assert_eq!(network.ipv4().count(), addresses, "{ip}");
            }
            assert_eq!(visitor.network().map(|network| network.to_string()), network(ip));
        }
        visitors.sort();
        let mut networks: Vec<Option<Network>> = visitors.iter().map(Visitor::network).collect();
        networks.dedup();
        assert_eq!(networks.len(), 7, "each network once, and those without");
        assert_eq!(network("::1").as_deref(), Some("::/48"));
        assert_eq!(size_of::<Visitor>(), 24);
    }
}
