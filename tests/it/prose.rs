//! The prose linter finds sentences that its rules forbid, in documents, in the contract and in code comments.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use crate::harness::process::stdout;

/// Runs `scripts/prose` on a file with this name and content.
fn lint(name: &str, text: &str) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join(name);
    fs::write(&file, text).expect("it is written");
    let path = format!("{}:{}", root.join(".tools/bin").display(), std::env::var("PATH").unwrap_or_default());
    Command::new(root.join("scripts/prose")).arg(&file).env("PATH", path).output().expect("bash runs")
}

#[test]
fn the_prose_linter_finds_what_its_rules_forbid() {
    for (name, text, rule) in [
        ("words.md", "# Title\n\nNobody waits for the lock.\n", "Appferry.Words"),
        ("idioms.md", "# Title\n\nThe caller is told the reason.\n", "Appferry.Idioms"),
        ("what.md", "# Title\n\nThe copy ends. What the region has is left alone.\n", "Appferry.WhatAsNoun"),
        ("table.md", "| a | b |\n|---|---|\n| the copy | is underway |\n", "Appferry.Words"),
        ("comment.proto", "syntax = \"proto3\";\n\n// Tells where it is.\nmessage Place {}\n", "Appferry.Idioms"),
        ("comment.rs", "/// Makes it anew.\nfn make() {}\n", "Appferry.Words"),
    ] {
        let output = lint(name, text);
        let report = String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success() && report.contains(rule), "{name}: {output:?}");
    }
}

#[test]
fn the_prose_linter_leaves_code_and_plain_sentences_alone() {
    stdout(&lint("plain.md", "# Title\n\nThe user `nobody` calls. What does it get?\n\n```text\nwhoever\n```\n"));
    stdout(&lint("plain.rs", "/// Returns the user `nobody`.\nfn user() -> &'static str {\n    \"whoever\"\n}\n"));
}
