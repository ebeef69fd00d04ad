//! What an image is that is to be registered: where the home region has it, and of what it consists.

use crate::{
    contract::{
        Failure, Violation,
        v1::{CommonErrorCode, ErrorCode},
    },
    domain::{Content, Digest, EcsImageId, FaultKind, ImageKind, ImageName, RegionId},
    region::{self, Backend, Ecs, ImageSpec, Located, Manifests, Measure, RememberingSource, Store, Tree},
};

use super::wire;

/// Bytes of a GiB.
const GIBIBYTE: u64 = 1 << 30;

/// What the home region has.
#[derive(Debug)]
pub struct Origin {
    /// Its name there.
    pub source: ImageName,
    /// What it consists of.
    pub content: Content,
    /// Its size in bytes.
    pub size: u64,
    /// Entries of its indexes that are not there.
    pub absent: Vec<Digest>,
}

impl Origin {
    /// Looks an image up in the home region.
    pub async fn find(
        backend: &Backend,
        home: &RegionId,
        spec: &ImageSpec,
        manifests: &Manifests,
    ) -> Result<Self, Failure> {
        match backend {
            Backend::Stores(stores) => {
                let store = stores.get(home).ok_or_else(|| Failure::new(CommonErrorCode::InternalError, ""))?;
                Self::blobs(&**store, home, spec, manifests).await
            }
            Backend::Ecs(ecs) => Self::ecs(ecs, home, spec).await,
        }
    }

    async fn blobs(
        store: &dyn Store,
        home: &RegionId,
        spec: &ImageSpec,
        manifests: &Manifests,
    ) -> Result<Self, Failure> {
        let Located { name: source, digest } =
            store.locate(spec).map_err(|description| misplaced(spec, description))?;
        let failed = |error| failed(home, &error);
        let root = match digest {
            None => store.root(&source).await,
            Some(digest) => store.root_of(&source, digest).await,
        };
        let root = root.map_err(failed)?.ok_or_else(|| {
            let digest = digest.map(|digest| format!("@{digest}")).unwrap_or_default();
            let cause = format!("The home region {home} has no image {source}{digest}.");
            Failure::new(ErrorCode::ImageNotFound, cause).in_regions([home])
        })?;
        let remembering = RememberingSource { source: store, manifests };
        let Measure { bytes, absent } = Tree::measure(&remembering, &source, &root).await.map_err(failed)?;
        Ok(Self { source, content: Content::Blobs(root), size: bytes, absent })
    }

    async fn ecs(ecs: &Ecs, home: &RegionId, spec: &ImageSpec) -> Result<Self, Failure> {
        let ImageSpec::Vm(id) = spec else {
            return Err(misplaced(spec, "regions of ECS hold images of virtual machines only".to_owned()));
        };
        let id: EcsImageId = id.parse().map_err(|description| misplaced(spec, description))?;
        let image = ecs.source(home, &id).await.map_err(|error| failed(home, &error.into()))?;
        let source = ImageName(image.id.to_string());
        let size = image.gibibytes.saturating_mul(GIBIBYTE);
        Ok(Self { source, content: Content::Ecs, size, absent: Vec::new() })
    }
}

/// The field that names an image of a kind.
pub fn field(kind: ImageKind) -> &'static str {
    match kind {
        ImageKind::Vm => "vm_image_spec.image_id",
        ImageKind::Container => "container_image_spec.registry_url",
    }
}

fn misplaced(spec: &ImageSpec, description: String) -> Failure {
    let kind = match spec {
        ImageSpec::Vm(_) => ImageKind::Vm,
        ImageSpec::Container(_) => ImageKind::Container,
    };
    Failure::invalid(Violation { field: field(kind), description })
}

fn failed(home: &RegionId, error: &region::Error) -> Failure {
    let kind = if error.is_missing() { FaultKind::ImageNotFound } else { error.fault_kind() };
    Failure::new(wire::fault_code(kind), format!("the home region {home}: {error}")).in_regions([home])
}
