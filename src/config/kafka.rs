//! How to reach Kafka: the valid values of KAFKA_URL and related settings, checked before anything
//! connects.

use sessionizer_core::secret::Secret;

use crate::config::value::name;
use crate::config::{Environment, Problems};
use crate::kafka::{KafkaConfig, QUEUED_BYTES, RESERVED};

/// The maximum length of the name of a job and of a consumer group.
pub const LONGEST_NAME: usize = 255;

/// Reads how to reach Kafka; a producer needs no group.
pub fn read_kafka(
    problems: &mut Problems<'_>,
    extra: &[String],
    consumes: bool,
    env: &Environment,
) -> Option<KafkaConfig> {
    let mut need = |variable: &str, what: &str| {
        let value = env.value(variable);
        if value.is_none() {
            problems.add(variable, format!("is not set: {what}"));
        }
        value.unwrap_or_default()
    };
    let brokers = need("KAFKA_URL", "the brokers, as host:port[,host:port]");
    let topics = match consumes {
        true => need("KAFKA_TOPIC", "the topic to read, or several: a,b"),
        false => need("KAFKA_TOPIC", "the topic to write to"),
    };
    let group = match consumes {
        true => need("KAFKA_GROUP", "the name of the job and of its consumer group"),
        false => String::new(),
    };
    let reachable = brokers.is_empty() || problems.take("KAFKA_URL", check(&brokers)).is_some();
    let topics = if topics.is_empty() { Vec::new() } else { read_topics(problems, &topics) };
    problems.take("KAFKA_GROUP", name(&group, LONGEST_NAME));
    let login = read_login(problems, env);
    let extra = read_extra(problems, extra);
    if let Err(what) = check_protocol(login.is_some(), &extra) {
        problems.add("--kafka-config", what);
    }
    let queued_bytes = QUEUED_BYTES;
    let config = KafkaConfig { brokers, group, topics, login, extra, queued_bytes };
    if reachable
        && !config.brokers.is_empty()
        && let Err(why) = config.check()
    {
        problems.add("--kafka-config", why);
    }
    Some(config)
}

fn read_login(problems: &mut Problems<'_>, env: &Environment) -> Option<(String, Secret)> {
    let (key, secret) = ("KAFKA_WEB_TRAFFIC_KEY", "KAFKA_WEB_TRAFFIC_SECRET");
    let (unset, set) = match (env.value(key), env.secret(secret)) {
        (Some(key), Some(secret)) => return Some((key, Secret::new(secret))),
        (None, None) => return None,
        (Some(_), None) => (secret, key),
        (None, Some(_)) => (key, secret),
    };
    problems.add(unset, format!("is not set and {set} is: set both, or neither"));
    None
}

/// Checks that this is a list of host:port. The message does not repeat anything that may hold a
/// login.
fn check(brokers: &str) -> Result<(), String> {
    if brokers.contains('@') {
        return Err("has an @ in it: write host:port[,host:port], and set a login by \
                    KAFKA_WEB_TRAFFIC_KEY and KAFKA_WEB_TRAFFIC_SECRET"
            .to_owned());
    }
    if brokers.contains('=') {
        return Err(
            "has a = in it: write host:port[,host:port] and nothing else. A login belongs \
                    in KAFKA_WEB_TRAFFIC_KEY and KAFKA_WEB_TRAFFIC_SECRET, and other settings in \
                    --kafka-config"
                .to_owned(),
        );
    }
    let mut entries = (1..).zip(brokers.split(','));
    entries.try_for_each(|(at, entry)| check_broker(at, entry.trim()))
}

fn check_broker(at: usize, entry: &str) -> Result<(), String> {
    if entry.is_empty() {
        return Err("has a comma with nothing before or after it: write host:port,host:port".into());
    }
    let legal = |c: char| c.is_ascii_alphanumeric() || "._-:".contains(c);
    let shown = |text: &str| match text.chars().all(|c| legal(c) || "[]".contains(c)) {
        true => format!("{text:?}"),
        false => format!("broker {at} of the list"),
    };
    if let Some((scheme, rest)) = entry.split_once("://") {
        let place = rest.trim_end_matches('/');
        let how = match scheme.to_ascii_uppercase().as_str() {
            "SSL" => "; for TLS, add --kafka-config security.protocol=ssl",
            "SASL_SSL" => {
                "; for TLS and a login, set KAFKA_WEB_TRAFFIC_KEY and KAFKA_WEB_TRAFFIC_SECRET"
            }
            "SASL_PLAINTEXT" => {
                "; for a login without TLS, add --kafka-config security.protocol=sasl_plaintext"
            }
            _ => "",
        };
        return Err(match place.chars().chain(scheme.chars()).all(|c| legal(c) || c == '_') {
            true => format!("begins with {scheme}://: write {place} alone{how}"),
            false => format!("has a scheme in broker {at} of the list: write host:port alone{how}"),
        });
    }
    if entry.contains(';') {
        return Err(format!("has a ; in {}: write commas between brokers", shown(entry)));
    }
    if entry.contains(char::is_whitespace) {
        let shown = shown(entry);
        return Err(format!("has a blank in {shown}: write host:port, and commas between them"));
    }
    let (host, port) = match entry.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((host, rest)) if host.parse::<std::net::Ipv6Addr>().is_ok() => {
                (host, rest.strip_prefix(':'))
            }
            _ => {
                return Err(format!("has {}: write an IPv6 address like [::1]:9092", shown(entry)));
            }
        },
        None => entry.rsplit_once(':').map_or((entry, None), |(host, port)| (host, Some(port))),
    };
    let shown = shown(entry);
    if !entry.starts_with('[') && host.contains(':') {
        return Err(format!("has {shown}: write an IPv6 address in brackets, like [::1]:9092"));
    }
    if host.is_empty() || !host.chars().all(legal) {
        return Err(format!("has {shown}, which is not host:port"));
    }
    let is_number = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    match port {
        None => Err(format!("has no port in {shown}: write host:port, like {entry}:9092")),
        Some(port) if is_number(port) && port.parse::<u16>().is_ok_and(|port| port > 0) => Ok(()),
        Some(_) => Err(format!("has {shown}: a port is a number from 1 to 65535")),
    }
}

