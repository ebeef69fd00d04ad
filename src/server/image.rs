//! `ImageService`: wire to domain, the home region's store where an image is registered, and the state.

use std::{collections::BTreeMap, time::Duration};

use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, async_trait};
use tracing::Span;

use super::{
    Parts,
    origin::Origin,
    page,
    permit::Permit,
    verify::{Found, Verifier},
    wire,
};
use crate::{
    contract::{
        Contract, Failure, Violation,
        v1::{self, add_image_request, image_service_server::ImageService},
    },
    db::{self, Db, ImageFilter, NameConflictPolicy},
    domain::{Clock, Content, Digest, EcsImageId, Image, ImageId, ImageKind, RegionId, Replica, Targets},
    region::{Backend, ImageSpec, Manifests},
};

const MAX_NAME: usize = 128;
const MAX_VERSION: usize = 64;
const MAX_DESCRIPTION: usize = 1_024;
/// The most values of one filter.
const MAX_VALUES: usize = 100;
/// Images that are looked at in the home region at the same time, to be registered: each has its manifests in memory.
const LOOKS_AT_ONCE: usize = 4;
/// Longest wait for the home region's answer in `GetImage`, which does without it.
const SHOWN: Duration = Duration::from_secs(2);

/// See the module.
#[derive(Debug)]
pub struct Images {
    state: Db,
    backend: Backend,
    contract: &'static Contract,
    clock: Clock,
    verifier: Verifier,
    /// Lets so many images be looked at in the home region at the same time.
    looking: Semaphore,
    /// What was read of them.
    manifests: Manifests,
}

impl Images {
    pub fn new(parts: &Parts) -> Self {
        Self {
            state: parts.state.clone(),
            backend: parts.backend.clone(),
            contract: parts.contract,
            clock: parts.clock.clone(),
            verifier: Verifier::new(parts.state.clone(), parts.backend.clone(), parts.contract, parts.stop.clone()),
            looking: Semaphore::new(LOOKS_AT_ONCE),
            manifests: Manifests::default(),
        }
    }

    fn refuse(&self, permit: &Permit, failure: impl Into<Failure>) -> Status {
        failure.into().status(&self.contract.errors, permit.request_id())
    }

    /// What ECS knows some images by in its regions.
    async fn made(&self, images: &[&ImageId]) -> db::Result<BTreeMap<(ImageId, RegionId), EcsImageId>> {
        match self.backend {
            Backend::Stores(_) => Ok(BTreeMap::new()),
            Backend::Ecs(_) => self.state.ecs_copies(images).await,
        }
    }

    fn image(
        &self,
        image: &Image,
        replicas: &[(RegionId, Replica)],
        made: &BTreeMap<(ImageId, RegionId), EcsImageId>,
        asked: &Targets,
        shown_at_home: Option<Digest>,
    ) -> v1::Image {
        // A home region that is no longer configured has no store that could tell.
        let store = self.backend.store(&image.home);
        let url = store.map_or_else(|| image.source.to_string(), |store| store.url(&image.source));
        let id_in = |region: &RegionId| match &image.content {
            Content::Ecs if *region == image.home => Some(image.source.to_string()),
            Content::Ecs => made.get(&(image.id.clone(), region.clone())).map(EcsImageId::to_string),
            Content::Blobs(_) => None,
        };
        wire::image(image, url, replicas, id_in, self.state.regions(), asked, shown_at_home)
    }

    /// The digest that an image's name shows in its home region, if it is another one than the image's.
    async fn shown_at_home(&self, image: &Image) -> Option<Digest> {
        let (own, store) = (image.root()?, self.backend.store(&image.home)?);
        match tokio::time::timeout(SHOWN, store.root_as(&image.source, own)).await {
            Ok(Ok(shown)) => shown.map(|shown| shown.digest).filter(|shown| *shown != own),
            Ok(Err(error)) => {
                tracing::debug!(%error, image = %image.id, "the home region could not be asked what it shows");
                None
            }
            Err(_) => None,
        }
    }

    /// The regions where an image has a name of its own, which no other image may have.
    fn regions_by_name(&self, image: &Image) -> Vec<RegionId> {
        let Backend::Stores(stores) = &self.backend else { return Vec::new() };
        let reference = image.reference();
        let named = stores.iter().filter(|(_, store)| store.name_of(image) == reference);
        named.map(|(region, _)| region.clone()).collect()
    }

