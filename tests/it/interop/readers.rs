//! The programs that read a copied image completely.

use std::{net::SocketAddr, path::PathBuf};

use super::{Tools, tools::text};

/// A location of an image.
#[derive(Debug, Clone)]
pub enum Place {
    /// A layout of a directory region, or one that was downloaded from a bucket.
    Layout(PathBuf),
    /// The address of a registry, and the image's name in it.
    Registry(SocketAddr, String),
}

/// A program that reads images.
#[derive(Debug, Clone, Copy)]
pub struct Reader {
    /// The program's name in the table.
    pub name: &'static str,
    /// Reads the image at the given location, using resources of `Spare`. Returns the digest, if the program reports
    /// it.
    read: fn(&Tools, &str, &Spare) -> Result<Option<String>, String>,
}

/// Resources for one read.
#[derive(Debug)]
pub struct Spare {
    /// A number that is unique to this read.
    pub number: usize,
    /// A path that does not exist yet.
    pub path: String,
    /// The name under which `crane push`, which reads a layout, pushes the image to a registry.
    pub pushed: String,
}

impl Reader {
    /// Reads an image from a layout or a registry. Returns the program's error message on failure.
    pub fn read(&self, tools: &Tools, place: &Place, spare: &Spare) -> Result<Option<String>, String> {
        match place {
            Place::Layout(path) => (self.read)(tools, text(path), spare),
            Place::Registry(address, name) => (self.read)(tools, &format!("{address}/{name}"), spare),
        }
    }
}

fn skopeo(tools: &Tools, from: &str, spare: &Spare) -> Result<Option<String>, String> {
    let (digest, to) = (format!("{}.digest", spare.path), format!("dir:{}", spare.path));
    let flags = ["--quiet", "--preserve-digests", "--src-tls-verify=false", "--digestfile", &digest];
    let arguments: Vec<&str> = ["copy"].into_iter().chain(flags).chain([from, &to]).collect();
    tools.try_run("skopeo", &arguments)?;
    Ok(std::fs::read_to_string(digest).ok())
}

fn podman(tools: &Tools, from: &str, _: &Spare) -> Result<Option<String>, String> {
    tools.try_run("podman", &["pull", "--quiet", "--tls-verify=false", from])?;
    Ok(None)
}

fn oras(tools: &Tools, from: &str, flag: &str, spare: &Spare) -> Result<Option<String>, String> {
    let to = format!("{}:copied", spare.path);
    tools.try_run("oras", &["cp", flag, from, "--to-oci-layout", &to])?;
    tools.try_run("oras", &["resolve", "--oci-layout", &to]).map(Some)
}

fn regctl(tools: &Tools, from: &str, spare: &Spare) -> Result<Option<String>, String> {
    let to = format!("ocidir://{}:copied", spare.path);
    let host = format!("reg={},tls=disabled", from.split('/').next().unwrap_or_default());
    tools.try_run("regctl", &["--host", &host, "image", "copy", from, &to])?;
    tools.try_run("regctl", &["image", "digest", &to]).map(Some)
}

fn umoci(tools: &Tools, from: &str, spare: &Spare) -> Result<Option<String>, String> {
    tools.try_run("umoci", &["unpack", "--rootless", "--image", from, &spare.path])?;
    let solver = std::fs::read(format!("{}/rootfs/etc/solver", spare.path)).unwrap_or_default();
    if solver == b"one" { Ok(None) } else { Err(format!("{from} unpacked has another file")) }
}

/// Reads a layout with podman. podman derives an image name from the path of the layout, and that name must be lower
/// case: a symbolic link provides such a path.
fn podman_layout(tools: &Tools, layout: &str, name: &str, spare: &Spare) -> Result<Option<String>, String> {
    let link = format!("linked-{}", spare.number);
    std::os::unix::fs::symlink(layout, tools.path(&link)).map_err(|error| error.to_string())?;
    podman(tools, &format!("oci:{link}{name}"), spare)
}

/// The readers of layouts. Some select the image by its name.
pub const OF_LAYOUTS: &[Reader] = &[
    Reader { name: "skopeo", read: |tools, layout, spare| skopeo(tools, &format!("oci:{layout}"), spare) },
    Reader {
        name: "skopeo `:latest`",
        read: |tools, layout, spare| skopeo(tools, &format!("oci:{layout}:latest"), spare),
    },
    Reader { name: "podman", read: |tools, layout, spare| podman_layout(tools, layout, "", spare) },
    Reader { name: "podman `:latest`", read: |tools, layout, spare| podman_layout(tools, layout, ":latest", spare) },
    Reader {
        name: "crane",
        read: |tools, layout, spare| {
            let pushed = tools.try_run("crane", &["push", layout, &spare.pushed])?;
            Ok(pushed.rsplit_once('@').map(|(_, digest)| digest.to_owned()))
        },
    },
    Reader {
        name: "oras `:latest`",
        read: |tools, layout, spare| oras(tools, &format!("{layout}:latest"), "--from-oci-layout", spare),
    },
    Reader { name: "regctl", read: |tools, layout, spare| regctl(tools, &format!("ocidir://{layout}"), spare) },
    Reader {
        name: "regctl `:latest`",
        read: |tools, layout, spare| regctl(tools, &format!("ocidir://{layout}:latest"), spare),
    },
    Reader { name: "umoci", read: umoci },
    Reader { name: "umoci `:latest`", read: |tools, layout, spare| umoci(tools, &format!("{layout}:latest"), spare) },
];

/// The readers of registries.
pub const OF_REGISTRIES: &[Reader] = &[
    Reader { name: "skopeo", read: |tools, name, spare| skopeo(tools, &format!("docker://{name}"), spare) },
    Reader { name: "podman", read: |tools, name, spare| podman(tools, &format!("docker://{name}"), spare) },
    Reader {
        name: "crane",
        read: |tools, name, spare| {
            tools.try_run("crane", &["pull", "--format=oci", name, &spare.path])?;
            tools.try_run("crane", &["digest", name]).map(Some)
        },
    },
    Reader { name: "oras", read: |tools, name, spare| oras(tools, name, "--from-plain-http", spare) },
    Reader { name: "regctl", read: regctl },
];
