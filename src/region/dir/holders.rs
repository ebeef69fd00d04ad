//! Which other images of a directory have the blobs of one image. That is found out once, for all of its blobs: asked for each blob by
//! itself, it would be as many questions as there are blobs and images, multiplied.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, OnceLock},
};

use cap_std::fs::Dir;

use super::{layout, operations::Progress};
use crate::{
    domain::{Algorithm, Digest, ImageName},
    region::{Error, Result, Tree},
};

/// The most images that are remembered for one blob: if all of these have it damaged, it is carried.
const MAX_HOLDERS: usize = 4;

/// Which other images of a directory have the blobs of one image, once that was found out. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Holders(Arc<OnceLock<HashMap<Digest, Vec<ImageName>>>>);

impl Holders {
    /// Finds out which images have what a tree consists of, but for the one of that name.
    pub fn find(&self, dir: &Dir, name: &ImageName, tree: &Tree, progress: &Progress) -> Result<()> {
        if self.0.get().is_some() {
            return Ok(());
        }
        let attached = tree.attachments.iter().flat_map(|attachment| &attachment.manifests);
        let manifests = tree.manifests.iter().chain(attached).map(|(manifest, _)| manifest.digest);
        let wanted = manifests.chain(tree.all_blobs().map(|blob| blob.digest));
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
            // One whose blobs can't be listed has none to give.
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
        // Another plan of the same claim may have been faster.
        let _ = self.0.set(holders);
        Ok(())
    }

    /// The images that have a blob, as far as that was found out.
    pub fn of(&self, digest: Digest) -> &[ImageName] {
        self.0.get().and_then(|holders| holders.get(&digest)).map_or(&[], Vec::as_slice)
    }
}
