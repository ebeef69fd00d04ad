//! `VerifyImage`: reads an image again, region by region, and writes down what is damaged.

use std::{pin::Pin, sync::Arc};

use futures_util::{Stream, StreamExt as _, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{RETRY_AFTER, permit::Permit, wire};
use crate::{
    contract::{
        Contract, Failure, Violation,
        v1::{self, Intactness},
    },
    db::{self, Db},
    domain::{Content, EcsStatus, Fault, FaultKind, ForeignText, Image, RegionId, RegionStatus},
    region::{self, Backend, Inspection, MovedName, Store},
};

/// Images that are read again at the same time.
const AT_ONCE: usize = 8;

/// Reads images again.
#[derive(Debug, Clone)]
pub struct Verifier {
    state: Db,
    backend: Backend,
    contract: &'static Contract,
    stop: CancellationToken,
    slots: Arc<Semaphore>,
}

/// What is found, a region at a time.
pub type Found = Pin<Box<dyn Stream<Item = Result<v1::VerifyImageResponse, Status>> + Send>>;

impl Verifier {
    pub fn new(state: Db, backend: Backend, contract: &'static Contract, stop: CancellationToken) -> Self {
        Self { state, backend, contract, stop, slots: Arc::new(Semaphore::new(AT_ONCE)) }
    }

    /// Reads an image again in the regions that are named, or in all that should have it.
    pub async fn verify(&self, body: v1::VerifyImageRequest, permit: Permit) -> Result<Found, Failure> {
        let id = wire::id("image_id", &body.image_id)?;
        let busy = || Failure::unavailable("Other images are being verified; repeat the call later", RETRY_AFTER);
        let slot = Arc::clone(&self.slots).try_acquire_owned().map_err(|_| busy())?;
        let (image, replicas) = self.state.image_get(&id).await?;
        let should_have = |region: &RegionId| {
            let replica = replicas.iter().find(|(known, _)| known == region).map(|(_, replica)| replica.status());
            *region == image.home || replica == Some(RegionStatus::Available)
        };
        let regions: Vec<(RegionId, bool)> = if body.region_ids.is_empty() {
            let all = self.state.regions().iter().filter(|region| should_have(region));
            all.map(|region| (region.clone(), true)).collect()
        } else {
            let mut named = Vec::new();
            for name in &body.region_ids {
                let region: RegionId = wire::id("region_ids", name)?;
                if !self.backend.has(&region) {
                    let description = format!("{region} is not configured");
                    return Err(Failure::invalid(Violation { field: "region_ids", description }));
                }
                if !named.iter().any(|(known, _)| *known == region) {
                    named.push((region.clone(), should_have(&region)));
                }
            }
            named
        };
        let work = Work { verifier: self.clone(), image, permit, _slot: slot };
        let each = stream::unfold((work, regions.into_iter()), |(work, mut regions)| async move {
            let (region, there) = regions.next()?;
            let found = work.one(&region, there).await;
            Some((found, (work, regions)))
        });
        // The stream ends with its first error.
        Ok(Box::pin(each.scan(false, |ended, item| {
            let item = if *ended { None } else { Some(item) };
            *ended |= item.as_ref().is_some_and(Result::is_err);
            std::future::ready(item)
        })))
    }
}

/// An image that is read again.
struct Work {
    verifier: Verifier,
    image: Image,
    permit: Permit,
    _slot: OwnedSemaphorePermit,
}

impl Work {
    async fn one(&self, region: &RegionId, should_have: bool) -> Result<v1::VerifyImageResponse, Status> {
        let answer = |intactness: Intactness, found: Inspection| v1::VerifyImageResponse {
            region_id: region.to_string(),
            intactness: intactness.into(),
            bytes_read: i64::try_from(found.bytes).unwrap_or(i64::MAX),
            problems: found.damages,
            warnings: found.warnings.to_texts(),
        };
        if !should_have || !self.verifier.backend.has(region) {
            return Ok(answer(Intactness::Absent, Inspection::default()));
        }
        let found = tokio::select! {
            found = self.read(region) => found,
            () = self.verifier.stop.cancelled() => {
                return Err(self.refuse(&Failure::unavailable("The service is shutting down; verify again", RETRY_AFTER)));
            }
        };
        match found {
            Err(error) => {
                let damages = vec![ForeignText::message(error).into()];
                Ok(answer(Intactness::Unreadable, Inspection { damages, ..Inspection::default() }))
            }
            Ok(found) if found.damages.is_empty() => {
                self.confirm(region, &found).await.map_err(|error| self.refuse(&error.into()))?;
                Ok(answer(Intactness::Intact, found))
            }
            Ok(found) => {
                let damages = &found.damages;
                tracing::error!(image = %self.image.id, %region, ?damages, "an image is damaged");
                if *region != self.image.home {
                    let message = format!("found damaged: {}", damages.join("; "));
                    let kind = match self.image.content {
                        Content::Blobs(_) => FaultKind::Store,
                        Content::Ecs => FaultKind::Ecs,
                    };
                    let fault = Fault::new(kind, message);
                    // One that has moved on meanwhile is being made good already.
                    let noted = self.verifier.state.replica_damaged(&self.image.id, region, fault).await;
                    if let Err(error) = noted {
                        return Err(self.refuse(&error.into()));
                    }
                }
                Ok(answer(Intactness::Damaged, found))
            }
        }
    }

    /// Records that the image was read and is intact, unless entries of its indexes may still appear. Images in ECS are
    /// not read.
    async fn confirm(&self, region: &RegionId, found: &Inspection) -> Result<(), db::Error> {
        let (state, image) = (&self.verifier.state, &self.image);
        let (Some(root), Some(store)) = (image.root(), self.verifier.backend.store(region)) else { return Ok(()) };
        if *region != image.home {
            if found.absent == 0 {
                state.publication_confirm(region, &store.name_of(image), root).await?;
            }
            // One that has moved on meanwhile was not what was read.
            let _ = state.replica_confirmed(&image.id, region).await?;
        }
        Ok(())
    }

    /// Reads the image again. What ECS keeps can't be read: it is asked whether it still has it.
    async fn read(&self, region: &RegionId) -> Result<Inspection, Box<dyn std::error::Error + Send + Sync>> {
        let image = &self.image;
        let is_home = *region == image.home;
        let damaged = |problem: String| Ok(Inspection { damages: vec![problem], ..Inspection::default() });
        match (&self.verifier.backend, &image.content) {
            (Backend::Stores(stores), Content::Blobs(root)) => {
                let store = stores.get(region).ok_or("it has no store")?;
                // At home an image is read by its digest, whatever its name shows: people may push there.
                let (name, moved) = if is_home {
                    (image.source.clone(), MovedName::Warns)
                } else {
                    (store.name_of(image), MovedName::Damages)
                };
                Ok(region::verify(Arc::<dyn Store>::clone(store), &name, root, &image.absent, moved).await?)
            }
            (Backend::Ecs(ecs), Content::Ecs) => {
                let made = self.verifier.state.ecs_copies(&[&image.id]).await?;
                let id = if is_home {
                    image.source.0.parse()?
                } else {
                    made.get(&(image.id.clone(), region.clone())).cloned().ok_or("its id there is not known")?
                };
                match ecs.image(region, &id).await?.map(|shown| shown.status) {
                    Some(EcsStatus::Available) => Ok(Inspection::default()),
                    Some(EcsStatus::Creating) => damaged(format!("{id} is being made anew")),
                    Some(EcsStatus::Unusable(status)) => damaged(format!("{id} is {status}")),
                    None => damaged(format!("ECS lists no image {id}")),
                }
            }
            _ => damaged("it is of another kind than the regions".to_owned()),
        }
    }

    fn refuse(&self, failure: &Failure) -> Status {
        failure.status(&self.verifier.contract.errors, self.permit.request_id())
    }
}
