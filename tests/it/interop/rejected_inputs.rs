//! Inputs that are not images are rejected at once, with a hint.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use super::tools::text;
use crate::harness::{
    images::{self, noise},
    process::{self, Served},
    site::{ADMIN, Site},
};

/// Runs `image add`, which must exit soon.
fn add(site: &Site, served: &Served, flag: &str, what: &Path) -> Output {
    let config = site.directory.path().join("appferry.toml");
    let endpoint = format!("http://{}", served.address);
    let mut command = Command::new("timeout");
    process::clean(&mut command).args(["30", process::APPFERRY, "image", "add", "--name", "n", flag]).arg(what);
    command.args(["--config", text(&config), "--endpoint", &endpoint]).env("APPFERRY_TOKEN", ADMIN);
    let ended = command.current_dir(site.directory.path()).output().expect("the program runs");
    assert_ne!(ended.status.code(), Some(124), "{} blocks the command", what.display());
    ended
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_image_is_refused_with_what_would_help() {
    let site = Site::new();
    let served = site.serve().await;
    let path = |name: &str| site.directory.path().join(name);

    // A FIFO with a writer: opening it would consume its bytes, and it cannot be read twice.
    rustix::fs::mknodat(
        rustix::fs::CWD,
        path("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .expect("a pipe");
    let two = path("two");
    images::write_multi_arch(&two, "v1");
    fs::write(path("compressed.tar"), [0x1f, 0x8b, 8, 0, 0, 0, 0, 0]).expect("a file");
    fs::write(path("noise.tar"), noise(4_096, 1)).expect("a file");
    let mut empty = tar::Builder::new(fs::File::create(path("empty.tar")).expect("a file"));
    empty.append_path_with_name(site.config_file(), "readme").expect("a member");
    empty.finish().expect("a tar");
    for (flag, what, says) in [
        ("--file", "pipe", &["it is a pipe", "write it to a file first"][..]),
        ("--oci", "pipe", &["it is a pipe", "write it to a file first"]),
        ("--file", "two", &["it is a directory"]),
        ("--oci", "two", &["it has 2 images", "name one of them", "v1", "other"]),
        ("--oci", "two:v2", &["no image called", "v2", "v1"]),
        ("--oci", "compressed.tar", &["it is compressed", "gunzip"]),
        ("--oci", "noise.tar", &["it is no tar"]),
        ("--oci", "empty.tar", &["without index.json or manifest.json"]),
        ("--oci", "nowhere:v1", &["nowhere", "No such file"]),
    ] {
        let refused = add(&site, &served, flag, &path(what));
        let said = process::stderr(&refused);
        assert!(!refused.status.success(), "{what}: {refused:?}");
        assert!(says.iter().all(|text| said.contains(text)), "{what}: {said}");
    }
}
