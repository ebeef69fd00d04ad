//! Runs the shell sessions of a document, and compares their output with the documented output.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use serde_json::Value;

use crate::harness::{
    address::free_address,
    process::{APPFERRY, clean},
};

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

/// Returns the name and the content of each file that a document shows: a TOML or YAML block with a file name.
fn files(document: &str) -> Vec<(&str, &str)> {
    let blocks = ["```toml ", "```yaml "].into_iter().flat_map(|opening| document.split(opening).skip(1));
    blocks.filter_map(|text| text.split_once("\n```").and_then(|(block, _)| block.split_once('\n'))).collect()
}

/// Returns the local addresses that a document mentions, each with a free address that replaces it.
fn ports(document: &str) -> Vec<(String, String)> {
    const HERE: &str = "127.0.0.1:";
    const DEFAULT: &str = "50051";
    let named =
        document.split(HERE).skip(1).map(|rest| rest.chars().take_while(char::is_ascii_digit).collect::<String>());
    // Includes the default port, which the command line uses if the document states no endpoint.
    let named: BTreeSet<String> = named.filter(|port| !port.is_empty()).chain([DEFAULT.to_owned()]).collect();
    named.iter().map(|port| (format!("{HERE}{port}"), free_address().to_string())).collect()
}

/// Replaces the first address of each pair by the second in a text.
fn replace_ports(text: &str, ports: &[(String, String)]) -> String {
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
        shell.run("exec 2>&1");
        shell
    }

    /// Runs a command and returns its output.
    fn run(&mut self, command: &str) -> String {
        // If the command starts a service in the background, waits until the service responds.
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
            assert!(length > 0, "the shell exited in {command:?}: {printed}");
            if line == "<end>\n" {
                // Removes the line break before the marker, which is not part of the output.
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

/// Replaces ids, times and digests, which differ between runs, by placeholders.
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

/// Returns the UUIDs in a text, in order.
fn uuids(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    words.filter(|word| word.len() == 36 && uuid::Uuid::try_parse(word).is_ok()).map(str::to_owned).collect()
}

/// Returns whether actual and expected output match. Compares JSON by value, errors of `grpcurl` by their messages, and
/// other output exactly.
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

/// Creates a directory with the `appferry` program and a script `grpcurl`, which calls buf. Returns its path.
pub fn tools(directory: &Path) -> PathBuf {
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

/// Runs the sessions of a document, and asserts that they have at least `least` steps.
pub fn run(document: &str, least: usize, directory: &Path, tools: &Path, variables: &[(&str, &str)]) {
    let steps = steps(document);
    assert!(steps.len() >= least, "there are too few steps: {steps:?}");
    let ports = ports(document);
    let (_, address) = ports.iter().find(|(named, _)| named == "127.0.0.1:50051").expect("an endpoint");
    let work = tempfile::tempdir_in(directory).expect("a directory");
    fs::write(work.path().join("appferry.example.toml"), super::EXAMPLE).expect("the example");
    for (name, content) in files(document) {
        fs::write(work.path().join(name), replace_ports(content, &ports)).expect("a file");
    }
    for part in ["deploy", "scripts"] {
        std::os::unix::fs::symlink(Path::new(env!("CARGO_MANIFEST_DIR")).join(part), work.path().join(part))
            .expect("a link");
    }
    let mut shell = Shell::start(work.path(), tools, address, variables);
    // Maps the ids in the document to the ids of this run.
    let mut ids: HashMap<String, String> = HashMap::new();
    for Step { command, prints } in steps {
        let mut actual_command = replace_ports(&command, &ports);
        for (documented, actual) in &ids {
            actual_command = actual_command.replace(documented, actual);
        }
        let back: Vec<_> = ports.iter().map(|(named, free)| (free.clone(), named.clone())).collect();
        let printed = replace_ports(&shell.run(&actual_command), &back);
        assert!(same(&printed, &prints), "$ {command}\nprints\n{printed}\nand the document has\n{prints}");
        ids.extend(uuids(&prints).into_iter().zip(uuids(&printed)));
    }
}
