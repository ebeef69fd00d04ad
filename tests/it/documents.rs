//! Tests of the documentation: the commands in its sessions are executed and must print what is shown, and the example
//! configuration is valid and states the actual defaults.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use appferry::config::{Audit, Config, Housekeeping, Limits, Server, Worker};
use serde_json::Value;

use crate::harness::{
    address::free_address,
    database::{Kind, empty},
    ecs::{Ecs, KEY},
    process::{APPFERRY, clean, stdout},
};

const README: &str = include_str!("../../README.md");
const ALIBABA: &str = include_str!("../../docs/alibaba-cloud.md");
const DEPLOYING: &str = include_str!("../../docs/deploying.md");
const SECURITY: &str = include_str!("../../docs/security.md");
const EXAMPLE: &str = include_str!("../../appferry.example.toml");

/// A command of a session and its expected output.
#[derive(Debug)]
struct Step {
    command: String,
    prints: String,
}

/// Returns the commands of all blocks marked `console`, in order.
fn steps(document: &str) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    let mut inside = false;
    for line in document.lines() {
        if line.starts_with("```") {
            inside = line == "```console";
        } else if inside && let Some(command) = line.strip_prefix("$ ") {
            steps.push(Step { command: command.to_owned(), prints: String::new() });
        } else if inside && let Some(step) = steps.last_mut() {
            match line.strip_prefix("> ") {
                Some(more) if step.command.ends_with('\\') => step.command = format!("{}\n{more}", step.command),
                _ => step.prints = format!("{}{line}\n", step.prints),
            }
        }
    }
    steps
}

/// Returns the named files that a document shows: TOML and YAML blocks with a file name.
fn files(document: &str) -> Vec<(&str, &str)> {
    let blocks = ["```toml ", "```yaml "].into_iter().flat_map(|opening| document.split(opening).skip(1));
    blocks.filter_map(|text| text.split_once("\n```").and_then(|(block, _)| block.split_once('\n'))).collect()
}

/// Returns the local ports that a document mentions, each with a free port that replaces it.
fn ports(document: &str) -> Vec<(String, String)> {
    const HERE: &str = "127.0.0.1:";
    const DEFAULT: &str = "50051";
    let named =
        document.split(HERE).skip(1).map(|rest| rest.chars().take_while(char::is_ascii_digit).collect::<String>());
    // The command line uses the default port if none is given.
    let named: BTreeSet<String> = named.filter(|port| !port.is_empty()).chain([DEFAULT.to_owned()]).collect();
    named.iter().map(|port| (format!("{HERE}{port}"), free_address().to_string())).collect()
}

fn moved(text: &str, ports: &[(String, String)]) -> String {
    ports.iter().fold(text.to_owned(), |text, (named, free)| text.replace(named, free))
}

/// A shell that runs the commands of a session.
struct Shell {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Shell {
    fn start(directory: &Path, tools: &Path, address: &str, variables: &[(&str, &str)]) -> Self {
        let mut command = Command::new("bash");
        clean(&mut command).args(["--noprofile", "--norc"]).current_dir(directory);
        let path = std::env::var("PATH").expect("a path");
        command.env("PATH", format!("{}:{path}", tools.display()));
        command.env("APPFERRY_SERVER__LISTEN", address).env("APPFERRY_ENDPOINT", format!("http://{address}"));
        command.envs(variables.iter().copied());
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("bash");
        let (input, output) = (child.stdin.take().expect("input"), child.stdout.take().expect("output"));
        let mut shell = Self { child, input, output: BufReader::new(output) };
        shell.type_in("exec 2>&1");
        shell
    }

