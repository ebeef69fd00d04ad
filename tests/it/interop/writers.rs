//! The programs that write images.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Tools, tools::text};
use crate::harness::images::{self, MANIFEST};

/// The arguments of `image add` for the written image, and its digest if known in advance.
pub struct Written {
    pub oci: String,
    pub digest: Option<String>,
}

/// A program that writes images.
#[derive(Debug, Clone, Copy)]
pub struct Writer {
    /// The program's name in the table.
    pub name: &'static str,
    /// A component of the image's id.
    pub id: &'static str,
    write: fn(&Tools, &Base) -> Written,
}

impl Writer {
    pub fn write(&self, tools: &Tools, base: &Base) -> Written {
        (self.write)(tools, base)
    }
}

/// The image that all programs write: a layout with two layers, named `base` in the working directory, and a registry
/// that has it.
pub struct Base {
    pub layout: PathBuf,
    pub digest: String,
    /// The image's name in the registry.
    pub pushed: String,
}

/// Creates the image. Its layers are real tar archives, because programs unpack them.
pub fn base(layout: &Path) -> String {
    let tar = |name: &str, content: &[u8]| {
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, content).expect("a member");
        tar.into_inner().expect("a tar")
    };
    let layers = [tar("etc/solver", b"one"), tar("bin/solver", &images::noise(5_000, 1))];
    let diff_ids: Vec<_> = layers.iter().map(|layer| images::digest(layer)).collect();
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {}, "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    images::write_called(layout, &layers, &config, "latest")
}

fn layout(tools: &Tools, name: &str) -> (PathBuf, String) {
    let path = tools.path(name);
    let shown = text(&path).to_owned();
    (path, shown)
}

fn known(oci: String, base: &Base) -> Written {
    Written { oci, digest: Some(base.digest.clone()) }
}

fn skopeo(tools: &Tools, base: &Base, to: &str) {
    tools.run(
        "skopeo",
        &["copy", "--quiet", "--preserve-digests", &format!("oci:{}:latest", base.layout.display()), to],
    );
}

/// The archive format of Docker does not preserve digests.
fn skopeo_docker_archive(tools: &Tools, base: &Base) -> Written {
    let (_, to) = layout(tools, "skopeo-docker.tar");
    let from = format!("oci:{}:latest", base.layout.display());
    tools.run("skopeo", &["copy", "--quiet", &from, &format!("docker-archive:{to}:apps/solver:v1")]);
    Written { oci: to, digest: None }
}

