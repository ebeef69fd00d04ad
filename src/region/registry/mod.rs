//! A registry that speaks the OCI distribution API (specification 1.1). An image is a tag of a repository below the namespace.

mod attachments;
mod challenge;
mod client;
mod content_range;
mod credential_helper;
mod credentials;
mod decoding;
mod digest_support;
mod docker_config;
mod existing;
mod feed;
mod learnt_life;
mod manifest;
mod mount;
mod name;
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
use http::{HeaderMap, Method, StatusCode, header::RANGE};
use reqwest::Response;
use tokio::{
    sync::{OnceCell, mpsc},
    time::{Instant, timeout},
};
use tokio_util::task::TaskTracker;

pub use challenge::Challenge;
pub use client::Client;
pub use credential_helper::{Helper, HelperError, Program};
pub use credentials::{CredentialProvider, CredentialSource, Credentials, Error as CredentialsError};
pub use docker_config::{DockerConfigError, Entry as DockerEntry, RegistryKey, read_now as read_docker_config};
pub use self_mount::WaitingUploads;

use self::{
    client::{Ask, Scope, header, what},
    content_range::ContentRange,
    decoding::{Decoder, is_encoded},
    existing::Damaged,
    mount::MountPause,
    name::Reference,
    referrers_api::ReferrersApi,
    self_mount::{Answer, SelfMount},
    tag_list::TagLists,
    upload_mode::Learned,
    upload_session::Dropped,
};
use super::{
    Attachment, BlobChunks, Chunk, Error, ImageSpec, Listing, Located, MAX_MANIFEST_BYTES, Neighbors, Place, Presence,
    ReferrersIndex, Result, Source, Stage, Store, StoreKind, Tree,
    answer::{refusal, transport},
    neighbors::Tags,
    store::shown,
    tree::digest_of,
};
use crate::domain::{Descriptor, Digest, ForeignText, Image, ImageName, NameContent, Verification, VerifyExisting};

/// How many pieces of a blob may have been read and not yet passed on.
const READ_AHEAD: usize = 8;
/// For how long it need not be looked again what a tag shows before it is moved. Small images are copied in less.
const SHOWN_LATELY: Duration = Duration::from_secs(2);
/// How long nothing of a blob may come.
const STALL: Duration = Duration::from_secs(60);

/// A registry.
#[derive(Debug, Clone)]
pub struct RegistryStore {
    client: Arc<Client>,
    /// What is known of its API that lists referrers.
    referrers_api: Arc<ReferrersApi>,
    /// The tags of its repositories.
    tag_lists: Arc<TagLists>,
    /// Whether it is known to answer a range with the whole.
    without_ranges: Arc<AtomicBool>,
    /// Uploads that were dropped unfinished, and are to be aborted.
    dropped: Arc<Mutex<Vec<Dropped>>>,
    /// Uploads that the registry is being asked to begin.
    beginning: TaskTracker,
    /// How it takes blobs, as far as that is known, and whether it was read what earlier processes learned.
    learned: Arc<Learned>,
    recalled: Arc<OnceCell<()>>,
    /// Whether it is asked to mount blobs.
    mount_pause: Arc<MountPause>,
    /// Whether it tells by the beginning of an upload that it has the blob.
    self_mount: Arc<SelfMount>,
    /// What is done about blobs that it has already.
    verify_existing: VerifyExisting,
    /// Blobs that were found damaged: what is written in their place is read again.
    damaged: Damaged,
}

impl RegistryStore {
    /// The store in a registry.
    #[must_use]
    pub fn new(client: Client) -> Self {
        let beginning = TaskTracker::new();
        // Whoever waits, waits for those that there are.
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

    /// The same store, which does this about blobs that it has already.
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

    /// What a tag or a digest stands for; nothing if there is nothing.
    async fn find_root(&self, repository: &str, reference: &str) -> Result<Option<Descriptor>> {
        let scope = Scope::pull(repository);
        match self.head_manifest(repository, reference, scope.clone()).await? {
            Some(root) => Ok(Some(root)),
            // Some know by `GET` what they don't know by `HEAD`.
            None => {
                let found = self.get_manifest(repository, reference, scope, MAX_MANIFEST_BYTES).await?;
                Ok(found.map(|(root, _)| root))
            }
        }
    }

    /// Reads a blob, by credentials for `scope`.
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
            // Of what is compressed, a part is not one of the blob.
            StatusCode::PARTIAL_CONTENT if ranged && is_encoded(response.headers()) => {
                return Err(self.without_range(what));
            }
            StatusCode::PARTIAL_CONTENT if ranged => match ContentRange::of(response.headers()) {
                // A part that begins earlier holds it, too; one that ends earlier is read on after that.
                Some(part)
                    if (part.first..=part.last).contains(&from) && part.size.is_none_or(|size| size == blob.size) =>
                {
                    from - part.first
                }
                None if response.content_length() == Some(end - from) => 0,
                _ => return Err(self.without_range(what)),
            },
            // What it can't give by a range it may give as a whole.
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
        // Ends with the body, or when the receiver is gone.
        let decoder = Decoder::of(response.headers(), response.content_length(), Some(blob.size));
        tokio::spawn(pass_on(what, response, decoder, (skip, end - from), chunks));
        Ok(received)
    }

