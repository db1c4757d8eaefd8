//! The commands in the documents: those that can run against the servers of the tests do; before
//! the others, a comment says why they cannot.
//!
//! A block of `sh` or `sql` is run unless the line before it is `<!-- not run here: REASON -->`, or
//! `<!-- run by FILE -->`, where FILE is a test or script that names the document.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::oracle::event;
use crate::world::World;

/// What a block of `sh` may call here: nothing that changes this machine.
const HARMLESS: [&str; 8] =
    ["cargo", "export", "head", "jq", "pg_dump", "psql", "sessionizer", "sort"];
/// The commands that ask a running job: no job runs during a block.
const ASK_A_JOB: [&str; 3] = ["health", "open", "status"];

/// How long the job, or a producer without an end, runs in a block.
const SECONDS: u32 = 5;

struct Block {
    document: String,
    line: usize,
    language: String,
    mark: Option<String>,
    code: String,
}

impl Block {
    fn place(&self) -> String {
        format!("{}:{}", self.document, self.line)
    }
}

/// The code of the blocks of a section of docs/OPERATIONS.md that begin like `opening`.
pub fn recipes(section: &str, opening: &str) -> Vec<&'static str> {
    let text = include_str!("../../docs/OPERATIONS.md");
    let (_, section) = text.split_once(&format!("\n## {section}\n")).expect("it is there");
    let section = section.split("\n## ").next().expect("it has an end");
    let blocks = section.split(opening).skip(1);
    let blocks = blocks.map(|block| block.split("\n```").next().expect("it ends"));
    blocks.map(|block| block.split_once('\n').expect("a language").1).collect()
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The README first: its commands make the job that others ask about.
fn documents() -> Vec<String> {
    let mut names = vec!["CONTRIBUTING.md".to_owned(), "deploy/README.md".to_owned()];
    for entry in std::fs::read_dir(root().join("docs")).expect("docs/ is there") {
        let name = entry.expect("readable").file_name().into_string().expect("a name");
        if name.ends_with(".md") {
            names.push(format!("docs/{name}"));
        }
    }
    names.sort();
    names.insert(0, "README.md".to_owned());
    names
}

/// All fenced blocks.
fn blocks() -> Vec<Block> {
    let mut blocks = Vec::new();
    for document in documents() {
        let text = std::fs::read_to_string(root().join(&document)).expect("readable");
        let mut open: Option<Block> = None;
        let mut before = "";
        for (number, line) in text.lines().enumerate() {
            match (&mut open, line.trim_start().strip_prefix("```")) {
                (None, Some(language)) => {
                    let mark = before.trim().strip_prefix("<!-- ");
                    let mark = mark.and_then(|mark| mark.strip_suffix(" -->"));
                    open = Some(Block {
                        document: document.clone(),
                        line: number + 1,
                        language: language.to_owned(),
                        mark: mark.map(str::to_owned),
                        code: String::new(),
                    });
                }
                (Some(_), Some(_)) => blocks.extend(open.take()),
                (Some(block), None) => {
                    block.code.push_str(line);
                    block.code.push('\n');
                }
                (None, None) => {}
            }
            before = line;
        }
        assert!(open.is_none(), "{document}: a block does not end");
    }
    blocks
}

/// Whether a block is to be run here; its mark must be one that says why not.
fn runs_here(block: &Block) -> bool {
    let Some(mark) = &block.mark else { return true };
    if let Some(reason) = mark.strip_prefix("not run here: ") {
        assert!(reason.len() >= 10, "{}: why not?", block.place());
        return false;
    }
    let Some(file) = mark.strip_prefix("run by ") else { return true };
    let text = std::fs::read_to_string(root().join(file.trim()));
    let text = text.unwrap_or_else(|why| panic!("{}: {file}: {why}", block.place()));
    let name = block.document.rsplit('/').next().expect("a name");
    assert!(text.contains(name), "{}: {file} does not name the document", block.place());
    false
}

/// The first two words of each command of a block of `sh`, without the variables before them.
fn programs(code: &str) -> Vec<(String, String)> {
    let joined = code.replace("\\\n", " ");
    let lines = joined.lines().map(|line| line.split(" #").next().unwrap_or(line));
    let commands = lines.flat_map(|line| line.split('|')).filter_map(|command| {
        let mut words = command.split_whitespace().skip_while(|word| word.contains('='));
        let first = words.next()?.to_owned();
        Some((first, words.next().unwrap_or_default().to_owned()))
    });
    commands.collect()
}

/// A directory with the files that the commands expect.
struct Place {
    directory: PathBuf,
}

impl Place {
    fn new(world: &World) -> Place {
        let directory = std::env::temp_dir().join(&world.name);
        std::fs::create_dir_all(directory.join("bin")).expect("a directory");
        let place = Place { directory };
        let program = env!("CARGO_BIN_EXE_sessionizer");
        place.script(
            "sessionizer",
            &format!(
                "exec timeout --foreground --preserve-status -s TERM {SECONDS} '{program}' \"$@\""
            ),
        );
        place.script(
            "cargo",
            "[ \"$1 $2 $3\" = 'run --release --' ] || { echo \"not here: cargo $*\" >&2; exit 1; }\n\
             shift 3\nexec sessionizer \"$@\"",
        );
        let log = std::fs::File::create(place.directory.join("access.log.gz")).expect("a file");
        let mut log = flate2::write::GzEncoder::new(log, flate2::Compression::fast());
        let line =
            "192.0.2.7 - - [05/Mar/2024:10:00:00 +0000] \"GET / HTTP/1.1\" 200 5 \"-\" \"-\"";
        writeln!(log, "{line}").and_then(|()| log.finish().map(drop)).expect("written");
        place
    }