    /// Runs a command and returns its output.
    fn type_in(&mut self, command: &str) -> String {
        // Waits until a service that was started in the background responds.
        let wait = if command.starts_with("appferry serve") && command.ends_with('&') {
            "\nuntil appferry health >/dev/null 2>&1; do sleep 0.05; done"
        } else {
            ""
        };
        writeln!(self.input, "{command}{wait}\necho; echo '<end>'").expect("it is typed");
        let mut printed = String::new();
        loop {
            let mut line = String::new();
            let length = self.output.read_line(&mut line).expect("it prints");
            assert!(length > 0, "the shell ended in {command:?}: {printed}");
            if line == "<end>\n" {
                // The line break before the marker does not belong to the output.
                printed.pop();
                return printed;
            }
            printed += &line;
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = writeln!(self.input, "kill $(jobs -p); exit");
        let _ = self.child.wait();
    }
}

/// Replaces everything that differs between runs by placeholders.
fn normalized(text: &str) -> String {
    let uuid = |word: &str| uuid::Uuid::try_parse(word).is_ok() && word.len() == 36;
    let time = |word: &str| word.len() > 19 && word.as_bytes()[10] == b'T' && word.ends_with('Z');
    let mut normal = String::new();
    let mut word = String::new();
    for character in text.chars().chain(['\0']) {
        if character.is_ascii_alphanumeric() || "-:.".contains(character) {
            word.push(character);
            continue;
        }
        normal += if uuid(&word) {
            "ID"
        } else if time(&word) {
            "TIME"
        } else if word.starts_with("sha256:") {
            "DIGEST"
        } else {
            &word
        };
        word.clear();
        normal.push(character);
    }
    normal
}

fn uuids(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    words.filter(|word| word.len() == 36 && uuid::Uuid::try_parse(word).is_ok()).map(str::to_owned).collect()
}

/// Compares actual with expected output: JSON by value; an error of grpcurl by its message; everything else exactly.
fn same(printed: &str, expected: &str) -> bool {
    let json = |text: &str| -> Option<Vec<Value>> {
        serde_json::Deserializer::from_str(text).into_iter().collect::<Result<_, _>>().ok()
    };
    let (printed, expected) = (normalized(printed), normalized(expected));
    if let Some(message) = expected.lines().find_map(|line| line.trim().strip_prefix("Message: ")) {
        return printed.contains(message);
    }
    match (json(&printed), json(&expected)) {
        (Some(printed), Some(expected)) if !expected.is_empty() => printed == expected,
        _ => printed.split_whitespace().eq(expected.split_whitespace()),
    }
}

/// Creates a directory with the program and a `grpcurl` that is implemented with buf.
fn tools(directory: &Path) -> PathBuf {
    let tools = directory.join("tools");
    fs::create_dir(&tools).expect("a directory");
    std::os::unix::fs::symlink(APPFERRY, tools.join("appferry")).expect("a link");
    let stand_in = r#"#!/usr/bin/env bash
# Does with buf what `grpcurl -plaintext [-H HEADER] [-d DATA] ADDRESS METHOD` does.
set -eu
arguments=()
while [ "$#" -gt 2 ]; do
    case $1 in
    -plaintext) shift ;;
    *) arguments+=("$1" "$2"); shift 2 ;;
    esac
done
if [ "$2" = list ]; then
    exec buf curl --protocol grpc --http2-prior-knowledge --list-services "http://$1"
fi
exec buf curl --protocol grpc --http2-prior-knowledge "${arguments[@]}" "http://$1/$2"
"#;
    let path = tools.join("grpcurl");
    fs::write(&path, stand_in).expect("it is written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it can be run");
    tools
}

#[test]
fn what_the_documents_show_is_printed() {
    assert!(Command::new("buf").arg("--version").output().is_ok(), "buf is missing: scripts/test puts it on the path");
    let installed = Command::new("grpcurl").arg("-version").output().is_ok();
    for stand_in in if installed { &[true, false][..] } else { &[true] } {
        let directory = tempfile::tempdir().expect("a directory");
        let tools = tools(directory.path());
        if !stand_in {
            fs::remove_file(tools.join("grpcurl")).expect("it was there");
        }
        type_in(README, 10, directory.path(), &tools, &[]);
        type_in(SECURITY, 3, directory.path(), &tools, &[]);
    }
}

/// Runs against an emulation of the provider's documented API.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_document_about_alibaba_cloud_shows_is_printed() {
    let ecs =
        Ecs::start(&["cn-hangzhou", "cn-shanghai", "eu-central-1", "us-west-1"], Duration::from_millis(300)).await;
    let source = ecs.world().put("cn-hangzhou", "gromacs-2026.1", &[]);
    assert!(ALIBABA.contains(&format!("--vm-image {source}")), "it is {source}");
    ecs.world().full.insert("us-west-1".to_owned());
    ecs.world().keys[0].id = "LTAI5tExample".to_owned();
    let endpoint = format!("http://{}", ecs.address);
    let type_in = move || {
        let directory = tempfile::tempdir().expect("a directory");
        let tools = tools(directory.path());
        let variables = [
            ("APPFERRY_ALIBABA__ENDPOINT", endpoint.as_str()),
            ("APPFERRY_ALIBABA__POLL_MS", "50"),
            ("COPIER_SECRET", KEY[1]),
        ];
        type_in(ALIBABA, 6, directory.path(), &tools, &variables);
    };
    tokio::task::spawn_blocking(type_in).await.expect("it is as it stands there");
}