    /// A registry does not answer the range that it was asked for, and is asked for none from now on.
    fn without_range(&self, what: String) -> Error {
        self.without_ranges.store(true, Ordering::Relaxed);
        Error::Transport { what: what.into(), problem: "the answer is another range than was asked for".into() }
    }

    fn service(&self) -> String {
        self.client.location().base.to_string()
    }

    /// What an image's tag shows: by the digest that is wanted there, or was published there, if it is one of these.
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
        // A list without the image's own tag is out of date, or one of some tags alone.
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

/// Passes on as many bytes of an answer's content as `part` says, after the first that it says. It having fewer is an error.
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
                // Whoever no longer receives does not want to know.
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

/// The next bytes of an answer's content.
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
        name::locate(self.client.location(), spec)
    }

    fn name_of(&self, image: &Image) -> ImageName {
        image.reference()
    }

    fn url(&self, name: &ImageName) -> String {
        name::url(self.client.location(), name)
    }

    fn place(&self, name: &ImageName) -> Option<Place> {
        Some(Place { service: self.service(), path: self.at(name).repository })
    }

    /// Looks for an image that is not there, and begins an upload and gives it up.
    async fn probe(&self) -> Result<Option<u64>> {
        let nobody = ImageName(format!("appferry-probe-{}", uuid::Uuid::now_v7().simple()));
        self.root(&nobody).await?;
        self.try_to_write(&self.at(&nobody).repository).await?;
        Ok(None)
    }

    async fn prepare(&self, _stage: &Stage) -> Result<()> {
        Ok(())
    }

    /// The tag is looked at, and nothing below it: a registry may have lost parts of what others pushed.
    async fn is_complete(&self, stage: &Stage, tree: &Tree) -> Result<Option<Verification>> {
        let at = self.at(&stage.name);
        let Some((root, _)) = tree.manifests.last() else { return Ok(None) };
        let shown = self.shown(stage, root.digest).await?;
        stage.may_show(&self.url(&stage.name), root.digest, &shown)?;
        if stage.suspect || shown != NameContent::Root(root.digest) {
            return Ok(None);
        }
        let Some(vouched) = stage.published.verification_of(root.digest, self.verify_existing) else { return Ok(None) };
        // Where that can't be told, what becomes of them shows when they are written.
        let is_all = self.has_attachments(&at.repository, tree).await.unwrap_or(false);
        Ok(Some(vouched).filter(|_| is_all))
    }

    async fn look(&self, stage: &Stage, blob: &Descriptor) -> Result<Presence> {
        let at = self.at(&stage.name);
        let told = self.look_by_upload(stage, &at.repository, blob).await;
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
        let borrowed = self.borrow(stage, &at.repository, blob).await?;
        Ok(borrowed.map_or(Presence::Absent, Presence::Whole))
    }

    /// It is read, which takes as many round trips as asking for it.
    async fn has_manifest(&self, stage: &Stage, manifest: &Descriptor) -> Result<bool> {
        let at = self.at(&stage.name);
        let reference = manifest.digest.to_string();
        let there = match self
            .get_manifest(&at.repository, &reference, Scope::push(&at.repository), MAX_MANIFEST_BYTES)
            .await
        {
            // One that was killed as it took the manifest may not be able to tell before it has been sent again.
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
        // A registry that has a damaged blob of that digest may keep it, whatever it is sent.
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

    /// A tag and the digest that it stands for are written by one request.
    fn publishes_root(&self) -> bool {
        true
    }

    async fn attach(&self, stage: &Stage, attachment: &Attachment) -> Result<()> {
        self.put_attachment(stage, &self.at(&stage.name).repository, attachment).await
    }

    async fn list_referrers(&self, stage: &Stage, referrers: &ReferrersIndex) -> Result<()> {
        self.put_referrers(&self.at(&stage.name).repository, referrers).await
    }

    /// The tag moves last. No fence guards it: so the claim is asked for right before, and the tag is read right after.
    async fn publish(&self, stage: &Stage, tree: &Tree) -> Result<()> {
        let at = self.at(&stage.name);
        let Some((root, content)) = tree.manifests.last() else {
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
        // It may be one that can't be put again, not even with what it stands for.
        if there == NameContent::Root(root.digest) && read(&at.tag).await? == Some(root.digest) {
            return Ok(());
        }
        self.put_doubting(stage, &at.repository, &at.tag, root, content.clone()).await?;
        if read(&at.tag).await? == Some(root.digest) {
            return Ok(());
        }
        // Another writer's, or one that the registry had already, and that is damaged.
        match read(&root.digest.to_string()).await? {
            Some(actual) if actual != root.digest => self.made_good(stage, &at.repository, root.digest, actual),
            _ => Err(Error::Contended(name::url(self.client.location(), &stage.name).into())),
        }
    }

    async fn tidy(&self) {
        self.abort_dropped().await;
    }

    async fn abort(&self, session: &str) -> Result<()> {
        match self.session(session) {
            Some(upload) => self.abort_upload(&upload).await,
            None => Ok(()),
        }
    }
}