    async fn get(&self, body: v1::GetImageRequest) -> Result<v1::Image, Failure> {
        let id: ImageId = wire::id("image_id", &body.image_id)?;
        let kind = wire::kind_filter(body.image_type)?;
        let asked = wire::targets("additional_region_ids", &body.additional_region_ids, self.state.regions())?;
        let (image, replicas) = self.state.image_get(&id).await?;
        of_kind(&image, kind)?;
        let made = self.made(&[&image.id]).await?;
        let shown = self.shown_at_home(&image).await;
        Ok(self.image(&image, &replicas, &made, &asked, shown))
    }

    async fn list(&self, body: v1::ListImagesRequest) -> Result<v1::ListImagesResponse, Failure> {
        let filter = ImageFilter {
            ids: several("image_ids", &body.image_ids, wire::id)?,
            names: several("names", &body.names, |field, name| wire::text(field, name.to_owned(), MAX_NAME, true))?,
            kind: wire::kind_filter(body.image_type)?,
            latest_only: body.latest_only,
        };
        let after: Option<ImageId> = page::after(&body.page_token)?;
        let span = db::PageRange { skip: page::skip(body.skip)?, limit: page::size(body.page_size)? };
        let found = self.state.image_list(&filter, after.as_ref(), span, body.count_all).await?;
        let made = self.made(&found.images.iter().map(|(image, _)| &image.id).collect::<Vec<_>>()).await?;
        let image = |(image, replicas): &(Image, Vec<_>)| self.image(image, replicas, &made, &Targets::All, None);
        Ok(v1::ListImagesResponse {
            next_page_token: page::next(found.images.last().map(|(image, _)| &image.id), found.more),
            images: found.images.iter().map(image).collect(),
            total_size: found.total.map(wire::bytes).unwrap_or_default(),
        })
    }

    async fn versions(&self, body: v1::GetAppVersionsRequest) -> Result<v1::GetAppVersionsResponse, Failure> {
        let names = vec![wire::text("app_name", body.app_name, MAX_NAME, true)?];
        let filter = ImageFilter { names, kind: wire::kind_filter(body.image_type)?, ..ImageFilter::default() };
        let span = db::PageRange { skip: page::skip(body.skip)?, limit: page::size(body.page_size)? };
        let (images, total) = self.state.image_versions(&filter, span).await?;
        let version =
            |image: Image| v1::AppVersion { image_id: image.id.to_string(), name: image.name, version: image.version };
        Ok(v1::GetAppVersionsResponse {
            app_versions: images.into_iter().map(version).collect(),
            total_size: wire::bytes(total),
        })
    }

    async fn remove(&self, body: v1::RemoveImageRequest) -> Result<(), Failure> {
        let id: ImageId = wire::id("image_id", &body.image_id)?;
        if let Some(kind) = wire::kind_filter(body.image_type)? {
            of_kind(&self.state.image_get(&id).await?.0, Some(kind))?;
        }
        Ok(self.state.image_remove(&id).await?)
    }

    async fn add(&self, body: v1::AddImageRequest) -> Result<ImageId, Failure> {
        let name = wire::text("name", body.name, MAX_NAME, true)?;
        let version = wire::text("image_version", body.image_version, MAX_VERSION, false)?;
        let description = wire::lines("description", body.description, MAX_DESCRIPTION)?;
        let (kind, spec) = spec(body.image_type, body.image_spec)?;
        let id = match body.image_id.as_str() {
            "" => kind
                .new_id(|bound| rand::random_range(0..bound))
                .map_err(|error| Failure::invalid(Violation { field: "image_id", description: error.to_string() }))?,
            id => wire::id("image_id", id)?,
        };
        Span::current().record("appferry.app_id", id.as_str());

        let home = self.state.regions().home();
        let Origin { source, content, size, absent } = {
            // The semaphore is never closed, and the call's deadline bounds the wait.
            let _turn = self.looking.acquire().await;
            Origin::find(&self.backend, home, &spec, &self.manifests).await?
        };
        let image = Image {
            id: id.clone(),
            name,
            version,
            description,
            kind,
            source,
            home: home.clone(),
            content,
            size,
            created_at: self.clock.now(),
            superseded_by: None,
            absent,
        };
        let regions = self.regions_by_name(&image);
        let taken = if body.supersede { NameConflictPolicy::Supersede(&regions) } else { NameConflictPolicy::Reject };
        self.state.image_add_as(&image, taken).await?;
        Ok(id)
    }
}

/// An image of another kind than the one that was asked for is none.
fn of_kind(image: &Image, kind: Option<ImageKind>) -> Result<(), Failure> {
    match kind {
        Some(kind) if kind != image.kind => Err(db::Error::ImageNotFound(image.id.clone()).into()),
        _ => Ok(()),
    }
}

