//! The file `THIRD_PARTY`: what is in the program, under which licence, and the texts of those.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;

use crate::failure::{Failure, Result, While, fail};
use crate::package::crates::{Part, Parts};
use crate::root;

const FILE: &str = "THIRD_PARTY";
/// What makes the file.
const COMMAND: &str = "scripts/package --third-party";

/// Writes the file, or with `check` compares it with what it should be.
pub fn third_party(check: bool) -> Result<()> {
    let path = root().join(FILE);
    let text = text(&Parts::read()?)?;
    if !check {
        return fs::write(&path, text).during(path.display());
    }
    let found = fs::read_to_string(&path).during(path.display())?;
    let Some((line, (is, should))) = first_difference(&found, &text) else { return Ok(()) };
    fail(format!(
        "{FILE} is out of date: line {line} is {is:?} and should be {should:?}. Make it again: \
         {COMMAND}"
    ))
}

fn first_difference<'a>(is: &'a str, should: &'a str) -> Option<(usize, (&'a str, &'a str))> {
    let longest = is.lines().count().max(should.lines().count());
    let pad = |text: &'a str| text.lines().chain(std::iter::repeat("")).take(longest);
    let mut lines = (1..).zip(pad(is).zip(pad(should)));
    lines.find(|(_, (is, should))| is != should)
}

fn text(parts: &Parts) -> Result<String> {
    let mut text = format!(
        "What others have written and sessionizer contains, in the program as it is packaged.
Made by `{COMMAND}`; do not edit.

"
    );
    let width = parts.all().map(|part| part.name.len() + part.version.len() + 1).max();
    let width = width.unwrap_or_default();
    for (title, list) in
        [("C libraries, and what the page contains", &parts.libraries), ("Crates", &parts.crates)]
    {
        let _ = writeln!(text, "{title}:\n");
        for part in list {
            let _ = writeln!(text, "  {:width$}  {}", named(part), part.license);
        }
        text.push('\n');
    }
    text.push_str(
        "librdkafka contains parts with licences of their own, among them lz4, snappy, crc32c and\n\
         cJSON; its text below has them all.\n",
    );
    let bare = parts.all().filter(|part| part.texts.is_empty()).map(named).collect::<Vec<_>>();
    if !bare.is_empty() {
        let _ = write!(text, "\nThese crates come without the text of their licence:\n\n");
        let _ = writeln!(text, "{}", wrapped(&bare));
    }
    for (license, names) in texts(parts)? {
        let rule = "-".repeat(78);
        let names = wrapped(&names);
        let _ = writeln!(text, "\n{rule}\n{names}\n{rule}\n\n{license}");
    }
    Ok(text)
}

fn named(part: &Part) -> String {
    format!("{} {}", part.name, part.version)
}

/// Each text once, with the names of all that have it, in the order of the first.
fn texts(parts: &Parts) -> Result<Vec<(String, Vec<String>)>> {
    let mut order: Vec<(String, Vec<String>)> = Vec::new();
    let mut known: BTreeMap<String, usize> = BTreeMap::new();
    let all = parts.libraries.iter().chain(&parts.crates);
    for part in all {
        for file in &part.texts {
            let bytes = fs::read(file).during(file.display())?;
            let lines = String::from_utf8_lossy(&bytes);
            let lines: Vec<&str> = lines.lines().map(str::trim_end).collect();
            let text = lines.join("\n").trim_matches('\n').to_owned();
            // The same words in other lines are the same text.
            let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
            let at = *known.entry(words).or_insert(order.len());
            if at == order.len() {
                order.push((text, Vec::new()));
            }
            let names = &mut order[at].1;
            if !names.contains(&named(part)) {
                names.push(named(part));
            }
        }
    }
    match order.is_empty() {
        true => Err(Failure("no licence was found".to_owned())),
        false => Ok(order),
    }
}

fn wrapped(names: &[String]) -> String {
    let (mut text, mut length) = (String::new(), 0);
    for (i, name) in names.iter().enumerate() {
        let comma = if i + 1 == names.len() { "" } else { "," };
        if length > 0 && length + name.len() + 2 > 78 {
            text.push('\n');
            length = 0;
        } else if length > 0 {
            text.push(' ');
            length += 1;
        }
        let _ = write!(text, "{name}{comma}");
        length += name.len() + comma.len();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_out_of_date_is_told_by_its_first_line_that_differs() {
        assert_eq!(first_difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(first_difference("a\nb 1\n", "a\nb 2\n"), Some((2, ("b 1", "b 2"))));
        assert_eq!(first_difference("a\n", "a\nb\n"), Some((2, ("", "b"))));
    }
}
