//! Storage of images in a registry with the OCI distribution API (specification 1.1). An image is a tag of a repository
//! below the namespace.

mod attachments;
mod body_stream;
mod challenge;
mod client;
mod content_range;
mod credential_helper;
mod credentials;
mod decoding;
mod digest_support;
mod docker_config;
mod existing;
mod learnt_life;
mod manifest;
mod mount;
mod reference;
mod referrers_api;
mod self_mount;
mod tag_list;
mod token;
mod upload;
mod upload_mode;
mod upload_part;
mod upload_session;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
pub use challenge::Challenge;
pub use client::Client;
pub use credential_helper::{Helper, HelperError, Program};
pub use credentials::{CredentialProvider, CredentialSource, Credentials, Error as CredentialsError};
pub use docker_config::{DockerConfigError, Entry as DockerEntry, RegistryKey, read_now as read_docker_config};
use domain::{Descriptor, Digest, ForeignText, Image, ImageName, NameContent, Verification, VerifyExisting};
use http::{HeaderMap, Method, StatusCode, header::RANGE};
use reqwest::Response;
pub use self_mount::WaitingUploads;
use tokio::{
    sync::{OnceCell, mpsc},
    time::{Instant, timeout},
};
use tokio_util::task::TaskTracker;

use self::{
    client::{Ask, Scope, header, what},
    content_range::ContentRange,
    decoding::{Decoder, is_encoded},
    existing::Damaged,
    mount::MountPause,
    reference::Reference,
    referrers_api::ReferrersApi,
    self_mount::{Answer, SelfMount},
    tag_list::TagLists,
    upload_mode::Learned,
    upload_session::Dropped,
};
use super::{
    Attachment, BlobChunks, Chunk, Error, ImageSpec, Listing, Located, MAX_MANIFEST_BYTES, ManifestGraph, Neighbors,
    Place, Presence, ReferrersIndex, Result, Source, Stage, Store, StoreKind,
    http_response::{refusal, transport},
    manifest_graph::digest_of,
    neighbors::Tags,
    store::shown,
};

/// Number of pieces of a blob that are read ahead.
const READ_AHEAD: usize = 8;
/// How long a check of a tag stays valid before the tag is moved. Small images are copied in less time.
const SHOWN_LATELY: Duration = Duration::from_secs(2);
/// How long no bytes of a blob may arrive.
const STALL: Duration = Duration::from_secs(60);

/// A registry as source and store of images.
#[derive(Debug, Clone)]
pub struct RegistryStore {
    client: Arc<Client>,
    /// State of the referrers API.
    referrers_api: Arc<ReferrersApi>,
    /// Cached lists of tags.
    tag_lists: Arc<TagLists>,
    /// Whether the registry ignores range requests.
    without_ranges: Arc<AtomicBool>,
    /// Uploads that were dropped unfinished and have to be aborted.
    dropped: Arc<Mutex<Vec<Dropped>>>,
    /// Tasks that are starting uploads.
    beginning: TaskTracker,
    /// Upload habits of the registry, and whether the stored ones were loaded.
    learned: Arc<Learned>,
    recalled: Arc<OnceCell<()>>,
    /// Pause of mounts after a failure.
    mount_pause: Arc<MountPause>,
    /// Whether the start of an upload reveals that the blob exists.
    self_mount: Arc<SelfMount>,
    /// How existing blobs are verified.
    verify_existing: VerifyExisting,
    /// Blobs that were found damaged. Their replacements are read back.
    damaged: Damaged,
}

impl RegistryStore {
    /// Creates a store.
    #[must_use]
    pub fn new(client: Client) -> Self {
        let beginning = TaskTracker::new();
        // `wait` returns once the current tasks have ended.
        beginning.close();
        Self {
            beginning,
            client: Arc::new(client),
            referrers_api: Arc::default(),
            tag_lists: Arc::default(),
            without_ranges: Arc::default(),
            dropped: Arc::default(),
            learned: Arc::default(),
            recalled: Arc::default(),
            mount_pause: Arc::default(),
            self_mount: Arc::default(),
            verify_existing: VerifyExisting::default(),
            damaged: Damaged::default(),
        }
    }

    /// Returns the store with another verification of existing blobs.
    #[must_use]
    pub fn verifying_existing(self, verify_existing: VerifyExisting) -> Self {
        Self { verify_existing, ..self }
    }

    fn client(&self) -> &Client {
        &self.client
    }

    fn at(&self, name: &ImageName) -> Reference {
        Reference::of(self.client.location(), name)
    }

