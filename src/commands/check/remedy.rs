//! Remedies for messages that a start leaves without one: files that settings name, and connecting
//! to Postgres. Text in, text out.

use crate::ledger::is_answer;

/// What messages say about a file, and what to do about it. The first that fits counts.
const OF_FILES: [(&str, &str); 9] = [
    ("cannot be read", "correct the path, or the file's permissions"),
    ("is a pipe", "name a file, not a pipe"),
    ("is a directory", "name a file, not a directory"),
    ("PEM", "name a file in PEM form, as openssl writes it"),
    ("does not belong to the certificate", "name the key and the certificate that belong together"),
    ("the password is wrong", "correct sslpassword in POSTGRES_URL"),
    ("there is no password for it", "set sslpassword in POSTGRES_URL"),
    ("expired", "name a file that is valid now"),
    ("", "name a file that holds what is needed there"),
];

/// How the remedy begins if the message has one itself.
const OF_SECRETS: &str = "; make one with ";

/// What is wrong with a file that a setting names, and what to do.
pub fn of_file(message: &str) -> (String, String) {
    let split = |at: usize, length: usize| {
        (message[..at].to_owned(), message[at + length..].trim_start().to_owned())
    };
    if let Some(at) = message.find(OF_SECRETS) {
        return split(at, 1);
    }
    // A hostfile that can be read: the message says what it should hold.
    let is_readable = !message.contains("cannot be read");
    if is_readable
        && message.starts_with("the hostfile ")
        && let Some(at) = message.rfind(": ")
    {
        return split(at, 1);
    }
    let known = OF_FILES.iter().find(|(what, _)| message.contains(what));
    (message.to_owned(), known.map_or("", |(_, remedy)| remedy).to_owned())
}

/// Whether a message is about a file that POSTGRES_URL names: nothing was connected to.
pub fn is_of_file(message: &str) -> bool {
    message.starts_with("POSTGRES_URL: ssl")
}

/// What the server says, by its code, when it has no room or no time for a connection.
const OF_ANSWERS: [(&str, &str); 3] = [
    (
        "(53300)",
        "end connections that nobody needs, or raise max_connections of the server, or the \
                 limit of the login (alter role ... connection limit ...)",
    ),
    ("(57P", "wait until the server has started: --wait 60s"),
    ("", "see the log of the server: it was reached, and has answered this"),
];

/// What to do if a connection cannot be made.
pub fn of_connection(message: &str) -> &'static str {
    if !is_answer(message) {
        return "check POSTGRES_URL, that the server is up, and that its port is reachable from here";
    }
    let known = OF_ANSWERS.iter().find(|(code, _)| message.contains(code));
    known.map_or("", |(_, remedy)| remedy)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::hosts;

    #[test]
    fn a_remedy_fits_what_is_wrong_with_a_file() {
        let path = "correct the path, or the file's permissions";
        for (message, what, remedy) in [
            ("POSTGRES_URL: sslcert: /nope cannot be read: no such file", "", path),
            (
                "the hostfile /hf (--hostfile) cannot be read: Permission denied (os error 13)",
                "",
                path,
            ),
            ("--kafka-config ssl.ca.location: /nope cannot be read: No such file", "", path),
            (
                "POSTGRES_URL: sslkey: /k is encrypted, and the password is wrong",
                "",
                "correct sslp",
            ),
            (
                "POSTGRES_URL: sslcert: /k holds no certificate in PEM form",
                "",
                "name a file in PEM",
            ),
            ("POSTGRES_URL: sslrootcert: /k is a directory, not a file", "", "name a file, not"),
            ("POSTGRES_URL: sslkey: /k cannot be used: unsupported", "", "name a file that holds"),
            (
                "the cluster secret /s (--cluster-secret-file) is empty; make one with (umask 077; x)",
                "the cluster secret /s (--cluster-secret-file) is empty",
                "make one with (umask 077; x)",
            ),
            (
                "the hostfile a: b (--hostfile) names several processes, and --processes is 1: give -n",
                "the hostfile a: b (--hostfile) names several processes, and --processes is 1",
                "give -n",
            ),
        ] {
            let (text, said) = of_file(message);
            assert_eq!(text, if what.is_empty() { message } else { what });
            assert!(said.starts_with(remedy), "{message}: {said}");
        }
    }

    #[test]
    fn every_error_of_a_hostfile_has_its_remedy() {
        for (text, processes, remedy) in [
            ("a:1\na:1", 2, "each process needs an address of its own"),
            ("a:1", 2, "it needs a line host:port for each process, process 0 first"),
            ("", 2, "it needs a line host:port for each process, process 0 first"),
            ("a:1\nb: c", 2, "it must be host:port, or [IPv6]:port"),
        ] {
            let what = hosts::parse(text, processes).expect_err(text);
            let (what, said) = of_file(&format!("the hostfile hf {what}"));
            assert!(!what.contains(remedy), "{what}");
            assert_eq!(said, remedy, "{what}");
        }
    }

    #[test]
    fn a_server_that_has_answered_is_reachable() {
        let unreachable = "check POSTGRES_URL, that the server is up";
        for (message, remedy) in [
            ("connecting: Connection refused (os error 111)", unreachable),
            ("connecting: no answer for 5 s", unreachable),
            ("connecting: sorry, too many clients already (53300)", "end connections"),
            ("connecting: the database system is starting up (57P03)", "wait until"),
            ("Postgres refuses: connecting: internal error (XX000)", "see the log of the server"),
        ] {
            assert!(of_connection(message).starts_with(remedy), "{message}");
        }
        assert!(is_of_file("POSTGRES_URL: sslcert: /nope cannot be read: no such file"));
    }
}
