//! Publishes an image in a registry by moving its tag to the root.

use std::time::Duration;

use domain::{Digest, NameContent};

use super::{RegistryStore, client::Scope, reference};
use crate::{Error, MAX_MANIFEST_BYTES, ManifestGraph, Result, Stage, Store as _, store::shown};

/// How long a check of a tag stays valid before the tag is moved. Small images are copied in less time.
const SHOWN_LATELY: Duration = Duration::from_secs(2);

impl RegistryStore {
    /// Returns the content under an image's tag. If the content matches the wanted root or a published root, returns
    /// the digest of that root.
    pub(super) async fn shown(&self, stage: &Stage, wanted: Digest) -> Result<NameContent> {
        let at = self.at(&stage.name);
        let known: Vec<Digest> = stage.published.roots().chain([wanted]).collect();
        shown(self.head_manifest_as(&known, &at.repository, &at.tag, Scope::push(&at.repository)).await)
    }

    /// Moves the tag last. No fence protects the tag, so the claim is verified immediately before the write and the tag
    /// is read back after it.
    pub(super) async fn publish_tag(&self, stage: &Stage, graph: &ManifestGraph) -> Result<()> {
        let at = self.at(&stage.name);
        let Some((root, content)) = graph.manifests.last() else {
            return Err(Error::ImageMissing(stage.name.to_string().into()));
        };
        let scope = Scope::push(&at.repository);
        let mut there = NameContent::Nothing;
        if !stage.seen_free.within(SHOWN_LATELY) {
            there = self.shown(stage, root.digest).await?;
            stage.may_show(&self.url(&stage.name), root.digest, &there)?;
        }
        stage.journal.hold().await?;
        let read = async |reference: &str| {
            let there = self.get_manifest(&at.repository, reference, scope.clone(), MAX_MANIFEST_BYTES).await?;
            Ok::<_, Error>(
                there.map(|(there, content)| if root.digest.matches(&content) { root.digest } else { there.digest }),
            )
        };
        // The tag may be immutable, so that even a write of the same content fails.
        if there == NameContent::Root(root.digest) && read(&at.tag).await? == Some(root.digest) {
            return Ok(());
        }
        self.put_doubting(stage, &at.repository, &at.tag, root, content.clone()).await?;
        if read(&at.tag).await? == Some(root.digest) {
            return Ok(());
        }
        // The tag has another writer's image, or the registry kept a damaged manifest of that digest.
        match read(&root.digest.to_string()).await? {
            Some(actual) if actual != root.digest => self.made_good(stage, &at.repository, root.digest, actual),
            _ => Err(Error::Contended(reference::url(self.client.location(), &stage.name).into())),
        }
    }
}