    /// Returns the descriptor of the manifest under a tag or a digest; `None` if there is none.
    async fn find_root(&self, repository: &str, reference: &str) -> Result<Option<Descriptor>> {
        let scope = Scope::pull(repository);
        match self.head_manifest(repository, reference, scope.clone()).await? {
            Some(root) => Ok(Some(root)),
            // Some registries return by `GET` manifests that they deny by `HEAD`.
            None => {
                let found = self.get_manifest(repository, reference, scope, MAX_MANIFEST_BYTES).await?;
                Ok(found.map(|(root, _)| root))
            }
        }
    }

    /// Reads a blob with the access of `scope`.
    async fn read_as(
        &self,
        scope: Scope,
        name: &ImageName,
        blob: &Descriptor,
        from: u64,
        most: Option<u64>,
    ) -> Result<BlobChunks> {
        let at = self.at(name);
        let url = self.client.url(&format!("{}/blobs/{}", at.repository, blob.digest))?;
        let end = most.map_or(blob.size, |most| blob.size.min(from.saturating_add(most)));
        let ranged = (from > 0 || end < blob.size) && self.reads_ranges();
        let mut headers = HeaderMap::new();
        if ranged {
            headers.extend([header(RANGE, format!("bytes={from}-{}", end.saturating_sub(1)))?]);
        }
        let ask = Ask { method: Method::GET, url, scope, headers, body: Bytes::new() };
        let what = what(&ask.method, &ask.url);
        let response = self.client.ask(ask).await?;
        let skip = match response.status() {
            // A range of compressed content is no range of the blob.
            StatusCode::PARTIAL_CONTENT if ranged && is_encoded(response.headers()) => {
                return Err(self.without_range(what));
            }
            StatusCode::PARTIAL_CONTENT if ranged => match ContentRange::of(response.headers()) {
                // A range that starts earlier contains it as well. After a range that ends earlier, the caller reads
                // the rest.
                Some(part)
                    if (part.first..=part.last).contains(&from) && part.size.is_none_or(|size| size == blob.size) =>
                {
                    from - part.first
                }
                None if response.content_length() == Some(end - from) => 0,
                _ => return Err(self.without_range(what)),
            },
            // The registry may still be able to send the whole blob.
            StatusCode::RANGE_NOT_SATISFIABLE if ranged => return Err(self.without_range(what)),
            StatusCode::OK => {
                if ranged {
                    self.without_ranges.store(true, Ordering::Relaxed);
                }
                from
            }
            StatusCode::NOT_FOUND => {
                return Err(Error::BlobMissing { digest: blob.digest, image: name.to_string() });
            }
            _ => return Err(refusal(&what, response).await),
        };
        let (chunks, received) = mpsc::channel(READ_AHEAD);
        // The task ends with the body, or when the receiver is dropped.
        let decoder = Decoder::of(response.headers(), response.content_length(), Some(blob.size));
        tokio::spawn(pass_on(what, response, decoder, (skip, end - from), chunks));
        Ok(received)
    }

    /// Returns the error for a response with another range than requested, and disables range requests.
    fn without_range(&self, what: String) -> Error {
        self.without_ranges.store(true, Ordering::Relaxed);
        Error::Transport { what: what.into(), problem: "the answer is another range than was asked for".into() }
    }

    fn service(&self) -> String {
        self.client.location().base.to_string()
    }

    /// Returns the content under an image's tag. If it matches the wanted or a published root, uses that digest.
    async fn shown(&self, stage: &Stage, wanted: Digest) -> Result<NameContent> {
        let at = self.at(&stage.name);
        let known: Vec<Digest> = stage.published.roots().chain([wanted]).collect();
        shown(self.head_manifest_as(&known, &at.repository, &at.tag, Scope::push(&at.repository)).await)
    }
}

#[async_trait]
impl Source for RegistryStore {
    async fn root(&self, name: &ImageName) -> Result<Option<Descriptor>> {
        let at = self.at(name);
        self.find_root(&at.repository, &at.tag).await
    }

    async fn root_of(&self, name: &ImageName, digest: Digest) -> Result<Option<Descriptor>> {
        let found = self.find_root(&self.at(name).repository, &digest.to_string()).await?;
        match found {
            Some(found) if found.digest != digest => {
                let image = name.to_string();
                Err(Error::DigestMismatch { image, expected: digest, actual: Box::new(found.digest) })
            }
            found => Ok(found),
        }
    }

    async fn root_as(&self, name: &ImageName, known: Digest) -> Result<Option<Descriptor>> {
        let at = self.at(name);
        let told = self.root(name).await?;
        self.known_as(&[known], told, &at.repository, &at.tag, Scope::pull(&at.repository)).await
    }

