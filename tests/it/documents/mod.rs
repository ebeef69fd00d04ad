//! Tests of the documentation: the commands of console sessions print the documented output, and the example
//! configuration is valid and states the actual defaults.

mod session;
mod test_names;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use appferry::config::{Audit, Config, Housekeeping, Limits, Server, Worker};
use session::tools;

use crate::harness::{
    database::{Kind, empty},
    ecs::{Ecs, KEY},
    process::{APPFERRY, stdout},
};

const README: &str = include_str!("../../../README.md");
const ALIBABA: &str = include_str!("../../../docs/alibaba-cloud.md");
const DEPLOYING: &str = include_str!("../../../docs/deploying.md");
const SECURITY: &str = include_str!("../../../docs/security.md");
const EXAMPLE: &str = include_str!("../../../appferry.example.toml");

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
        session::run(README, 10, directory.path(), &tools, &[]);
        session::run(SECURITY, 3, directory.path(), &tools, &[]);
    }
}

/// Runs the document's session against an emulation of the provider's API.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_document_about_alibaba_cloud_shows_is_printed() {
    let ecs =
        Ecs::start(&["cn-hangzhou", "cn-shanghai", "eu-central-1", "us-west-1"], Duration::from_millis(300)).await;
    let source = ecs.provider().put("cn-hangzhou", "gromacs-2026.1", &[]);
    assert!(ALIBABA.contains(&format!("--vm-image {source}")), "it is {source}");
    ecs.provider().full.insert("us-west-1".to_owned());
    ecs.provider().keys[0].id = "LTAI5tExample".to_owned();
    let endpoint = format!("http://{}", ecs.address);
    let run = move || {
        let directory = tempfile::tempdir().expect("a directory");
        let tools = tools(directory.path());
        let variables = [
            ("APPFERRY_ALIBABA__ENDPOINT", endpoint.as_str()),
            ("APPFERRY_ALIBABA__POLL_MS", "50"),
            ("COPIER_SECRET", KEY[1]),
        ];
        session::run(ALIBABA, 6, directory.path(), &tools, &variables);
    };
    tokio::task::spawn_blocking(run).await.expect("the output matches");
}

/// Runs the session of the deployment guide, which starts three processes on PostgreSQL with traces and metrics.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_page_about_deploying_shows_is_printed() {
    if !Kind::Postgres.is_available() {
        return;
    }
    let directory = tempfile::tempdir().expect("a directory");
    let database = empty(Kind::Postgres, directory.path()).await;
    let run = move || {
        let tools = tools(directory.path());
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--locked", "--quiet", "--example", "collector"]).current_dir(env!("CARGO_MANIFEST_DIR"));
        stdout(&build.output().expect("cargo runs"));
        let collector = Path::new(APPFERRY).with_file_name("examples").join("collector");
        std::os::unix::fs::symlink(collector, tools.join("collector")).expect("a link");
        session::run(DEPLOYING, 20, directory.path(), &tools, &[("APPFERRY_DATABASE__URL", &database)]);
    };
    tokio::task::spawn_blocking(run).await.expect("the output matches");
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

/// Returns the paths of all documents.
fn documents() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths: Vec<PathBuf> = Vec::new();
    for directory in [root.to_owned(), root.join("docs"), root.join("docs/decisions")] {
        let entries = fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path());
        paths.extend(entries.filter(|path| path.extension().is_some_and(|extension| extension == "md")));
    }
    paths
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
                let content = fs::read_to_string(&path).expect("a document");
                let mut headings = content
                    .lines()
                    .filter(|line| line.starts_with('#'))
                    .map(|line| anchor(line.trim_start_matches('#')));
                assert!(headings.any(|slug| slug == heading), "{target} in {}", document.display());
            }
        }
    }
    assert!(links > 100, "{links}");
}
