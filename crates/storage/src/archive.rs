//! Source of images in an uncompressed tar archive, which is read in place.
//!
//! The archive is an OCI image layout (`docker save`, `podman save --format oci-archive`, skopeo's `oci-archive:`), or
//! has docker's older format: a `manifest.json` that lists configurations and layers (`docker save` before version 25,
//! `podman save`, `crane pull`).

mod docker;
mod layer;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    fs::File,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use bytes::Bytes;
use domain::{Descriptor, Digest, ImageName};
use tokio::time::Instant;

use super::{
    BlobChunks, Error, MAX_MANIFEST_BYTES, Neighbors, Result, Source, file_range,
    layout::{self, BLOBS, INDEX, Index},
};

/// Maximum number of files in an archive.
const MAX_MEMBERS: usize = 200_000;
/// Magic numbers of compressed files, and the program that decompresses each.
const COMPRESSIONS: [(&[u8], &str); 4] = [
    (&[0x1f, 0x8b], "gunzip"),
    (&[0x28, 0xb5, 0x2f, 0xfd], "unzstd"),
    (&[0xfd, b'7', b'z', b'X', b'Z'], "unxz"),
    (b"BZh", "bunzip2"),
];

/// A byte range of the archive's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Part {
    from: u64,
    size: u64,
}

/// An archive of one or more images.
#[derive(Debug, Clone)]
pub struct Archive {
    contents: Arc<Contents>,
    /// Selects the image if the archive has several.
    name: Option<String>,
}

#[derive(Debug)]
struct Contents {
    path: PathBuf,
    /// The index of the layout: the archive's own, or one generated from docker's list.
    index: Bytes,
    blobs: HashMap<Digest, Part>,
    /// Generated manifests, which are not in the file.
    made: HashMap<Digest, Bytes>,
}

impl Archive {
    /// Opens an archive and selects the image called `name`, or the only image if `name` is `None`.
    pub async fn open(path: &Path, name: Option<String>) -> Result<Self> {
        let path = path.to_owned();
        let contents = tokio::task::spawn_blocking(move || Contents::read(path));
        Ok(Self { contents: Arc::new(contents.await.map_err(|_| Error::Interrupted)??), name })
    }

    /// Returns the same archive, which selects the image called `name`, or the only image if `name` is `None`.
    #[must_use]
    pub fn with_name(&self, name: Option<String>) -> Self {
        Self { name, ..self.clone() }
    }

    fn index(&self) -> Result<Index> {
        Index::parse(&self.contents.path.join(INDEX).display().to_string(), &self.contents.index)
    }
}

impl Contents {
    fn read(path: PathBuf) -> Result<Self> {
        let members = Members::list(&path)?;
        if let Some(index) = members.small(INDEX)? {
            let blobs = members.parts.iter().filter_map(|(member, part)| {
                let (algorithm, digits) = member.strip_prefix(BLOBS)?.strip_prefix('/')?.split_once('/')?;
                Some((format!("{algorithm}:{digits}").parse().ok()?, *part))
            });
            let blobs = blobs.collect();
            return Ok(Self { path, index, blobs, made: HashMap::new() });
        }
        let Some(list) = members.small(docker::LIST)? else {
            let reason = format!("it is an archive without {INDEX} or {}, and so of no image", docker::LIST);
            return Err(Error::malformed(path.display().to_string(), reason));
        };
        docker::convert(&members, &list)
    }

    fn part(&self, digest: Digest, image: &ImageName) -> Result<Part> {
        let part = self.blobs.get(&digest).copied();
        part.ok_or_else(|| Error::BlobMissing { digest, image: image.to_string() })
    }
}

/// The byte ranges of an archive's files, by normalized path.
struct Members<'a> {
    path: &'a Path,
    parts: HashMap<String, Part>,
}

