//! The secret that the processes of a cluster share, and the keys derived from it. It is never
//! shown, and never leaves the process.

use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use log::warn;
use openssl::error::ErrorStack;
use openssl::md::Md;
use openssl::pkey::Id;
use openssl::pkey_ctx::PkeyCtx;
use sessionizer_core::fault::{Fault, Message};
use sessionizer_core::secret::Secret;

use crate::config::value::read_beginning;

/// A shorter secret could be guessed.
const MIN_BYTES: usize = 16;
/// A longer file is not a secret but the wrong file.
const MAX_BYTES: usize = 4_096;
/// How to make a secret, for messages.
const REMEDY: &str = "make one with (umask 077; head -c 32 /dev/urandom | base64 > FILE) and \
                      give the same to every process";

/// Where the secret comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SecretSource {
    /// `--cluster-secret-file`.
    File(PathBuf),
    /// `SESSIONIZER_CLUSTER_SECRET`.
    Variable(Secret),
}

impl SecretSource {
    /// Whether the secret can be read and is long enough.
    pub fn check(&self) -> Result<(), Fault> {
        SecretKey::read(self).map(drop)
    }
}

/// A key of 32 bytes.
#[derive(Clone)]
pub(super) struct SecretKey([u8; 32]);

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl SecretKey {
    /// Reads the secret. Whatever is wrong with it is a configuration error.
    pub fn read(source: &SecretSource) -> Result<SecretKey, Fault> {
        let (name, bytes) = match source {
            SecretSource::Variable(secret) => {
                ("SESSIONIZER_CLUSTER_SECRET".to_owned(), secret.reveal().as_bytes().to_vec())
            }
            SecretSource::File(path) => {
                let name = format!("the cluster secret {} (--cluster-secret-file)", path.display());
                // A newline of two bytes may follow, and one more byte shows that there is more.
                let bytes = read_beginning(path, MAX_BYTES as u64 + 3)
                    .map_err(|why| unusable(format!("{name} cannot be read: {why}")))?;
                warn_if_exposed(path);
                (name, bytes)
            }
        };
        SecretKey::of(&bytes).map_err(|what| unusable(format!("{name} {what}")))
    }

    /// Derives the key from a secret. One newline at the end belongs to the file and not to the
    /// secret.
    pub fn of(secret: &[u8]) -> Result<SecretKey, String> {
        let secret = secret.strip_suffix(b"\n").unwrap_or(secret);
        let secret = secret.strip_suffix(b"\r").unwrap_or(secret);
        match secret.len() {
            0 => Err("is empty".to_owned()),
            short if short < MIN_BYTES => {
                Err(format!("has {short} bytes, and must have at least {MIN_BYTES}"))
            }
            long if long > MAX_BYTES => Err(format!("is longer than {MAX_BYTES} bytes")),
            _ => derive(secret, b"cluster")
                .map(SecretKey)
                .map_err(|why| format!("cannot be used by OpenSSL: {why}")),
        }
    }

    /// The key with which `client` connects to `server`. Each direction of each pair has its own
    /// key, so a connection that is redirected to another process, or back to its sender, is not
    /// accepted.
    pub fn between(&self, client: usize, server: usize) -> Result<[u8; 32], ErrorStack> {
        derive(&self.0, format!("process {client} to process {server}").as_bytes())
    }
}

fn unusable(problem: String) -> Fault {
    Fault::config(Message::new(problem).remedy("; ", REMEDY))
}

/// HKDF with SHA-256 (RFC 5869).
fn derive(secret: &[u8], purpose: &[u8]) -> Result<[u8; 32], ErrorStack> {
    let mut key = [0; 32];
    let mut context = PkeyCtx::new_id(Id::HKDF)?;
    context.derive_init()?;
    context.set_hkdf_md(Md::sha256())?;
    context.set_hkdf_salt(b"sessionizer cluster, version 1")?;
    context.set_hkdf_key(secret)?;
    context.add_hkdf_info(purpose)?;
    context.derive(Some(&mut key))?;
    Ok(key)
}

/// A group may read the file: Kubernetes and systemd provide secrets that way.
fn warn_if_exposed(path: &Path) {
    let Ok(about) = fs::metadata(path) else { return };
    let mode = about.permissions().mode() & 0o777;
    if mode & 0o026 != 0 {
        let path = path.display();
        warn!(
            "the cluster secret {path} (--cluster-secret-file) has mode {mode:03o}: other users \
             can read or replace it. Whoever knows it can join the job: chmod 600 {path}"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: &[u8] = b"0123456789abcdef";

    #[test]
    fn a_newline_at_the_end_is_not_part_of_the_secret() {
        let key = |secret: &[u8]| SecretKey::of(secret).expect("long enough").0;
        let want = key(SECRET);
        assert_eq!(key(b"0123456789abcdef\n"), want);
        assert_eq!(key(b"0123456789abcdef\r\n"), want);
        assert_ne!(key(b"0123456789abcdef\n\n"), want);
        assert_ne!(key(b"0123456789abcdeF"), want);
    }

    #[test]
    fn a_secret_that_is_too_short_or_too_long_is_refused_and_not_repeated() {
        for (secret, says) in [
            (b"".to_vec(), "is empty"),
            (b"\n".to_vec(), "is empty"),
            (b"hunter2hunter2!".to_vec(), "has 15 bytes, and must have at least 16"),
            (vec![b'x'; MAX_BYTES + 1], "is longer than 4096 bytes"),
        ] {
            let source = SecretSource::Variable(Secret::new(String::from_utf8_lossy(&secret)));
            let Err(Fault::Config(why)) = SecretKey::read(&source) else { panic!("{says}") };
            let why = why.to_string();
            assert!(why.contains(&format!("SESSIONIZER_CLUSTER_SECRET {says}; make one")), "{why}");
            assert!(!why.contains("hunter2"), "{why}");
        }
    }

    #[test]
    fn a_file_is_read_and_one_that_never_ends_is_too_long() {
        let file = std::env::temp_dir().join(format!("sessionizer-secret-{}", std::process::id()));
        fs::write(&file, [SECRET, b"\n"].concat()).expect("written");
        let key = SecretKey::read(&SecretSource::File(file.clone())).expect("valid");
        assert_eq!(key.0, SecretKey::of(SECRET).expect("valid").0);
        fs::remove_file(&file).expect("removed");
        let of = |path: &str| SecretKey::read(&SecretSource::File(PathBuf::from(path)));
        let Err(Fault::Config(why)) = of("/no/such/secret") else { panic!("there is none") };
        let why = why.to_string();
        assert!(why.contains("/no/such/secret (--cluster-secret-file) cannot be read"), "{why}");
        let Err(Fault::Config(why)) = of("/dev/zero") else { panic!("it never ends") };
        let why = why.to_string();
        assert!(why.contains("is longer than"), "{why}");
    }

    #[test]
    fn each_direction_of_each_pair_has_its_own_key_and_none_shows() {
        let key = SecretKey::of(SECRET).expect("valid");
        let between = |client, server| key.between(client, server).expect("derived");
        assert_eq!(between(1, 0), between(1, 0));
        assert_ne!(between(1, 0), between(0, 1));
        assert_ne!(between(1, 0), between(2, 0));
        assert_eq!(format!("{key:?}"), "(secret)");
        // Computed with plain HMAC, as in RFC 5869: the key is the same on every machine.
        let hex: String = between(1, 0).iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "9bd9857e2bef346c00524f0a9e1af0875ce6521d654af0d40ef3b04ec4e2e2ca");
    }
}
