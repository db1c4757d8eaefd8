//! Secrets that are read from files: `POSTGRES_PASSWORD_FILE` and `KAFKA_WEB_TRAFFIC_SECRET_FILE`, as
//! Docker and Kubernetes mount them, and the password file of libpq that `PGPASSFILE` names.

use std::io::ErrorKind;

use crate::config::{Environment, read_file};
use crate::ledger::url::PostgresUrl;

/// The variable that names a file, and the one that holds the secret itself.
const FILES: [(&str, &str); 2] = [
    ("POSTGRES_PASSWORD_FILE", "POSTGRES_PASSWORD"),
    ("KAFKA_WEB_TRAFFIC_SECRET_FILE", "KAFKA_WEB_TRAFFIC_SECRET"),
];

/// Reads the files that are named. Mistakes are noted in the environment.
pub fn read_secret_files(env: &mut Environment) {
    for (named_by, name) in FILES {
        let Some(file) = env.value(named_by) else { continue };
        if env.secret(name).is_some() {
            env.note(named_by, format!("is set, and so is {name}: only one can be"));
            continue;
        }
        let utf8 = |bytes| String::from_utf8(bytes).map_err(|_| ErrorKind::InvalidData.into());
        match read_file(&file).and_then(utf8) {
            Ok(secret) if secret.trim().is_empty() => {
                env.note(named_by, format!("names the file {file}, which is empty"));
            }
            Ok(secret) => {
                let secret = super::cluster::without_newline(&secret);
                if secret.contains(['\n', '\0']) {
                    let what = format!("names the file {file}, which has more than one line");
                    env.note(named_by, what);
                } else {
                    env.set_secret(name, secret);
                }
            }
            Err(why) if why.kind() == ErrorKind::InvalidData => {
                env.note(named_by, format!("names the file {file}, which is not valid UTF-8"));
            }
            Err(why) => env.note(named_by, format!("{file} cannot be read: {why}")),
        }
    }
}

/// The password that the file of `PGPASSFILE` has for this login, if the variable is set.
///
/// # Errors
/// What is wrong with the file. Like libpq, it is refused if others may read it.
pub fn from_pgpass(
    env: &Environment,
    url: &PostgresUrl,
    user: &str,
) -> Result<Option<String>, String> {
    let Some(file) = env.value("PGPASSFILE") else { return Ok(None) };
    let failed = |why| format!("{file} cannot be read: {why}");
    let bytes = read_file(&file).map_err(failed)?;
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(&file).map_err(failed)?.permissions(),
    );
    if mode & 0o077 != 0 {
        return Err(format!("names {file}, which others may read: chmod 600 {file}"));
    }
    let text = String::from_utf8_lossy(&bytes);
    let found = url.hosts.iter().find_map(|(host, port)| {
        let port = port.to_string();
        let host = if host.starts_with('/') { "localhost" } else { host };
        find(&text, &[host, &port, &url.database, user])
    });
    Ok(found)
}

/// The password of the first line whose four fields match: `host:port:database:user:password`, with
/// `*` for anything and a backslash before a colon or a backslash.
fn find(text: &str, wanted: &[&str; 4]) -> Option<String> {
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut rest = line.strip_suffix('\r').unwrap_or(line);
        for want in wanted {
            let (field, after) = field(rest);
            rest = after?;
            if field != **want && field != "*" {
                return None;
            }
        }
        Some(field(rest).0)
    })
}

/// The first field, without its escapes, and what follows the colon after it.
fn field(text: &str) -> (String, Option<&str>) {
    let mut field = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            ':' => return (field, Some(&text[at + 1..])),
            '\\' => field.extend(chars.next().map(|(_, c)| c)),
            _ => field.push(c),
        }
    }
    (field, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_that_matches_has_the_password() {
        let file = "# db:5432:web:job:comment\n\
                    db:5432:web:other:no\n\
                    db:5433:*:job:port\n\
                    \\:\\:1:5432:web:job:v6\r\n\
                    db:*:web:job:pa\\:ss\\\\w\u{f6}rd:rest\n\
                    *:*:*:*:any";
        let of = |host, port, database, user| find(file, &[host, port, database, user]);
        assert_eq!(of("db", "5432", "web", "job").as_deref(), Some("pa:ss\\w\u{f6}rd"));
        assert_eq!(of("db", "5433", "else", "job").as_deref(), Some("port"));
        assert_eq!(of("::1", "5432", "web", "job").as_deref(), Some("v6"));
        assert_eq!(of("db", "5432", "web", "other").as_deref(), Some("no"));
        assert_eq!(of("far", "1", "x", "y").as_deref(), Some("any"));
        assert_eq!(find("db:5432:web", &["db", "5432", "web", "job"]), None);
        assert_eq!(find("db:5432:web:job", &["db", "5432", "web", "job"]), None);
    }
}