impl<'a> Members<'a> {
    fn list(path: &'a Path) -> Result<Self> {
        let shown = path.display().to_string();
        let failed = |error| Error::io("reading", shown.clone())(error);
        file_range::require_rereadable(path)?;
        let beginning = file_range::read_whole(path, 0, 8)?;
        if let Some((_, program)) = COMPRESSIONS.iter().find(|(magic, _)| beginning.starts_with(magic)) {
            let reason = format!("it is compressed, and an archive is read where it lies; use {program} first");
            return Err(Error::malformed(shown.as_str(), reason));
        }
        let mut archive = tar::Archive::new(File::open(path).map_err(failed)?);
        let (mut parts, mut links) = (HashMap::new(), Vec::new());
        for member in archive.entries_with_seek().map_err(failed)? {
            let member = member.map_err(|error| Error::malformed(shown.as_str(), format!("it is no tar: {error}")))?;
            if parts.len() >= MAX_MEMBERS {
                return Err(Error::malformed(shown.as_str(), format!("it has more than {MAX_MEMBERS} files")));
            }
            let name = plain(&String::from_utf8_lossy(&member.path_bytes()));
            let kind = member.header().entry_type();
            if kind.is_file() {
                parts.insert(name, Part { from: member.raw_file_position(), size: member.size() });
            } else if let Some(to) = member.link_name_bytes().filter(|_| kind.is_symlink() || kind.is_hard_link()) {
                let to = String::from_utf8_lossy(&to).into_owned();
                links.push((if kind.is_symlink() { beside(&name, &to) } else { plain(&to) }, name));
            }
        }
        // Older versions of docker write a repeated layer as a link to its first occurrence.
        for (to, name) in links {
            if let Some(part) = parts.get(&to).copied() {
                parts.insert(name, part);
            }
        }
        Ok(Self { path, parts })
    }

    fn read(&self, part: Part) -> Result<Bytes> {
        Ok(file_range::read_whole(self.path, part.from, part.size)?.into())
    }

    /// Reads all of a small file. Returns `None` if the archive has no such file.
    fn small(&self, member: &str) -> Result<Option<Bytes>> {
        let Some(part) = self.parts.get(member) else { return Ok(None) };
        if part.size > MAX_MANIFEST_BYTES {
            let reason = format!("it has {} bytes, the most is {MAX_MANIFEST_BYTES}", part.size);
            return Err(Error::malformed(format!("{member} of {}", self.path.display()), reason));
        }
        self.read(*part).map(Some)
    }
}

/// Normalizes a path within an archive.
fn plain(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Resolves the target of a symbolic link at `path`.
fn beside(path: &str, to: &str) -> String {
    let directory = path.rsplit_once('/').map_or("", |(directory, _)| directory);
    plain(&format!("{directory}/{to}"))
}

#[async_trait]
impl Source for Archive {
    async fn root(&self, _: &ImageName) -> Result<Option<Descriptor>> {
        self.index()?.root(self.name.as_deref()).map(Some)
    }

    async fn read_manifest(&self, name: &ImageName, manifest: &Descriptor) -> Result<Bytes> {
        if let Some(made) = self.contents.made.get(&manifest.digest) {
            return Ok(made.clone());
        }
        if manifest.size > MAX_MANIFEST_BYTES {
            return Err(Error::malformed(manifest.digest.to_string(), "it is larger than a manifest may be"));
        }
        let part = self.contents.part(manifest.digest, name)?;
        let contents = Arc::clone(&self.contents);
        let read = move || file_range::read_whole(&contents.path, part.from, part.size.min(MAX_MANIFEST_BYTES));
        let content = tokio::task::spawn_blocking(read).await.map_err(|_| Error::Interrupted)??;
        let actual = manifest.digest.algorithm().digest(&content);
        if actual == manifest.digest {
            Ok(content.into())
        } else {
            Err(Error::DigestMismatch { image: name.to_string(), expected: manifest.digest, actual: Box::new(actual) })
        }
    }

    async fn read_blob(&self, name: &ImageName, blob: &Descriptor, from: u64, most: Option<u64>) -> Result<BlobChunks> {
        let part = self.contents.part(blob.digest, name)?;
        if part.size != blob.size {
            let (image, digest, expected) = (name.to_string(), blob.digest, blob.size);
            return Err(Error::SizeMismatch { image, digest, expected, actual: part.size });
        }
        let from = from.min(part.size);
        let most = (part.size - from).min(most.unwrap_or(u64::MAX));
        Ok(file_range::read(&self.contents.path, part.from + from, most))
    }

    async fn neighbors(&self, name: &ImageName, _since: Instant) -> Result<Neighbors> {
        layout::neighbors(self, name, self.index()?).await
    }
}