/// The format of `docker save` since version 25: a layout with Docker's older list beside it, and names as containerd
/// writes them.
fn docker_save(tools: &Tools, base: &Base) -> Written {
    let (copy, _) = layout(tools, "docker-save");
    images::copy_tree(&base.layout, &copy);
    let mut index: Value = serde_json::from_slice(&fs::read(copy.join("index.json")).expect("an index")).expect("JSON");
    index["manifests"][0]["annotations"] = json!({
        "io.containerd.image.name": "docker.io/apps/solver:v1", "org.opencontainers.image.ref.name": "v1",
    });
    fs::write(copy.join("index.json"), index.to_string()).expect("an index");
    fs::write(copy.join("manifest.json"), r#"[{"Config":"nowhere","Layers":[]}]"#).expect("a list");
    let to = tools.path("docker-save.tar");
    let mut archive = tar::Builder::new(fs::File::create(&to).expect("a file"));
    archive.append_dir_all(".", &copy).expect("a tar");
    archive.finish().expect("a tar");
    known(format!("{}:docker.io/apps/solver:v1", to.display()), base)
}

fn podman(tools: &Tools, format: &str, name: &str) -> String {
    let (_, to) = layout(tools, name);
    let id = tools.run("podman", &["pull", "--quiet", "oci:base:latest"]);
    tools.run("podman", &["tag", &id, "localhost/apps/solver:v1"]);
    tools.run("podman", &["save", "--quiet", "--format", format, "--output", &to, "localhost/apps/solver:v1"]);
    to
}

pub const WRITERS: &[Writer] = &[
    Writer {
        name: "skopeo, `oci:`",
        id: "skopeo",
        write: |tools, base| {
            let (_, to) = layout(tools, "skopeo");
            skopeo(tools, base, &format!("oci:{to}:bio/solver:v1"));
            known(format!("{to}:bio/solver:v1"), base)
        },
    },
    Writer {
        name: "skopeo, `oci-archive:`",
        id: "skopeo-archive",
        write: |tools, base| {
            let (_, to) = layout(tools, "skopeo.tar");
            skopeo(tools, base, &format!("oci-archive:{to}:v1"));
            known(to, base)
        },
    },
    Writer {
        name: "skopeo, `docker-archive:` (`docker save` before 25)",
        id: "docker-archive",
        write: skopeo_docker_archive,
    },
    Writer { name: "`docker save` since 25", id: "docker-save", write: docker_save },
    Writer {
        name: "crane pull, `--format=oci`",
        id: "crane",
        write: |tools, base| {
            let (_, to) = layout(tools, "crane");
            tools.run("crane", &["pull", "--format=oci", &base.pushed, &to]);
            known(to, base)
        },
    },
    Writer {
        name: "crane pull, a tarball",
        id: "crane-tarball",
        write: |tools, base| {
            let (_, to) = layout(tools, "crane.tar");
            tools.run("crane", &["pull", &base.pushed, &to]);
            Written { oci: to, digest: None }
        },
    },
    Writer {
        name: "oras, with an SBOM",
        id: "oras",
        write: |tools, base| {
            let (path, to) = layout(tools, "oras");
            let from = format!("{}:latest", base.layout.display());
            let named = format!("{to}:v1");
            tools.run("oras", &["cp", "--from-oci-layout", &from, "--to-oci-layout", &named]);
            fs::write(path.with_extension("json"), r#"{"spdxVersion":"SPDX-2.3"}"#).expect("an SBOM");
            tools.run("oras", &["attach", "--oci-layout", &named, "--artifact-type", "text/spdx+json", "oras.json"]);
            known(named, base)
        },
    },
    Writer {
        name: "regctl, `ocidir://`",
        id: "regctl",
        write: |tools, base| {
            let (_, to) = layout(tools, "regctl");
            let from = format!("ocidir://{}:latest", base.layout.display());
            tools.run("regctl", &["image", "copy", &from, &format!("ocidir://{to}:v1")]);
            known(to, base)
        },
    },
    Writer {
        name: "podman save, `oci-archive`",
        id: "podman",
        write: |tools, _| Written { oci: podman(tools, "oci-archive", "podman-oci.tar"), digest: None },
    },
    Writer {
        name: "podman save, `docker-archive`",
        id: "podman-docker",
        write: |tools, _| Written { oci: podman(tools, "docker-archive", "podman-docker.tar"), digest: None },
    },
    Writer {
        name: "buildah push, `oci:`",
        id: "buildah",
        write: |tools, _| {
            let (_, to) = layout(tools, "buildah");
            let id = tools.run("buildah", &["pull", "--quiet", "oci:base:latest"]);
            tools.run("buildah", &["push", "--quiet", &id, &format!("oci:{to}:localhost/solver:v1")]);
            Written { oci: format!("{to}:localhost/solver:v1"), digest: None }
        },
    },
    Writer {
        name: "umoci, one image under two names",
        id: "umoci",
        write: |tools, base| {
            let (path, to) = layout(tools, "umoci");
            images::copy_tree(&base.layout, &path);
            tools.run("umoci", &["tag", "--image", &format!("{to}:latest"), "v1"]);
            known(to, base)
        },
    },
];

/// Returns the digest of a layout's only entry, which must have the name `latest`.
pub fn only_entry(layout: &Path) -> String {
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).expect("an index")).expect("JSON");
    let entries = index["manifests"].as_array().expect("entries");
    assert_eq!(entries.len(), 1, "{index}");
    assert_eq!(entries[0]["annotations"]["org.opencontainers.image.ref.name"], "latest", "{index}");
    assert_eq!(entries[0]["mediaType"], MANIFEST);
    let digest = entries[0]["digest"].as_str().expect("a digest").to_owned();
    let content = fs::read(images::blob_path(layout, &digest)).expect("a manifest");
    assert_eq!(format!("sha256:{}", hex::encode(Sha256::digest(content))), digest);
    digest
}
