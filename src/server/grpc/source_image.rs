//! Looks up an image that is to be registered: its name, content and size in the home region.

use super::convert;
use crate::{
    contract::{
        ApiError, Violation,
        v1::{CommonErrorCode, ErrorCode},
    },
    domain::{Content, Digest, EcsImageId, FaultKind, ImageName, RegionId},
    storage::{self, Backend, CachingSource, Ecs, ImageSpec, Located, ManifestCache, ManifestGraph, Measure, Store},
};

const GIBIBYTE: u64 = 1 << 30;

/// An image in its home region.
#[derive(Debug)]
pub struct SourceImage {
    /// The image's name in the home region.
    pub name: ImageName,
    /// The root of the image, or a marker for disks inside ECS.
    pub content: Content,
    /// Size in bytes.
    pub size: u64,
    /// Entries of the image's indexes that are not in the home region.
    pub absent: Vec<Digest>,
}

impl SourceImage {
    /// Looks up an image in the home region.
    pub async fn find(
        backend: &Backend,
        home: &RegionId,
        spec: &ImageSpec,
        manifests: &ManifestCache,
    ) -> Result<Self, ApiError> {
        match backend {
            Backend::Stores(stores) => {
                let store = stores.get(home).ok_or_else(|| ApiError::new(CommonErrorCode::InternalError, ""))?;
                Self::in_store(&**store, home, spec, manifests).await
            }
            Backend::Ecs(ecs) => Self::in_ecs(ecs, home, spec).await,
        }
    }

    async fn in_store(
        store: &dyn Store,
        home: &RegionId,
        spec: &ImageSpec,
        manifests: &ManifestCache,
    ) -> Result<Self, ApiError> {
        let Located { name, digest } = store.locate(spec).map_err(|description| invalid_spec(spec, description))?;
        let failed = |error| store_error(home, &error);
        let root = match digest {
            None => store.root(&name).await,
            Some(digest) => store.root_of(&name, digest).await,
        };
        let root = root.map_err(failed)?.ok_or_else(|| {
            let digest = digest.map(|digest| format!("@{digest}")).unwrap_or_default();
            let cause = format!("The home region {home} has no image {name}{digest}.");
            ApiError::new(ErrorCode::ImageNotFound, cause).in_regions([home])
        })?;
        let caching = CachingSource { source: store, manifests };
        let Measure { bytes, absent } = ManifestGraph::measure(&caching, &name, &root).await.map_err(failed)?;
        Ok(Self { name, content: Content::Blobs(root), size: bytes, absent })
    }

    async fn in_ecs(ecs: &Ecs, home: &RegionId, spec: &ImageSpec) -> Result<Self, ApiError> {
        let ImageSpec::Vm(id) = spec else {
            return Err(invalid_spec(spec, "ECS regions hold virtual machine images only".to_owned()));
        };
        let id: EcsImageId = id.parse().map_err(|description| invalid_spec(spec, description))?;
        let image = ecs.source(home, &id).await.map_err(|error| store_error(home, &error.into()))?;
        let name = ImageName(image.id.to_string());
        let size = image.gibibytes.saturating_mul(GIBIBYTE);
        Ok(Self { name, content: Content::Ecs, size, absent: Vec::new() })
    }
}

fn invalid_spec(spec: &ImageSpec, description: String) -> ApiError {
    let field = match spec {
        ImageSpec::Vm(_) => "vm_image_spec.image_id",
        ImageSpec::Container(_) => "container_image_spec.registry_url",
    };
    ApiError::invalid(Violation { field, description })
}

fn store_error(home: &RegionId, error: &storage::Error) -> ApiError {
    let kind = if error.is_missing() { FaultKind::ImageNotFound } else { error.fault_kind() };
    ApiError::new(convert::fault_code(kind), format!("the home region {home}: {error}")).in_regions([home])
}