/// Reads each of several values of a filter.
fn several<T>(
    field: &'static str,
    values: &[String],
    read: impl Fn(&'static str, &str) -> Result<T, Failure>,
) -> Result<Vec<T>, Failure> {
    if values.len() > MAX_VALUES {
        let description = format!("there are {}, the most is {MAX_VALUES}", values.len());
        return Err(Failure::invalid(Violation { field, description }));
    }
    values.iter().map(|value| read(field, value)).collect()
}

fn spec(image_type: i32, spec: Option<add_image_request::ImageSpec>) -> Result<(ImageKind, ImageSpec), Failure> {
    use add_image_request::ImageSpec::{ContainerImageSpec, VmImageSpec};
    let invalid = |field, description: &str| Failure::invalid(Violation { field, description: description.to_owned() });
    match (v1::ImageType::try_from(image_type), spec) {
        (Ok(v1::ImageType::Vm), Some(VmImageSpec(spec))) => Ok((ImageKind::Vm, ImageSpec::Vm(spec.image_id))),
        (Ok(v1::ImageType::Container), Some(ContainerImageSpec(spec))) => {
            Ok((ImageKind::Container, ImageSpec::Container(spec.registry_url)))
        }
        (Ok(v1::ImageType::Vm), _) => Err(invalid("vm_image_spec", "it is missing, and image_type is IMAGE_TYPE_VM")),
        (Ok(v1::ImageType::Container), _) => {
            Err(invalid("container_image_spec", "it is missing, and image_type is IMAGE_TYPE_CONTAINER"))
        }
        (Ok(v1::ImageType::Unspecified), _) => Err(invalid("image_type", "it is missing")),
        (Err(_), _) => Err(invalid("image_type", &format!("{image_type} is no ImageType"))),
    }
}

#[async_trait]
impl ImageService for Images {
    async fn add_image(
        &self,
        mut request: Request<v1::AddImageRequest>,
    ) -> Result<Response<v1::AddImageResponse>, Status> {
        let permit = Permit::take(&mut request)?;
        let body = request.into_inner();
        let id = self.add(body).await.map_err(|failure| self.refuse(&permit, failure))?;
        Ok(Response::new(v1::AddImageResponse { image_id: id.to_string() }))
    }

    async fn get_image(
        &self,
        mut request: Request<v1::GetImageRequest>,
    ) -> Result<Response<v1::GetImageResponse>, Status> {
        let permit = Permit::take(&mut request)?;
        let body = request.into_inner();
        let image = self.get(body).await.map_err(|failure| self.refuse(&permit, failure))?;
        Ok(Response::new(v1::GetImageResponse { image: Some(image) }))
    }

    async fn list_images(
        &self,
        mut request: Request<v1::ListImagesRequest>,
    ) -> Result<Response<v1::ListImagesResponse>, Status> {
        let permit = Permit::take(&mut request)?;
        let body = request.into_inner();
        self.list(body).await.map(Response::new).map_err(|failure| self.refuse(&permit, failure))
    }

    async fn get_app_versions(
        &self,
        mut request: Request<v1::GetAppVersionsRequest>,
    ) -> Result<Response<v1::GetAppVersionsResponse>, Status> {
        let permit = Permit::take(&mut request)?;
        let body = request.into_inner();
        self.versions(body).await.map(Response::new).map_err(|failure| self.refuse(&permit, failure))
    }

    async fn remove_image(
        &self,
        mut request: Request<v1::RemoveImageRequest>,
    ) -> Result<Response<v1::RemoveImageResponse>, Status> {
        let permit = Permit::take(&mut request)?;
        let body = request.into_inner();
        self.remove(body).await.map_err(|failure| self.refuse(&permit, failure))?;
        Ok(Response::new(v1::RemoveImageResponse {}))
    }

    type VerifyImageStream = Found;

    async fn verify_image(&self, mut request: Request<v1::VerifyImageRequest>) -> Result<Response<Found>, Status> {
        let permit = Permit::take(&mut request)?;
        let found = self.verifier.verify(request.into_inner(), permit.clone()).await;
        found.map(Response::new).map_err(|failure| self.refuse(&permit, failure))
    }

    async fn list_regions(
        &self,
        mut request: Request<v1::ListRegionsRequest>,
    ) -> Result<Response<v1::ListRegionsResponse>, Status> {
        Permit::take(&mut request)?;
        let home = self.state.regions().home();
        let regions = self.backend.kinds().into_iter().map(|(region, kind)| v1::Region {
            region_id: region.to_string(),
            home: region == home,
            store_kind: kind.to_owned(),
        });
        Ok(Response::new(v1::ListRegionsResponse { regions: regions.collect() }))
    }
}