    fn script(&self, name: &str, text: &str) {
        let path = self.directory.join("bin").join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a script");
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(&path, mode).expect("it can be executed");
    }

    /// Runs a command in it, with an environment that leads to the servers of the tests.
    fn run(&self, world: &World, program: &str, args: &[&str]) -> Output {
        let path = std::env::var("PATH").expect("there is a PATH");
        let mut command = Command::new(program);
        command.args(args).current_dir(&self.directory).env_clear();
        let url = format!("jdbc:postgresql://{}/{}", world.server, world.database);
        let (host, port) = world.server.rsplit_once(':').expect("host:port");
        for (name, value) in [
            ("PATH", format!("{}:{path}", self.directory.join("bin").display()).as_str()),
            ("HOME", self.directory.to_str().expect("text")),
            ("KAFKA_URL", &world.kafka),
            ("KAFKA_TOPIC", &world.name),
            ("KAFKA_GROUP", "sessionizer"),
            ("POSTGRES_URL", &url),
            ("POSTGRES_USER", &world.user),
            ("POSTGRES_PASSWORD", &world.password),
            ("SESSIONIZER_HTTP", "none"),
            ("PGHOST", host),
            ("PGPORT", port),
            ("PGUSER", &world.user),
            ("PGPASSWORD", &world.password),
        ] {
            command.env(name, value);
        }
        command.output().unwrap_or_else(|why| panic!("{program}: {why}"))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

#[test]
fn the_commands_in_the_documents_run() {
    let world = World::new("documents");
    world.create_topic(1);
    world.send_events(0, &[event("10.0.0.1", "www.example.org", 1_709_632_800_000)]);
    world.run_to_end(&["--job", "sessionizer"]);
    let place = Place::new(&world);
    let (mut ran, mut failed) = (0, Vec::new());
    for block in blocks() {
        if !["sh", "sql"].contains(&block.language.as_str()) || !runs_here(&block) {
            continue;
        }
        if block.language == "sh" {
            let programs = programs(&block.code);
            if let Some((name, _)) = programs.iter().find(|(p, _)| !HARMLESS.contains(&p.as_str()))
            {
                failed.push(format!("{}: {name} is not for every machine", block.place()));
                continue;
            }
            if programs.iter().any(|(_, second)| ASK_A_JOB.contains(&second.as_str())) {
                continue;
            }
        }
        // Replace the names in the documents, which are examples.
        let code = block
            .code
            .replace("broker-1:9092,broker-2:9092", &world.kafka)
            .replace("db.example:5432/analytics", &format!("{}/{}", world.server, world.database))
            .replace(" analytics", &format!(" {}", world.database))
            .replace("=web-events", &format!("={}", world.name))
            .replace("--number 1000000", "--number 1000");
        let database = format!("postgres://{}/{}", world.server, world.database);
        let output = match block.language.as_str() {
            "sh" => place.run(&world, "bash", &["-euc", &code]),
            _ => {
                place.run(&world, "psql", &["-qX", "-v", "ON_ERROR_STOP=1", "-c", &code, &database])
            }
        };
        ran += 1;
        if !output.status.success() {
            let log = String::from_utf8_lossy(&output.stderr).into_owned();
            failed.push(format!("{}: {}\n{}\n{log}", block.place(), output.status, block.code));
        }
    }
    assert!(failed.is_empty(), "run it, or say why not (tests/real/documents.rs):\n{failed:#?}");
    assert!(ran >= 5, "only {ran} blocks were run");
}

/// The arguments of each call of the program in a block, with continued lines joined.
fn calls(code: &str) -> Vec<String> {
    let joined = code.replace("\\\n", " ");
    let of_program = |line: &str| {
        let line = line.split(" #").next().unwrap_or(line).trim();
        let words: Vec<&str> = line.split_whitespace().collect();
        // Variables may come first.
        let start = words.iter().position(|word| !word.contains('='))?;
        let rest = words[start..].join(" ");
        let args = rest.strip_prefix("cargo run --release -- ");
        let args = args.or_else(|| rest.strip_prefix("sessionizer "))?;
        let end = args.find(['|', '>', '&', ';']).unwrap_or(args.len());
        Some(args[..end].trim().to_owned())
    };
    joined.lines().filter_map(of_program).collect()
}

#[test]
fn the_flags_in_the_documents_exist() {
    let mut tried = 0;
    for block in blocks().iter().filter(|block| block.language == "sh") {
        for args in calls(&block.code) {
            let mut words: Vec<&str> = args.split_whitespace().collect();
            words.push("--help");
            let mut command = Command::new(env!("CARGO_BIN_EXE_sessionizer"));
            let output = command.args(&words).env_clear().output().expect("the program was built");
            let log = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "{}: sessionizer {args}\n{log}", block.place());
            tried += 1;
        }
    }
    assert!(tried >= 6, "only {tried} calls were found");
}
