//! The registry as a store of images.

use async_trait::async_trait;
use bytes::Bytes;
use domain::{Descriptor, Image, ImageName, NameContent, Verification};
use http::StatusCode;
use tokio::sync::mpsc;

use super::{RegistryStore, client::Scope, reference, self_mount::Answer};
use crate::{
    Attachment, Chunk, Error, ImageSpec, Located, MAX_MANIFEST_BYTES, ManifestGraph, Place, Presence, ReferrersIndex,
    Result, Source as _, Stage, Store, StoreKind, manifest_graph::digest_of,
};

#[async_trait]
impl Store for RegistryStore {
    fn kind(&self) -> StoreKind {
        StoreKind::Registry
    }

    fn locate(&self, spec: &ImageSpec) -> std::result::Result<Located, String> {
        reference::locate(self.client.location(), spec)
    }

    fn name_of(&self, image: &Image) -> ImageName {
        image.reference()
    }

    fn url(&self, name: &ImageName) -> String {
        reference::url(self.client.location(), name)
    }

    fn place(&self, name: &ImageName) -> Option<Place> {
        Some(Place { service: self.service(), path: self.at(name).repository })
    }

    /// Checks for an image that does not exist, and starts and aborts an upload.
    async fn probe(&self) -> Result<Option<u64>> {
        let probe = ImageName(format!("appferry-probe-{}", uuid::Uuid::now_v7().simple()));
        self.root(&probe).await?;
        self.try_to_write(&self.at(&probe).repository).await?;
        Ok(None)
    }

    async fn prepare(&self, _stage: &Stage) -> Result<()> {
        Ok(())
    }

    /// Checks the tag and the attachments. Only a root that this service has published counts as complete, because a
    /// registry may have lost parts that other clients pushed.
    async fn is_complete(&self, stage: &Stage, graph: &ManifestGraph) -> Result<Option<Verification>> {
        let at = self.at(&stage.name);
        let Some((root, _)) = graph.manifests.last() else { return Ok(None) };
        let shown = self.shown(stage, root.digest).await?;
        stage.may_show(&self.url(&stage.name), root.digest, &shown)?;
        if stage.suspect || shown != NameContent::Root(root.digest) {
            return Ok(None);
        }
        let Some(vouched) = stage.published.verification_of(root.digest, self.verify_existing) else { return Ok(None) };
        // If the check fails, the later write of the attachments reports the error.
        let is_all = self.has_attachments(&at.repository, graph).await.unwrap_or(false);
        Ok(Some(vouched).filter(|_| is_all))
    }

    async fn stat_blob(&self, stage: &Stage, blob: &Descriptor) -> Result<Presence> {
        let at = self.at(&stage.name);
        let told = self.stat_by_upload(stage, &at.repository, blob).await;
        if told == Answer::Begun {
            return Ok(Presence::Absent);
        }
        if let Some(witness) = self.find(&at.repository, blob, Scope::push(&at.repository)).await? {
            let known = self.verify_found(stage, &at.repository, blob, &witness).await?;
            return Ok(known.map_or(Presence::Absent, Presence::Whole));
        }
        if told == Answer::Whole {
            self.said_wrong();
        }
        if let Some(offset) = self.resumable(stage, &at.repository, blob).await? {
            return Ok(Presence::Part(offset));
        }
        let mounted = self.mount_from_sources(stage, &at.repository, blob).await?;
        Ok(mounted.map_or(Presence::Absent, Presence::Whole))
    }

    /// Reads the manifest, which takes as many round trips as a `HEAD` request.
    async fn has_manifest(&self, stage: &Stage, manifest: &Descriptor) -> Result<bool> {
        let at = self.at(&stage.name);
        let reference = manifest.digest.to_string();
        let there = match self
            .get_manifest(&at.repository, &reference, Scope::push(&at.repository), MAX_MANIFEST_BYTES)
            .await
        {
            // A registry that was killed while it stored the manifest may respond with 500 until the manifest is sent
            // again.
            Err(Error::Status { status: StatusCode::INTERNAL_SERVER_ERROR, .. }) => None,
            there => there.map_err(|error| error.about_digest(manifest.digest))?,
        };
        let Some((there, _)) = there else { return Ok(false) };
        let intact = there.digest == manifest.digest;
        if !intact {
            self.damaged.note(&at.repository, manifest.digest);
        }
        Ok(intact && !stage.suspect)
    }

    async fn write_blob(
        &self,
        stage: &Stage,
        blob: &Descriptor,
        from: u64,
        chunks: mpsc::Receiver<Chunk>,
    ) -> Result<()> {
        let at = self.at(&stage.name);
        self.upload(stage, &at.repository, blob, from, chunks).await?;
        self.require_known(&at.repository, blob).await?;
        // A registry with a damaged blob of that digest may keep it and ignore the new bytes.
        if stage.suspect || self.damaged.has(&at.repository, blob.digest) {
            let actual = digest_of(self, &stage.name, blob, &stage.activity).await?;
            self.made_good(stage, &at.repository, blob.digest, actual)?;
        }
        stage.journal.note_written(blob.digest).await
    }

    async fn write_manifest(&self, stage: &Stage, manifest: &Descriptor, content: Bytes) -> Result<()> {
        let at = self.at(&stage.name);
        let reference = manifest.digest.to_string();
        self.put_doubting(stage, &at.repository, &reference, manifest, content).await?;
        if self.damaged.has(&at.repository, manifest.digest) {
            let there =
                self.get_manifest(&at.repository, &reference, Scope::push(&at.repository), MAX_MANIFEST_BYTES).await?;
            let missing = || Error::BlobMissing { digest: manifest.digest, image: stage.name.to_string() };
            let (there, _) = there.ok_or_else(missing)?;
            self.made_good(stage, &at.repository, manifest.digest, there.digest)?;
        }
        Ok(())
    }

    /// One request writes a tag together with its digest.
    fn publishes_root(&self) -> bool {
        true
    }

    async fn attach(&self, stage: &Stage, attachment: &Attachment) -> Result<()> {
        self.put_attachment(stage, &self.at(&stage.name).repository, attachment).await
    }

    async fn list_referrers(&self, stage: &Stage, referrers: &ReferrersIndex) -> Result<()> {
        self.put_referrers(&self.at(&stage.name).repository, referrers).await
    }

    async fn publish(&self, stage: &Stage, graph: &ManifestGraph) -> Result<()> {
        self.publish_tag(stage, graph).await
    }

    async fn abort_unfinished(&self) {
        self.abort_dropped().await;
    }

    async fn abort(&self, session: &str) -> Result<()> {
        match self.session(session) {
            Some(upload) => self.abort_upload(&upload).await,
            None => Ok(()),
        }
    }
}
