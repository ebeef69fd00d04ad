//! Runs the fuzz targets of `fuzz/` on their corpora.

mod acs3;
mod body;
mod challenge;
mod form;
mod frames;
mod jwt;
mod policy;
mod start;
mod tree;

use std::{fs, path::Path};

/// Runs a target on every input of its corpus.
fn each(target: &str, mut run: impl FnMut(&[u8])) {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> =
        fs::read_dir(&directory).expect("a corpus").map(|file| file.expect("a file").path()).collect();
    files.sort();
    assert!(files.len() >= 5, "the corpus of {target} is missing");
    for file in files {
        println!("{}", file.display());
        run(&fs::read(file).expect("a file"));
    }
}

#[test]
fn policies() {
    each("policy", policy::run);
}

#[test]
fn signed_requests() {
    each("acs3", acs3::run);
}

#[test]
fn web_tokens() {
    each("jwt", jwt::run);
}

#[test]
fn challenges() {
    each("challenge", challenge::run);
}

#[test]
fn trees() {
    each("tree", tree::run);
}

#[test]
fn messages() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut target = body::Target::start(directory.path());
    each("body", |data| target.run(data));
}

#[test]
fn frames_of_http2() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut target = frames::Target::start(directory.path());
    each("frames", |data| target.run(data));
}

#[test]
fn requests_of_the_form() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut target = form::Target::start(directory.path());
    each("form", |data| target.run(data));
}