/// Checks that the protocol uses what is set: a login or TLS must not be left out in silence.
fn check_protocol(has_login: bool, extra: &[(String, Secret)]) -> Result<(), String> {
    let last = |name: &str| extra.iter().rfind(|(set, _)| set == name);
    let is_set = |prefix: &str| extra.iter().find(|(name, _)| name.starts_with(prefix));
    let protocol = last("security.protocol").map(|(_, value)| value.reveal().trim().to_lowercase());
    let by_default = if has_login { "sasl_ssl" } else { "plaintext" };
    let is = protocol.as_deref().unwrap_or(by_default);
    if !["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"].contains(&is) {
        return Ok(()); // librdkafka refuses it.
    }
    if has_login && !is.starts_with("sasl") {
        return Err(format!(
            "has security.protocol={is}, which knows no login, and KAFKA_WEB_TRAFFIC_KEY is set: \
             write security.protocol=sasl_{is}, or unset KAFKA_WEB_TRAFFIC_KEY and \
             KAFKA_WEB_TRAFFIC_SECRET"
        ));
    }
    for (prefix, needed, uses) in [
        ("sasl.", "sasl_ssl (or sasl_plaintext)", is.starts_with("sasl")),
        ("ssl.", "ssl (or sasl_ssl)", is.ends_with("ssl")),
    ] {
        if let Some((name, _)) = is_set(prefix).filter(|_| !uses) {
            return Err(format!(
                "has {name}, which has no effect with security.protocol={is}{}: add \
                 security.protocol={needed}, or leave it out",
                if protocol.is_some() { "" } else { ", the default" }
            ));
        }
    }
    let mechanism = || extra.iter().any(|(name, _)| name.starts_with("sasl.mechanism"));
    if is.starts_with("sasl") && !has_login && !mechanism() {
        return Err(format!(
            "has security.protocol={is} and no login: set KAFKA_WEB_TRAFFIC_KEY and \
             KAFKA_WEB_TRAFFIC_SECRET, or sasl.mechanism and what it needs"
        ));
    }
    Ok(())
}

/// The topics in which brokers keep their own state.
const INTERNAL: [&str; 4] =
    ["__consumer_offsets", "__transaction_state", "__share_group_state", "__cluster_metadata"];

fn read_topics(problems: &mut Problems<'_>, list: &str) -> Vec<String> {
    let mut topics: Vec<String> = Vec::new();
    for topic in list.split(',').map(str::trim) {
        let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let what = if topic.is_empty() {
            "has a comma with nothing before or after it".to_owned()
        } else if topic.len() > 249 {
            format!("has a name of {} characters: a topic's name has at most 249", topic.len())
        } else if !topic.chars().all(legal) || topic == "." || topic == ".." {
            format!("has {topic:?}: a topic's name has letters, digits, dots, _ and - only")
        } else if INTERNAL.contains(&topic) {
            format!("has {topic}, which Kafka uses itself: name the topic of the events")
        } else {
            if !topics.iter().any(|known| known == topic) {
                topics.push(topic.to_owned());
            }
            continue;
        };
        problems.add("KAFKA_TOPIC", what);
    }
    topics
}

fn read_extra(problems: &mut Problems<'_>, extra: &[String]) -> Vec<(String, Secret)> {
    let mut settings = Vec::new();
    for text in extra.iter().map(|text| text.trim()).filter(|text| !text.is_empty()) {
        let named = text.split_once('=').map(|(name, value)| (name.trim(), value));
        let legal = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let Some((name, value)) =
            named.filter(|(name, _)| !name.is_empty() && name.chars().all(legal))
        else {
            // Not repeated: what is not name=value may be a secret.
            problems.add("--kafka-config", "is not of the form name=value");
            continue;
        };
        if value.trim().is_empty() {
            let what = format!("has no value for {name}: write {name}=VALUE, or leave it out");
            problems.add("--kafka-config", what);
            continue;
        }
        match RESERVED.iter().find(|(reserved, _)| *reserved == name) {
            Some((_, why)) => {
                problems.add("--kafka-config", format!("{name} cannot be set: {why}"));
            }
            None if settings.iter().any(|(known, _)| known == name) => {
                let what = format!("has {name} twice: only one of them can count");
                problems.add("--kafka-config", what);
            }
            None => settings.push((name.to_owned(), Secret::new(value))),
        }
    }
    settings
}
