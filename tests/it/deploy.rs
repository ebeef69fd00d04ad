//! Validates `deploy/` and the Dockerfile with the tools for their formats, and the configurations in them with
//! appferry itself.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use appferry::config::Config;

use crate::harness::process::{APPFERRY, stdout};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs a tool that `scripts/tools` installs.
fn tool(name: &str, arguments: &[&str]) -> Output {
    let installed = root().join(".tools/bin").join(name);
    let program = if installed.exists() { installed } else { PathBuf::from(name) };
    Command::new(program).args(arguments).current_dir(root()).output().expect("it is installed: source scripts/tools")
}

fn refuses(output: &Output, what: &str) {
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(!output.status.success(), "{what} is not found: {said}");
}

#[test]
fn the_dockerfile_is_in_order() {
    stdout(&tool("hadolint", &["Dockerfile"]));
    let directory = tempfile::tempdir().expect("a directory");
    let bad = directory.path().join("Dockerfile");
    fs::write(&bad, "FROM debian\nRUN cd /tmp && apt-get install curl\n").expect("it is written");
    refuses(&tool("hadolint", &[bad.to_str().expect("text")]), "an untagged base");
}

#[test]
fn the_compose_file_is_one() {
    let check = |file: &str| tool("compose", &["-no-interpolation", file]);
    let text = stdout(&check("deploy/compose.yaml"));
    for service in ["postgres", "migrate", "serve-1", "serve-2", "worker", "jaeger", "prometheus"] {
        assert!(text.contains(&format!("\n    {service}:\n")), "{service} is missing");
    }
    let directory = tempfile::tempdir().expect("a directory");
    let bad = directory.path().join("compose.yaml");
    let file = fs::read_to_string(root().join("deploy/compose.yaml")).expect("the file");
    fs::write(&bad, file.replace("read_only: true", "readonly: true")).expect("it is written");
    refuses(&check(bad.to_str().expect("text")), "a misspelt key");
}

#[test]
fn the_manifests_are_what_kubernetes_takes() {
    for file in ["config", "migrate", "network", "serve", "worker"] {
        stdout(&tool("kubernetes-validate", &["--strict", &format!("deploy/kubernetes/{file}.yaml")]));
    }
    let kustomization = fs::read_to_string(root().join("deploy/kubernetes/kustomization.yaml")).expect("the file");
    for entry in fs::read_dir(root().join("deploy/kubernetes")).expect("the directory") {
        let name = entry.expect("an entry").file_name().into_string().expect("text");
        assert!(name == "kustomization.yaml" || kustomization.contains(&format!("- {name}\n")), "{name} is left out");
    }
}

#[test]
fn the_units_are_what_systemd_takes_and_leave_little_open() {
    let directory = tempfile::tempdir().expect("a directory");
    for role in ["serve", "worker"] {
        let name = format!("appferry-{role}.service");
        let text = fs::read_to_string(root().join("deploy/systemd").join(&name)).expect("the unit");
        let unit = directory.path().join(&name);
        // systemd-analyze requires the program to exist.
        fs::write(&unit, text.replace("/usr/local/bin/appferry", APPFERRY)).expect("it is written");
        let unit = unit.to_str().expect("text");
        let verified = tool("systemd-analyze", &["verify", "--man=no", unit]);
        assert_eq!(
            (stdout(&verified).as_str(), String::from_utf8_lossy(&verified.stderr).as_ref()),
            ("", ""),
            "{name}"
        );
        // The exposure level ranges from 0.0 to 10.0.
        stdout(&tool("systemd-analyze", &["security", "--offline=true", "--threshold=20", unit]));
    }
}

#[test]
fn the_configurations_are_such() {
    let compose = fs::read_to_string(root().join("deploy/compose/appferry.toml")).expect("the file");
    Config::parse(&compose).expect("the configuration of the compose file");
    let manifest = fs::read_to_string(root().join("deploy/kubernetes/config.yaml")).expect("the file");
    let (_, text) = manifest.split_once("appferry.toml: |\n").expect("the configuration");
    Config::parse(text).expect("the configuration of the manifests");
}

/// Returns the first text between `before` and `after`.
fn between<'a>(text: &'a str, before: &str, after: &str) -> &'a str {
    let (_, rest) = text.split_once(before).unwrap_or_else(|| panic!("{before} is missing"));
    rest.split_once(after).unwrap_or_else(|| panic!("{after} is missing")).0
}

#[test]
fn the_image_is_built_with_a_toolchain_that_is_new_enough() {
    let pinned = |path: &str| {
        let text = fs::read_to_string(root().join(path)).expect("the file");
        between(&text, "docker.io/library/rust:", "-slim").to_owned()
    };
    let version = pinned("Dockerfile");
    assert_eq!(pinned("scripts/image"), version);
    let numbers =
        |version: &str| version.split('.').map(|number| number.parse::<u32>().expect("a number")).collect::<Vec<_>>();
    assert!(numbers(&version) >= numbers(env!("CARGO_PKG_RUST_VERSION")), "{version}");
}

#[test]
fn the_version_is_the_same_everywhere() {
    const VERSION: &str = env!("CARGO_PKG_VERSION");
    let changelog = fs::read_to_string(root().join("CHANGELOG.md")).expect("the changelog");
    let newest = changelog.lines().filter_map(|line| line.strip_prefix("## ")).find(|title| *title != "Unreleased");
    assert_eq!(newest.and_then(|title| title.split(" - ").next()), Some(VERSION), "CHANGELOG.md");
    let mut images = 0;
    for entry in fs::read_dir(root().join("deploy/kubernetes")).expect("the directory") {
        let text = fs::read_to_string(entry.expect("an entry").path()).expect("a manifest");
        for image in text.lines().filter_map(|line| line.trim().strip_prefix("image: ")) {
            images += 1;
            assert_eq!(image, format!("appferry:{VERSION}"));
        }
    }
    assert_eq!(images, 3);
}