/// The deployment guide: three processes on PostgreSQL, with traces and metrics.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_page_about_deploying_shows_is_printed() {
    let directory = tempfile::tempdir().expect("a directory");
    let database = empty(Kind::Postgres, directory.path()).await;
    let type_in = move || {
        let tools = tools(directory.path());
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--locked", "--quiet", "--example", "collector"]).current_dir(env!("CARGO_MANIFEST_DIR"));
        stdout(&build.output().expect("cargo runs"));
        let collector = Path::new(APPFERRY).with_file_name("examples").join("collector");
        std::os::unix::fs::symlink(collector, tools.join("collector")).expect("a link");
        type_in(DEPLOYING, 20, directory.path(), &tools, &[("APPFERRY_DATABASE__URL", &database)]);
    };
    tokio::task::spawn_blocking(type_in).await.expect("it is as it stands there");
}

/// Runs the sessions of a document, which must have at least `least` steps.
fn type_in(document: &str, least: usize, directory: &Path, tools: &Path, variables: &[(&str, &str)]) {
    let steps = steps(document);
    assert!(steps.len() >= least, "the sessions have gone: {steps:?}");
    let ports = ports(document);
    let (_, address) = ports.iter().find(|(named, _)| named == "127.0.0.1:50051").expect("where the service is");
    let work = tempfile::tempdir_in(directory).expect("a directory");
    fs::write(work.path().join("appferry.example.toml"), EXAMPLE).expect("the example");
    for (name, content) in files(document) {
        fs::write(work.path().join(name), moved(content, &ports)).expect("a file");
    }
    for part in ["deploy", "scripts"] {
        std::os::unix::fs::symlink(Path::new(env!("CARGO_MANIFEST_DIR")).join(part), work.path().join(part))
            .expect("a link");
    }
    let mut shell = Shell::start(work.path(), tools, address, variables);
    // Maps the ids in the document to the ids of this run.
    let mut ids: HashMap<String, String> = HashMap::new();
    for Step { command, prints } in steps {
        let mut typed = moved(&command, &ports);
        for (documented, actual) in &ids {
            typed = typed.replace(documented, actual);
        }
        let back: Vec<_> = ports.iter().map(|(named, free)| (free.clone(), named.clone())).collect();
        let printed = moved(&shell.type_in(&typed), &back);
        assert!(same(&printed, &prints), "$ {command}\nprints\n{printed}\nand the document has\n{prints}");
        ids.extend(uuids(&prints).into_iter().zip(uuids(&printed)));
    }
}

#[test]
fn the_example_is_a_configuration_with_the_defaults_that_it_claims() {
    let config = Config::parse(EXAMPLE).expect("it is one");
    assert_eq!(config.server, Server::default());
    assert_eq!(config.worker, Worker::default());
    assert_eq!(config.housekeeping, Housekeeping::default());
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.audit, Audit::default());
    let least = EXAMPLE.lines().filter(|line| !line.starts_with("connections") && !line.starts_with("timeout_ms"));
    let least = Config::parse(&least.collect::<Vec<_>>().join("\n")).expect("it is one");
    let given = |config: &Config| (config.database.connections, config.database.timeout_ms);
    assert_eq!(given(&config), given(&least));
    assert_eq!(config.region[0].keep_free_bytes, 0);
}

/// Returns all documents.
fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found: Vec<PathBuf> = Vec::new();
    for directory in [root.to_owned(), root.join("docs"), root.join("docs/decisions")] {
        let entries = fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path());
        found.extend(entries.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    }
    found
}

/// Returns the anchor that GitHub generates for a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    kept.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn every_link_leads_somewhere() {
    let mut links = 0;
    for document in documents() {
        let text = fs::read_to_string(&document).expect("a document");
        for (target, _) in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')) {
            if target.contains("://") {
                continue;
            }
            links += 1;
            let (path, heading) = target.split_once('#').unwrap_or((target, ""));
            let path = if path.is_empty() { document.clone() } else { document.with_file_name(path) };
            assert!(path.exists(), "{target} in {}", document.display());
            if !heading.is_empty() {
                let there = fs::read_to_string(&path).expect("a document");
                let mut headings =
                    there.lines().filter(|line| line.starts_with('#')).map(|line| anchor(line.trim_start_matches('#')));
                assert!(headings.any(|there| there == heading), "{target} in {}", document.display());
            }
        }
    }
    assert!(links > 100, "{links}");
}
