//! Visitors that were forgotten, as an audit needs them: Kafka may still have their records.
//!
//! A visitor is stored as a salted hash, so that its address is nowhere in the database. The hash
//! does not hide it from somebody who may read the salt and tries all addresses.

use std::collections::HashMap;

use openssl::sha::Sha256;
use postgres::{GenericClient, Transaction};
use sessionizer_core::binding::Offset;
use sessionizer_core::fault::Fault;
use sessionizer_core::key;
use sessionizer_core::key::Key;

use crate::dataflow::ports::LedgerError;
use crate::ledger::durable::NamedBinding;
use crate::ledger::errors::classify;
use crate::ledger::stopped::exists;

const SALT_BYTES: usize = 16;

type Hash = [u8; 32];

/// The forgotten visitors of a job.
#[derive(Default)]
pub struct Forgotten {
    salt: Vec<u8>,
    /// By visitor: up to which offset of each topic and partition its events do not count.
    visitors: HashMap<Hash, HashMap<(String, i32), Offset>>,
}

impl Forgotten {
    /// Reads them. The schema of an older version has none.
    pub(super) fn read(client: &mut impl GenericClient, job: &str) -> Result<Self, LedgerError> {
        let failed = |why: postgres::Error| classify(&why, "reading who was forgotten");
        let mut found = Forgotten::default();
        if !exists(client, "forgotten").map_err(failed)? {
            return Ok(found);
        }
        let rows = client
            .query(
                "select j.forget_salt, f.visitor, f.topic, f.partition, f.before_offset
                 from sessionizer.forgotten f join sessionizer.jobs j using (job)
                 where job = $1 and j.forget_salt is not null",
                &[&job],
            )
            .map_err(failed)?;
        for row in rows {
            found.salt = row.get(0);
            let Ok(visitor) = Hash::try_from(row.get::<_, &[u8]>(1)) else { continue };
            let before = Offset::new(row.get(4));
            found.visitors.entry(visitor).or_default().insert((row.get(2), row.get(3)), before);
        }
        Ok(found)
    }

    /// Whether events of a visitor were forgotten.
    pub fn has_visitor(&self, key: &Key) -> bool {
        !self.visitors.is_empty() && self.ends(key).next().is_some()
    }

    /// Whether an event was forgotten: it had been read by the time its visitor was forgotten.
    pub fn has(&self, key: &Key, topic: &str, partition: i32, offset: Offset) -> bool {
        if self.visitors.is_empty() {
            return false;
        }
        // Few visitors are forgotten, so this is reached rarely.
        self.ends(key).any(|ends| {
            let end = ends.get(&(topic.to_owned(), partition));
            end.is_some_and(|end| offset < *end)
        })
    }

    /// Up to where its events do not count: as a visitor of all hosts, and of its host.
    fn ends(&self, key: &Key) -> impl Iterator<Item = &HashMap<(String, i32), Offset>> {
        let (ip, host) = key.parts();
        let hashes = [None, Some(host)].map(|host| hash(&self.salt, ip, host));
        hashes.into_iter().filter_map(|hash| self.visitors.get(&hash))
    }
}

/// Records that a visitor is forgotten, on one host or on all, up to the offset to which each
/// partition was read.
pub(super) fn note(
    tx: &mut Transaction<'_>,
    job: &str,
    (ip, host): (&str, Option<&str>),
    bindings: &[NamedBinding],
) -> Result<(), LedgerError> {
    let failed = |why: postgres::Error| classify(&why, "noting who is forgotten");
    let mut salt = [0; SALT_BYTES];
    openssl::rand::rand_bytes(&mut salt).map_err(|why| {
        LedgerError::Fatal(Fault::environment(format!("OpenSSL has no random numbers: {why}")))
    })?;
    let salt: Vec<u8> = tx
        .query_one(
            "update sessionizer.jobs set forget_salt = coalesce(forget_salt, $2) where job = $1
             returning forget_salt",
            &[&job, &&salt[..]],
        )
        .map_err(failed)?
        .get(0);
    let visitor = hash(&salt, ip, host);
    for binding in bindings {
        tx.execute(
            "insert into sessionizer.forgotten as f
                 (job, visitor, topic, partition, before_offset)
             values ($1, $2, $3, $4, $5)
             on conflict (job, visitor, topic, partition) do update
             set before_offset = greatest(f.before_offset, excluded.before_offset),
                 forgotten_at = now()",
            &[&job, &&visitor[..], &binding.topic, &binding.partition, &binding.end.get()],
        )
        .map_err(failed)?;
    }
    Ok(())
}

fn hash(salt: &[u8], ip: &str, host: Option<&str>) -> Hash {
    let mut bytes = Vec::new();
    match host {
        Some(host) => key::encode(ip.as_bytes(), host.as_bytes(), &mut bytes),
        None => bytes.extend_from_slice(ip.as_bytes()),
    }
    let mut sha = Sha256::new();
    sha.update(salt);
    sha.update(&bytes);
    sha.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_of_a_forgotten_visitor_are_told_by_key_and_offset() {
        let salt = vec![7; SALT_BYTES];
        let ends = |end| HashMap::from([(("t".to_owned(), 0), Offset::new(end))]);
        let visitors = HashMap::from([
            (hash(&salt, "192.0.2.1", None), ends(10)),
            (hash(&salt, "192.0.2.2", Some("a")), ends(20)),
        ]);
        let forgotten = Forgotten { salt, visitors };
        let has = |ip, host, partition, offset| {
            forgotten.has(&Key::new(ip, host), "t", partition, Offset::new(offset))
        };
        let visitor = |ip, host| forgotten.has_visitor(&Key::new(ip, host));
        assert!(visitor("192.0.2.1", "b") && visitor("192.0.2.2", "a"));
        assert!(!visitor("192.0.2.2", "b") && !visitor("192.0.2.3", "a"));
        assert!(has("192.0.2.1", "a", 0, 9) && has("192.0.2.1", "b", 0, 0));
        assert!(!has("192.0.2.1", "a", 0, 10), "it came later");
        assert!(!has("192.0.2.1", "a", 1, 9), "another partition");
        assert!(has("192.0.2.2", "a", 0, 19) && !has("192.0.2.2", "b", 0, 19), "one host");
        assert!(!has("192.0.2.11", "a", 0, 0));
        assert!(!Forgotten::default().has(&Key::new("192.0.2.1", "a"), "t", 0, Offset::ZERO));
    }
}