    async fn read_manifest(&self, name: &ImageName, manifest: &Descriptor) -> Result<Bytes> {
        let at = self.at(name);
        let missing = || Error::BlobMissing { digest: manifest.digest, image: name.to_string() };
        if manifest.size > MAX_MANIFEST_BYTES {
            return Err(Error::malformed(manifest.digest.to_string(), "it is larger than a manifest may be"));
        }
        let reference = manifest.digest.to_string();
        let (kind, scope) = (manifest.media_type.as_str(), Scope::pull(&at.repository));
        let found = self.get_manifest_as(kind, &at.repository, &reference, scope, manifest.size).await?;
        let (found, content) = found.ok_or_else(missing)?;
        if found.digest == manifest.digest {
            Ok(content)
        } else {
            let image = name.to_string();
            Err(Error::DigestMismatch { image, expected: manifest.digest, actual: Box::new(found.digest) })
        }
    }

    async fn read_blob(&self, name: &ImageName, blob: &Descriptor, from: u64, most: Option<u64>) -> Result<BlobChunks> {
        let scope = Scope::pull(&self.at(name).repository);
        self.read_as(scope, name, blob, from, most).await
    }

    async fn neighbors(&self, name: &ImageName, since: Instant) -> Result<Neighbors> {
        let at = self.at(name);
        // A list without the image's own tag is outdated or incomplete.
        let listed = self.tags(&at.repository, since).await.filter(|tags| tags.contains(&at.tag));
        Ok(Neighbors { tags: listed.map_or(Tags::Unlisted, Tags::Listed), unnamed: Vec::new() })
    }

    async fn tagged(&self, name: &ImageName, tag: &str) -> Result<Option<Descriptor>> {
        let at = self.at(name);
        self.head_manifest(&at.repository, tag, Scope::pull(&at.repository)).await
    }

    async fn referrers(&self, name: &ImageName, subject: Digest) -> Result<Option<Listing>> {
        let at = self.at(name);
        self.read_referrers(&at.repository, subject, &Scope::pull(&at.repository)).await
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn reads_ranges(&self) -> bool {
        !self.without_ranges.load(Ordering::Relaxed)
    }
}

/// Passes on a part of a response's content: skips `part.0` bytes and sends the next `part.1` bytes. Sends an error if
/// the content is shorter.
async fn pass_on(
    what: String,
    mut response: Response,
    mut decoder: Decoder,
    part: (u64, u64),
    chunks: mpsc::Sender<Result<Bytes>>,
) {
    let (mut skip, mut left) = part;
    while left > 0 {
        let next = tokio::select! {
            next = next_piece(&what, &mut response, &mut decoder) => next,
            () = chunks.closed() => return,
        };
        let mut bytes = match next {
            Ok(bytes) => bytes,
            Err(error) => {
                // The send fails only if the receiver was dropped.
                let _ = chunks.send(Err(error)).await;
                return;
            }
        };
        let skipped = skip.min(bytes.len() as u64);
        skip -= skipped;
        let _ = bytes.split_to(usize::try_from(skipped).unwrap_or(bytes.len()));
        bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        left -= bytes.len() as u64;
        if !bytes.is_empty() && chunks.send(Ok(bytes)).await.is_err() {
            return;
        }
    }
}

/// Returns the next bytes of a response's content.
async fn next_piece(what: &str, response: &mut Response, decoder: &mut Decoder) -> Result<Bytes> {
    let broken = |problem| Error::Transport { what: what.into(), problem };
    loop {
        if let Some(bytes) = decoder.next().map_err(|error| broken(ForeignText::new(error)))? {
            return Ok(bytes);
        }
        let chunk = timeout(STALL, response.chunk()).await.map_err(|_| Error::Stalled("reading a blob"))?;
        let chunk = chunk.map_err(|error| transport(what, &error))?;
        decoder.push(chunk.ok_or_else(|| broken("the answer ended too early".into()))?);
    }
}

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
        let nobody = ImageName(format!("appferry-probe-{}", uuid::Uuid::now_v7().simple()));
        self.root(&nobody).await?;
        self.try_to_write(&self.at(&nobody).repository).await?;
        Ok(None)
    }

    async fn prepare(&self, _stage: &Stage) -> Result<()> {
        Ok(())
    }

    /// Checks the tag and nothing below it: a registry may have lost parts that other clients pushed.
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

    /// Moves the tag last. No fence protects the tag, so the claim is verified immediately before the write and the tag
    /// is read back after it.
    async fn publish(&self, stage: &Stage, graph: &ManifestGraph) -> Result<()> {
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
