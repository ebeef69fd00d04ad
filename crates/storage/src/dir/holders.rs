//! Index of the other images of a directory that have an image's blobs. It is built once for all blobs, because a
//! separate search for each blob would look into every image each time.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, OnceLock},
};

use cap_std::fs::Dir;
use domain::{Algorithm, Digest, ImageName};

use super::{layout, operations::Progress};
use crate::{Error, ManifestGraph, Result};

/// Maximum number of holders recorded per blob. If all their copies are damaged, the bytes are transferred.
const MAX_HOLDERS: usize = 4;

/// The result of the search for other images in a directory that have an image's blobs. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Holders(Arc<OnceLock<HashMap<Digest, Vec<ImageName>>>>);

impl Holders {
    /// Searches the directory for images, other than `name`, that have the manifests and blobs of a graph.
    pub fn find(&self, dir: &Dir, name: &ImageName, graph: &ManifestGraph, progress: &Progress) -> Result<()> {
        if self.0.get().is_some() {
            return Ok(());
        }
        let attached = graph.attachments.iter().flat_map(|attachment| &attachment.manifests);
        let manifests = graph.manifests.iter().chain(attached).map(|(manifest, _)| manifest.digest);
        let wanted = manifests.chain(graph.all_blobs().map(|blob| blob.digest));
        let wanted: HashMap<String, Digest> = wanted.map(|digest| (digest.hex(), digest)).collect();
        let algorithms: BTreeSet<Algorithm> = wanted.values().map(Digest::algorithm).collect();
        let mut holders: HashMap<Digest, Vec<ImageName>> = HashMap::new();
        for entry in dir.entries().map_err(Error::io("listing", "."))? {
            progress.tick();
            let other = entry.map_err(Error::io("listing", "."))?.file_name();
            let Some(other) = other.to_str().map(|name| ImageName(name.to_owned())) else { continue };
            if other == *name || !layout::is_visible(dir, &other) {
                continue;
            }
            // An image whose blobs can't be listed is skipped.
            let files = algorithms.iter().filter_map(|algorithm| dir.read_dir(layout::blobs(&other, *algorithm)).ok());
            for file in files.flatten().flatten() {
                let file = file.file_name();
                let Some(digest) = file.to_str().and_then(|file| wanted.get(file)) else { continue };
                let found = holders.entry(*digest).or_default();
                if found.len() < MAX_HOLDERS {
                    found.push(other.clone());
                }
            }
        }
        // Another plan of the same claim may have set the result first.
        let _ = self.0.set(holders);
        Ok(())
    }

    /// Returns the known images that have a blob.
    pub fn of(&self, digest: Digest) -> &[ImageName] {
        self.0.get().and_then(|holders| holders.get(&digest)).map_or(&[], Vec::as_slice)
    }
}
