//! What a page view looks like: addresses, pages, referrers and browsers.
//!
//! A visitor's address, browser and language are functions of their index, so they need no memory
//! and stay the same for ever. An event is about 360 bytes of JSON, which benchmarks of the job
//! assume.

use std::net::{Ipv4Addr, Ipv6Addr};

use crate::commands::produce::event::WebEvent;
use crate::commands::produce::generate::random::mix;
use crate::commands::produce::generate::visits::PageView;

/// The pages of every site, most popular first.
pub const PAGES: [&str; 40] = [
    "/",
    "/blog",
    "/bootcamp",
    "/blog/how-to-pass-the-data-engineering-interview",
    "/about",
    "/lessons/day-1-dimensional-data-modeling",
    "/blog/what-is-a-data-lakehouse-and-do-you-need-one",
    "/pricing",
    "/login",
    "/lessons/day-2-slowly-changing-dimensions",
    "/courses",
    "/blog/sessionization-with-event-time-and-watermarks",
    "/signup?utm_source=newsletter&utm_medium=email",
    "/lessons/day-3-graph-databases-and-additive-dimensions",
    "/assets/main.css",
    "/blog/page/2",
    "/contact",
    "/lessons/week-2/fact-data-modeling",
    "/blog/five-mistakes-with-streaming-joins?ref=home",
    "/search?q=exactly+once",
    "/favicon.ico",
    "/blog/tags/kafka",
    "/lessons/week-3/unit-testing-pipelines",
    "/assets/app.js?v=20231107",
    "/events/live-coding-with-flink-and-kafka",
    "/account/settings",
    "/blog/tags/postgres",
    "/lessons/week-4/streaming-pipelines#homework",
    "/api/v1/user",
    "/blog/growing-an-audience-as-an-engineer",
    "/search?q=late+events&page=2",
    "/terms",
    "/privacy",
    "/lessons/week-5/data-quality-and-contracts",
    "/blog/caf%C3%A9-analytics",
    "/jobs",
    "/robots.txt",
    "/lessons/week-6/kpis-and-experimentation",
    "/wp-login.php",
    "/blog/feed.xml",
];

/// Where visits come from; empty for a typed address.
const OUTSIDE: [&str; 10] = [
    "",
    "https://www.google.com/",
    "https://www.linkedin.com/feed/",
    "",
    "https://t.co/Zq3nV1xW0b",
    "https://www.youtube.com/watch?v=data-engineering",
    "https://duckduckgo.com/",
    "https://www.bing.com/search?q=data+engineering",
    "https://news.ycombinator.com/item?id=38000000",
    "android-app://com.linkedin.android/",
];

const AGENTS: [&str; 12] = [
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) \
     Chrome/119.0.0.0 Safari/537.36",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko) \
     Chrome/119.0.0.0 Safari/537.36",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_1 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like \
     Gecko) Version/17.1 Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:120.0) Gecko/20100101 Firefox/120.0",
    "Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/119.0.0.0 \
     Mobile Safari/537.36",
    "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) \
     Version/17.1 Safari/605.1.15",
    "Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) \
     Chrome/119.0.0.0 Safari/537.36 Edg/119.0.2151.58",
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/119.0.0.0 \
     Safari/537.36",
    "Mozilla/5.0 (iPad; CPU OS 16_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) \
     Version/16.6 Mobile/15E148 Safari/604.1",
    "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
    "Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:109.0) Gecko/20100101 Firefox/119.0",
    "curl/8.4.0",
];

const LANGUAGES: [&str; 6] = [
    "en-US,en;q=0.9",
    "en-GB,en;q=0.8",
    "de-DE,de;q=0.9,en;q=0.7",
    "pt-BR,pt;q=0.9",
    "hi-IN,hi;q=0.9,en;q=0.6",
    "es-MX,es;q=0.9",
];

/// First bytes of IPv4 addresses that belong to access providers and data centres.
const NETWORKS: [u8; 64] = [
    2, 5, 12, 17, 18, 23, 24, 31, 34, 37, 41, 45, 46, 49, 50, 52, 54, 58, 62, 63, 64, 65, 66, 67,
    68, 69, 70, 71, 72, 73, 74, 75, 76, 77, 78, 79, 80, 81, 82, 83, 84, 85, 86, 87, 88, 89, 90, 91,
    92, 93, 94, 95, 96, 97, 98, 99, 101, 103, 104, 107, 108, 109, 176, 178,
];
const IPV4_BITS: u32 = 30;

/// The address of a visitor, different for every index: one in eight has IPv6, the others IPv4
/// (beyond the 2³⁰th visitor all have IPv6).
pub fn ip(visitor: u64) -> String {
    if visitor >> IPV4_BITS != 0 || visitor % 8 == 5 {
        let (unique, other) = (mix(visitor), mix(!visitor));
        let [a, b, c, d] = [48, 32, 16, 0].map(|shift| (unique >> shift) as u16);
        return Ipv6Addr::new(0x2001, 0xdb8, a, b, other as u16, (other >> 16) as u16, c, d)
            .to_string();
    }
    // Multiplying by an odd number and adding a constant is a bijection of 30 bits: neighbours
    // scatter, and none collide.
    let scattered = (visitor as u32).wrapping_mul(0x9e37_79b1).wrapping_add(0x1234_5678);
    let [net, b, c, d] = (scattered & ((1 << IPV4_BITS) - 1)).to_be_bytes();
    Ipv4Addr::new(NETWORKS[usize::from(net)], b, c, d).to_string()
}

/// The event of a view on `host` by the visitor with address `ip`.
pub fn event<'a>(view: &PageView, host: &'a str, ip: &'a str, event_time_ms: i64) -> WebEvent<'a> {
    let person = mix(view.visitor ^ 0xa9e);
    let referrer = match view.came_from {
        Some(page) => ["https://", host, PAGES[usize::from(page)]].concat().into(),
        None => choose(&OUTSIDE, mix(view.at_ns ^ person)).into(),
    };
    WebEvent {
        url: PAGES[usize::from(view.page)].into(),
        referrer,
        user_agent: choose(&AGENTS, person).into(),
        host: host.into(),
        ip: ip.into(),
        headers: vec![("accept-language".into(), choose(&LANGUAGES, person >> 32).into())],
        event_time_ms,
    }
}

/// One of `choices`, the first ones more often than the last.
fn choose(choices: &[&'static str], bits: u64) -> &'static str {
    let (a, b) = (bits as u16 as usize, (bits >> 16) as u16 as usize);
    choices[(a.min(b) * choices.len()) >> 16]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn every_visitor_has_an_address_of_their_own_for_ever() {
        let ips: BTreeSet<String> = (0..200_000).map(ip).collect();
        assert_eq!(ips.len(), 200_000);
        let six = ips.iter().filter(|ip| ip.contains(':')).count();
        assert_eq!(six, 25_000);
        for visitor in [0, 5, (1 << 30) - 1, 1 << 30, u64::MAX] {
            assert!(ip(visitor).parse::<IpAddr>().is_ok(), "{visitor}: {}", ip(visitor));
        }
        let want = ["62.52.86.120", "92.107.208.41", "2001:db8:6303:3b0c:f81:d92c:a389:c35a"];
        assert_eq!([ip(0), ip(1), ip(5)], want);
    }

    #[test]
    fn a_view_refers_to_the_page_before_it() {
        let view = PageView { at_ns: 0, visitor: 3, host: 0, page: 1, came_from: Some(0) };
        let event = event(&view, "a.example", "192.0.2.1", 0);
        assert_eq!((&*event.url, &*event.referrer), ("/blog", "https://a.example/"));
    }
}
