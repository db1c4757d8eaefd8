//! The format of `--env-file`, which systemd, Docker and shells read the same way.

/// A variable that a file sets.
#[derive(PartialEq, Eq, Debug)]
pub struct Assignment {
    pub number: usize,
    pub name: String,
    pub value: String,
}

/// Parses all lines, or returns the problem of each invalid one. No message repeats any part of a
/// line, which may be a secret.
pub fn parse(bytes: &[u8]) -> Result<Vec<Assignment>, Vec<(usize, &'static str)>> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let (mut lines, mut wrong) = (Vec::new(), Vec::new());
    for (number, line) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
        match std::str::from_utf8(line).map_err(|_| "is not valid UTF-8").and_then(variable) {
            Ok(Some((name, value))) => match complaint(&name, &value, &lines) {
                Some(what) => wrong.push((number, what)),
                None => lines.push(Assignment { number, name, value }),
            },
            Ok(None) => {}
            Err(what) => wrong.push((number, what)),
        }
    }
    if wrong.is_empty() { Ok(lines) } else { Err(wrong) }
}

/// Why a line would have no effect, if it would have none.
fn complaint(name: &str, value: &str, before: &[Assignment]) -> Option<&'static str> {
    match name {
        "SESSIONIZER_ENV_FILE" => Some("names another file: a file cannot include one"),
        "Environment" | "EnvironmentFile" => {
            Some("is a line of a systemd unit: write NAME=VALUE alone")
        }
        _ if value.contains('\0') => Some("holds a NUL"),
        _ if before.iter().any(|known| known.name == name) => {
            Some("sets a variable that an earlier line has set: only one of them can count")
        }
        _ => None,
    }
}

/// Name and value, or `None` for a blank line or a comment.
fn variable(line: &str) -> Result<Option<(String, String)>, &'static str> {
    let line = line.trim();
    if line.is_empty() || line.starts_with(['#', ';']) {
        return Ok(None);
    }
    let line = line.strip_prefix("export ").map_or(line, str::trim_start);
    let (name, value) = line.split_once('=').ok_or("is not of the form NAME=VALUE")?;
    let name = name.trim_end();
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '_';
    if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(legal)
    {
        return Err("does not begin with the name of a variable");
    }
    Ok(Some((name.to_owned(), unquote(value.trim())?)))
}

/// The value without the quotes around it. In double quotes, a backslash escapes a quote, a dollar
/// sign, a backtick or a backslash.
fn unquote(value: &str) -> Result<String, &'static str> {
    let Some(quote) = value.chars().next().filter(|c| ['"', '\''].contains(c)) else {
        return Ok(value.to_owned());
    };
    let mut plain = String::with_capacity(value.len());
    let mut chars = value[1..].chars();
    while let Some(c) = chars.next() {
        if c == quote {
            let rest = chars.as_str().trim_start();
            let ends = rest.is_empty() || rest.starts_with('#');
            return if ends { Ok(plain) } else { Err("continues after the closing quote") };
        }
        let escaped = chars.clone().next().filter(|c| ['"', '$', '`', '\\'].contains(c));
        match escaped.filter(|_| c == '\\' && quote == '"') {
            Some(escaped) => {
                chars.next();
                plain.push(escaped);
            }
            None => plain.push(c),
        }
    }
    Err("has no closing quote")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(text: &str) -> Vec<(String, String)> {
        let lines = parse(text.as_bytes()).expect("well-formed");
        lines.into_iter().map(|line| (line.name, line.value)).collect()
    }

    #[test]
    fn the_format_is_that_of_docker_and_systemd() {
        let text = "\u{feff}# a comment\r\n\r\n; another\nA=1\r\nexport B = two words \n\
                    C=\"in \\\"double\\\" \\n quotes\" # why\nD='in $single \\ quotes'\nE=\n\
                    F=a#b=c\n";
        let want = [
            ("A", "1"),
            ("B", "two words"),
            ("C", "in \"double\" \\n quotes"),
            ("D", "in $single \\ quotes"),
            ("E", ""),
            ("F", "a#b=c"),
        ];
        assert_eq!(values(text), want.map(|(n, v)| (n.to_owned(), v.to_owned())));
    }

    #[test]
    fn what_is_wrong_is_reported_by_its_line_and_not_repeated() {
        let text = b"A=1\nhunter2\n1A=hunter2\nB=\"hunter2\nC='hunter'2\n\xff=hunter2\n=hunter2\n";
        let wrong = parse(text).expect_err("five lines are wrong");
        let lines: Vec<usize> = wrong.iter().map(|(number, _)| *number).collect();
        assert_eq!(lines, [2, 3, 4, 5, 6, 7]);
        assert!(wrong.iter().all(|(_, what)| !what.contains("hunter")), "{wrong:?}");
    }

    #[test]
    fn fuzz_env_file() {
        let seeds: [&[u8]; 2] = [
            b"export A=1\n# no\nPOSTGRES_PASSWORD='hunter2 x'\r\n\nB=\"a\\\"b\"\n",
            b"\xef\xbb\xbfA=\\ \n;x\nB = 2",
        ];
        let pieces: [&[u8]; 7] = [b"\n", b"=", b"'", b"\"", b"\\", b"\xff", b"export "];
        crate::shared::mutate::fuzz(&seeds, &pieces, |bytes| match parse(bytes) {
            Ok(set) => assert!(set.iter().all(|one| !one.name.is_empty())),
            Err(wrong) => assert!(!wrong.is_empty()),
        });
    }

    #[test]
    fn a_line_without_effect_is_refused() {
        for (text, number) in [
            ("A=1\nB=2\nA=3", 3),
            ("SESSIONIZER_ENV_FILE=/other", 1),
            ("Environment=SESSIONIZER_GAP=9m", 1),
            ("A=1\0", 1),
        ] {
            let wrong = parse(text.as_bytes()).expect_err(text);
            assert_eq!((wrong.len(), wrong[0].0), (1, number), "{text}");
        }
    }
}
