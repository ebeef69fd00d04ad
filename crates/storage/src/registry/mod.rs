//! Storage of images in a registry with the OCI distribution API (specification 1.1). An image is a tag of a repository
//! below the namespace.

mod attachments;
mod blob_reader;
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
mod publish;
mod reference;
mod referrers_api;
mod self_mount;
mod source;
mod store;
mod tag_list;
mod token;
mod upload;
mod upload_mode;
mod upload_part;
mod upload_session;

use std::sync::{Arc, Mutex, atomic::AtomicBool};

use domain::{ImageName, VerifyExisting};
use tokio::sync::OnceCell;
use tokio_util::task::TaskTracker;

pub use challenge::Challenge;
pub use client::Client;
pub use credential_helper::{Helper, HelperError, Program};
pub use credentials::{CredentialProvider, CredentialSource, Credentials, Error as CredentialsError};
pub use docker_config::{DockerConfigError, Entry as DockerEntry, RegistryKey, read_now as read_docker_config};
pub use self_mount::WaitingUploads;

use self::{
    existing::Damaged, mount::MountPause, reference::Reference, referrers_api::ReferrersApi, self_mount::SelfMount,
    tag_list::TagLists, upload_mode::Learned, upload_session::Dropped,
};

/// A registry as source and store of images.
#[derive(Debug, Clone)]
pub struct RegistryStore {
    client: Arc<Client>,
    referrers_api: Arc<ReferrersApi>,
    tag_lists: Arc<TagLists>,
    /// Whether the registry ignores range requests.
    without_ranges: Arc<AtomicBool>,
    /// Uploads that were dropped unfinished and have to be aborted.
    dropped: Arc<Mutex<Vec<Dropped>>>,
    /// Tasks that are starting uploads.
    beginning: TaskTracker,
    /// Upload habits of the registry, and whether the stored habits were loaded.
    learned: Arc<Learned>,
    recalled: Arc<OnceCell<()>>,
    mount_pause: Arc<MountPause>,
    /// Whether the start of an upload reveals that the blob exists.
    self_mount: Arc<SelfMount>,
    verify_existing: VerifyExisting,
    /// Blobs that were found damaged. Their replacements are read back.
    damaged: Damaged,
}

impl RegistryStore {
    /// Creates a store that has learned nothing about the registry yet, with the default policy for existing blobs.
    #[must_use]
    pub fn new(client: Client) -> Self {
        let beginning = TaskTracker::new();
        // A closed tracker lets `wait` return once the current tasks have ended.
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

    /// Returns the same store with this policy for verifying existing blobs.
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

    fn service(&self) -> String {
        self.client.location().base.to_string()
    }
}
