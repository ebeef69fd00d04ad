//! The stores of the regions' images, behind one trait. Only this crate knows how bytes are stored. It does not depend
//! on the API, the database or protobuf.

mod activity;
mod archive;
mod attachments;
mod bounded_source;
mod budget;
mod digest_reference;
mod dir;
mod disk;
pub mod ecs;
mod egress;
mod entry;
mod error;
mod file_range;
mod graph_walk;
mod http_response;
mod journal;
mod layout;
mod location;
mod manifest_cache;
mod manifest_graph;
mod mount_sources;
mod neighbors;
mod object;
mod references;
mod referrers;
mod registry;
mod request_span;
mod rollback;
mod secret_file;
pub mod server_trust;
mod space;
pub mod ssrf_guard;
mod store;
mod verify;

use std::{collections::BTreeMap, sync::Arc};

use domain::RegionId;

pub use activity::Activity;
pub use archive::Archive;
pub use bounded_source::BoundedSource;
pub use budget::MAX_MANIFEST_BYTES;
pub use digest_reference::split_digest;
pub use dir::DirStore;
pub use disk::DiskFile;
pub use ecs::Ecs;
pub use egress::{Egress, Exception, ExceptionError, ForwardProxy, NotAdmitted, ProxyTrial};
pub use entry::{Entry, EntryError};
pub use error::{Error, Result, Verdict};
pub use journal::{Journal, Memory, Witness};
pub use location::{Location, LocationError, ObjectLocation, Provider, RegistryLocation, is_loopback};
pub use manifest_cache::{CachingSource, ManifestCache};
pub use manifest_graph::{Attachment, MANIFEST_TYPE, ManifestGraph, Measure};
pub use mount_sources::MountSources;
pub use neighbors::Neighbors;
pub use object::{Access, AccessKeys, ObjectStore, ProfileError, Refused, S3Profile, open as open_bucket};
pub use referrers::{Listing, ReferrersIndex};
pub use registry::{
    Challenge, Client as RegistryClient, CredentialProvider, CredentialSource, Credentials, CredentialsError,
    DockerConfigError, DockerEntry, Helper, HelperError, Program, RegistryKey, RegistryStore, read_docker_config,
};
pub use rollback::{ReplacedIndex, Rollback};
pub use secret_file::{SecretFileError, SecretSource};
pub use space::Reservation;
pub use store::{BlobChunks, Chunk, ImageSpec, Located, Place, Presence, SeenAt, Source, Stage, Store, StoreKind};
pub use verify::{Inspection, MovedName, verify};

/// The size of a chunk of a blob, in bytes.
pub const CHUNK_BYTES: usize = 1 << 20;

/// The storage of all configured regions.
#[derive(Debug, Clone)]
pub enum Backend {
    /// Stores of blobs, which this service copies.
    Stores(Stores),
    /// Regions of Alibaba Cloud, where ECS copies the images.
    Ecs(Ecs),
}

impl Backend {
    /// Returns the store of a region, or `None` if the region has none.
    #[must_use]
    pub fn store(&self, region: &RegionId) -> Option<&Arc<dyn Store>> {
        match self {
            Self::Stores(stores) => stores.get(region),
            Self::Ecs(_) => None,
        }
    }

    /// Returns whether the region is configured.
    #[must_use]
    pub fn has(&self, region: &RegionId) -> bool {
        match self {
            Self::Stores(stores) => stores.get(region).is_some(),
            Self::Ecs(ecs) => ecs.has(region),
        }
    }

    /// Returns the regions, sorted, each with the name of its kind.
    #[must_use]
    pub fn kinds(&self) -> Vec<(&RegionId, &'static str)> {
        match self {
            Self::Stores(stores) => stores.iter().map(|(region, store)| (region, store.kind().as_str())).collect(),
            Self::Ecs(ecs) => ecs.regions().map(|region| (region, "ecs")).collect(),
        }
    }
}

/// The stores of all configured regions. Clones share them.
#[derive(Debug, Clone)]
pub struct Stores(Arc<BTreeMap<RegionId, Arc<dyn Store>>>);

impl Stores {
    /// Creates the set from the regions and their stores.
    #[must_use]
    pub fn new(stores: impl IntoIterator<Item = (RegionId, Arc<dyn Store>)>) -> Self {
        Self(Arc::new(stores.into_iter().collect()))
    }

    /// Returns the store of a region, or `None` if the region is not configured.
    #[must_use]
    pub fn get(&self, region: &RegionId) -> Option<&Arc<dyn Store>> {
        self.0.get(region)
    }

    /// Returns the regions, sorted, each with its store.
    pub fn iter(&self) -> impl Iterator<Item = (&RegionId, &Arc<dyn Store>)> {
        self.0.iter()
    }
}
