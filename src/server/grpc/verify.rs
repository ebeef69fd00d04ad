//! `VerifyImage`: reads an image's content again in each region, and marks damaged copies as failed.

use std::{error::Error, pin::Pin, sync::Arc};

use futures_util::{Stream, StreamExt as _, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{convert, handle::status, permit::Permit};
use crate::{
    contract::{
        ApiError, Contract, Violation,
        v1::{Intactness, VerifyImageRequest, VerifyImageResponse},
    },
    db::{self, Db},
    domain::{Content, EcsStatus, Fault, FaultKind, ForeignText, Image, RegionId, RegionStatus},
    server::{Dependencies, RETRY_AFTER},
    storage::{self, Backend, Inspection, MovedName, Store},
};

/// Maximum number of images that are verified at the same time.
const MAX_VERIFICATIONS: usize = 8;

/// Handles `VerifyImage`.
#[derive(Debug, Clone)]
pub struct Verifier {
    state: Db,
    backend: Backend,
    contract: &'static Contract,
    stop: CancellationToken,
    slots: Arc<Semaphore>,
}

/// The results of a verification, one per region. The stream ends after the first error.
pub type VerificationStream = Pin<Box<dyn Stream<Item = Result<VerifyImageResponse, Status>> + Send>>;

impl Verifier {
    pub fn new(dependencies: &Dependencies) -> Self {
        let Dependencies { state, backend, contract, stop, .. } = dependencies.clone();
        Self { state, backend, contract, stop, slots: Arc::new(Semaphore::new(MAX_VERIFICATIONS)) }
    }

    /// Verifies an image in the requested regions, or in all regions that should have it.
    pub async fn verify(&self, request: VerifyImageRequest, permit: Permit) -> Result<VerificationStream, ApiError> {
        let id = convert::id("image_id", &request.image_id)?;
        let busy = || ApiError::unavailable("Other images are being verified; repeat the call later", RETRY_AFTER);
        let slot = Arc::clone(&self.slots).try_acquire_owned().map_err(|_| busy())?;
        let (image, replicas) = self.state.image_get(&id).await?;
        let is_expected = |region: &RegionId| {
            let status = replicas.iter().find(|(known, _)| known == region).map(|(_, replica)| replica.status());
            *region == image.home || status == Some(RegionStatus::Available)
        };
        let regions = self.regions(&request.region_ids, is_expected)?;
        let run = VerificationRun { verifier: self.clone(), image, permit, _slot: slot };
        let results = stream::unfold((run, regions.into_iter()), |(run, mut regions)| async move {
            let (region, is_expected) = regions.next()?;
            let result = run.verify_region(&region, is_expected).await;
            Some((result, (run, regions)))
        });
        Ok(Box::pin(results.scan(false, |has_failed, result| {
            let item = if *has_failed { None } else { Some(result) };
            *has_failed |= item.as_ref().is_some_and(Result::is_err);
            std::future::ready(item)
        })))
    }

    /// Returns the regions to verify. The boolean is true for a region that should have the image.
    fn regions(
        &self,
        names: &[String],
        is_expected: impl Fn(&RegionId) -> bool,
    ) -> Result<Vec<(RegionId, bool)>, ApiError> {
        if names.is_empty() {
            let expected = self.state.regions().iter().filter(|region| is_expected(region));
            return Ok(expected.map(|region| (region.clone(), true)).collect());
        }
        let mut regions: Vec<(RegionId, bool)> = Vec::new();
        for name in names {
            let region: RegionId = convert::id("region_ids", name)?;
            if !self.backend.has(&region) {
                let description = format!("{region} is not configured");
                return Err(ApiError::invalid(Violation { field: "region_ids", description }));
            }
            if !regions.iter().any(|(earlier, _)| *earlier == region) {
                regions.push((region.clone(), is_expected(&region)));
            }
        }
        Ok(regions)
    }
}

/// The verification of one image.
struct VerificationRun {
    verifier: Verifier,
    image: Image,
    permit: Permit,
    _slot: OwnedSemaphorePermit,
}

impl VerificationRun {
    async fn verify_region(&self, region: &RegionId, is_expected: bool) -> Result<VerifyImageResponse, Status> {
        if !is_expected || !self.verifier.backend.has(region) {
            return Ok(response(region, Intactness::Absent, Inspection::default()));
        }
        let inspection = tokio::select! {
            inspection = self.inspect(region) => inspection,
            () = self.verifier.stop.cancelled() => {
                let error = ApiError::unavailable("The service is shutting down; verify again", RETRY_AFTER);
                return Err(self.status(&error));
            }
        };
        match inspection {
            Err(error) => {
                let damages = vec![ForeignText::message(error).into()];
                Ok(response(region, Intactness::Unreadable, Inspection { damages, ..Inspection::default() }))
            }
            Ok(inspection) if inspection.damages.is_empty() => {
                self.confirm(region, &inspection).await.map_err(|error| self.status(&error.into()))?;
                Ok(response(region, Intactness::Intact, inspection))
            }
            Ok(inspection) => {
                self.report_damage(region, &inspection.damages).await.map_err(|error| self.status(&error.into()))?;
                Ok(response(region, Intactness::Damaged, inspection))
            }
        }
    }

    /// Logs damage and, outside of the home region, marks the copy as failed.
    async fn report_damage(&self, region: &RegionId, damages: &[String]) -> Result<(), db::Error> {
        let is_home = *region == self.image.home;
        tracing::error!(
            image = %self.image.id, %region, is_home, ?damages,
            "image is damaged; the copy is marked as failed unless it is in the home region"
        );
        if is_home {
            return Ok(());
        }
        let message = format!("found damaged: {}", damages.join("; "));
        let kind = match self.image.content {
            Content::Blobs(_) => FaultKind::Store,
            Content::Ecs => FaultKind::Ecs,
        };
        // No effect if the replica's state has changed in the meantime: then the copy is already being repaired.
        let _ = self.verifier.state.replica_damaged(&self.image.id, region, Fault::new(kind, message)).await?;
        Ok(())
    }

    /// Records that the image was read and is intact. A publication is not recorded while entries of its indexes are
    /// absent, because they may still appear. Images of ECS can't be read, so nothing is recorded for them.
    async fn confirm(&self, region: &RegionId, inspection: &Inspection) -> Result<(), db::Error> {
        let (state, image) = (&self.verifier.state, &self.image);
        let (Some(root), Some(store)) = (image.root(), self.verifier.backend.store(region)) else { return Ok(()) };
        if *region != image.home {
            if inspection.absent == 0 {
                state.publication_confirm(region, &store.name_of(image), root).await?;
            }
            // No effect if the replica's state has changed in the meantime: then another copy was read.
            let _ = state.replica_confirmed(&image.id, region).await?;
        }
        Ok(())
    }

    /// Reads the image's content. For ECS, whose images can't be read, returns whether ECS still lists the image.
    async fn inspect(&self, region: &RegionId) -> Result<Inspection, Box<dyn Error + Send + Sync>> {
        let image = &self.image;
        let is_home = *region == image.home;
        let damaged = |problem: String| Ok(Inspection { damages: vec![problem], ..Inspection::default() });
        match (&self.verifier.backend, &image.content) {
            (Backend::Stores(stores), Content::Blobs(root)) => {
                let store = stores.get(region).ok_or("the region has no store")?;
                // In the home region, users may push another image to the name; the image is read by its digest.
                let (name, moved) = if is_home {
                    (image.source.clone(), MovedName::Warns)
                } else {
                    (store.name_of(image), MovedName::Damages)
                };
                Ok(storage::verify(Arc::<dyn Store>::clone(store), &name, root, &image.absent, moved).await?)
            }
            (Backend::Ecs(ecs), Content::Ecs) => {
                let copies = self.verifier.state.ecs_copies(&[&image.id]).await?;
                let id = if is_home {
                    image.source.0.parse()?
                } else {
                    let copy = copies.get(&(image.id.clone(), region.clone()));
                    copy.cloned().ok_or("the image's id in the region is not recorded")?
                };
                match ecs.image(region, &id).await?.map(|image| image.status) {
                    Some(EcsStatus::Available) => Ok(Inspection::default()),
                    Some(EcsStatus::Creating) => damaged(format!("{id} is being created again")),
                    Some(EcsStatus::Unusable(status)) => damaged(format!("{id} is {status}")),
                    None => damaged(format!("ECS lists no image {id}")),
                }
            }
            _ => damaged("the image is not of the kind that the configured regions hold".to_owned()),
        }
    }

    fn status(&self, error: &ApiError) -> Status {
        status(error, self.verifier.contract, self.permit.request_id())
    }
}

fn response(region: &RegionId, intactness: Intactness, inspection: Inspection) -> VerifyImageResponse {
    VerifyImageResponse {
        region_id: region.to_string(),
        intactness: intactness.into(),
        bytes_read: convert::count(inspection.bytes),
        problems: inspection.damages,
        warnings: inspection.warnings.to_texts(),
    }
}
