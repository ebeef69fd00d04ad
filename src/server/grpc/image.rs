//! Handlers of `ImageService`.

use std::{collections::BTreeMap, time::Duration};

use tokio::{sync::Semaphore, time::timeout};
use tonic::{Request, Response, Status, async_trait};
use tracing::Span;

use super::{
    convert, convert_image,
    handle::handle,
    image_fields::{check_kind, filter_values, image_spec, kind_filter, line, text},
    pagination,
    permit::Permit,
    source_image::SourceImage,
    verify::{VerificationStream, Verifier},
};
use crate::{
    contract::{
        ApiError, Contract, Violation,
        v1::{
            self, AddImageRequest, AddImageResponse, GetAppVersionsRequest, GetAppVersionsResponse, GetImageRequest,
            GetImageResponse, ListImagesRequest, ListImagesResponse, ListRegionsRequest, ListRegionsResponse,
            RemoveImageRequest, RemoveImageResponse, VerifyImageRequest, image_service_server::ImageService,
        },
    },
    db::{self, Db, ImageFilter, NameConflictPolicy},
    domain::{Clock, Content, Digest, EcsImageId, Image, ImageId, RegionId, Replica, Targets},
    server::Dependencies,
    storage::{Backend, ManifestCache},
};

/// Longest name, version and description of an image, in characters.
const MAX_NAME: usize = 128;
const MAX_VERSION: usize = 64;
const MAX_DESCRIPTION: usize = 1_024;
/// Maximum number of concurrent look-ups of new images. Each look-up keeps the image's manifests in memory.
const MAX_LOOKUPS: usize = 4;
/// Maximum time that `GetImage` waits for the home region's store. After that, it answers without the store.
const SHOWN_DIGEST_TIMEOUT: Duration = Duration::from_secs(2);

/// Ids of images in ECS regions, where they differ from the image's id.
type EcsIds = BTreeMap<(ImageId, RegionId), EcsImageId>;

/// Handles `ImageService`.
#[derive(Debug)]
pub struct ImageHandlers {
    state: Db,
    backend: Backend,
    contract: &'static Contract,
    clock: Clock,
    verifier: Verifier,
    /// Limits concurrent look-ups to [`MAX_LOOKUPS`].
    lookups: Semaphore,
    /// Cache of manifests that look-ups have read.
    manifests: ManifestCache,
}

impl ImageHandlers {
    pub fn new(dependencies: &Dependencies) -> Self {
        let Dependencies { state, backend, contract, clock, .. } = dependencies.clone();
        Self {
            state,
            backend,
            contract,
            clock,
            verifier: Verifier::new(dependencies),
            lookups: Semaphore::new(MAX_LOOKUPS),
            manifests: ManifestCache::default(),
        }
    }

    /// Returns the ids of images in ECS regions.
    async fn ecs_ids(&self, images: &[&ImageId]) -> db::Result<EcsIds> {
        match self.backend {
            Backend::Stores(_) => Ok(BTreeMap::new()),
            Backend::Ecs(_) => self.state.ecs_copies(images).await,
        }
    }

    fn message(
        &self,
        image: &Image,
        replicas: &[(RegionId, Replica)],
        ecs_ids: &EcsIds,
        regions: &Targets,
        shown_at_home: Option<Digest>,
    ) -> v1::Image {
        // A home region that is no longer configured has no store.
        let store = self.backend.store(&image.home);
        let url = store.map_or_else(|| image.source.to_string(), |store| store.url(&image.source));
        let id_in = |region: &RegionId| match &image.content {
            Content::Ecs if *region == image.home => Some(image.source.to_string()),
            Content::Ecs => ecs_ids.get(&(image.id.clone(), region.clone())).map(EcsImageId::to_string),
            Content::Blobs(_) => None,
        };
        convert_image::image(image, url, replicas, id_in, self.state.regions(), regions, shown_at_home)
    }

    /// Returns the digest that the image's name refers to in the home region, if it differs from the image's digest.
    async fn shown_at_home(&self, image: &Image) -> Option<Digest> {
        let (own, store) = (image.root()?, self.backend.store(&image.home)?);
        match timeout(SHOWN_DIGEST_TIMEOUT, store.root_as(&image.source, own)).await {
            Ok(Ok(shown)) => shown.map(|shown| shown.digest).filter(|shown| *shown != own),
            Ok(Err(error)) => {
                tracing::debug!(%error, image = %image.id, "failed to read an image's digest in the home region");
                None
            }
            Err(_) => None,
        }
    }

    /// Returns the regions where the image is stored by its name, so that no other image may have that name.
    fn regions_by_name(&self, image: &Image) -> Vec<RegionId> {
        let Backend::Stores(stores) = &self.backend else { return Vec::new() };
        let reference = image.reference();
        let named = stores.iter().filter(|(_, store)| store.name_of(image) == reference);
        named.map(|(region, _)| region.clone()).collect()
    }

    async fn get(&self, request: GetImageRequest) -> Result<v1::Image, ApiError> {
        let id: ImageId = convert::id("image_id", &request.image_id)?;
        let kind = kind_filter(request.image_type)?;
        let regions = convert::targets("additional_region_ids", &request.additional_region_ids, self.state.regions())?;
        let (image, replicas) = self.state.image_get(&id).await?;
        check_kind(&image, kind)?;
        let ecs_ids = self.ecs_ids(&[&image.id]).await?;
        let shown = self.shown_at_home(&image).await;
        Ok(self.message(&image, &replicas, &ecs_ids, &regions, shown))
    }

    async fn list(&self, request: ListImagesRequest) -> Result<ListImagesResponse, ApiError> {
        let filter = ImageFilter {
            ids: filter_values("image_ids", &request.image_ids, convert::id)?,
            names: filter_values("names", &request.names, |field, name| line(field, name.to_owned(), MAX_NAME, true))?,
            kind: kind_filter(request.image_type)?,
            latest_only: request.latest_only,
        };
        let after: Option<ImageId> = pagination::last_entry(&request.page_token)?;
        let span = db::PageRange { skip: pagination::skip(request.skip)?, limit: pagination::size(request.page_size)? };
        let page = self.state.image_list(&filter, after.as_ref(), span, request.count_all).await?;
        let ecs_ids = self.ecs_ids(&page.images.iter().map(|(image, _)| &image.id).collect::<Vec<_>>()).await?;
        let message =
            |(image, replicas): &(Image, Vec<_>)| self.message(image, replicas, &ecs_ids, &Targets::All, None);
        Ok(ListImagesResponse {
            next_page_token: pagination::next_token(page.images.last().map(|(image, _)| &image.id), page.more),
            images: page.images.iter().map(message).collect(),
            total_size: page.total.map(convert::count).unwrap_or_default(),
        })
    }

    async fn versions(&self, request: GetAppVersionsRequest) -> Result<GetAppVersionsResponse, ApiError> {
        let names = vec![line("app_name", request.app_name, MAX_NAME, true)?];
        let filter = ImageFilter { names, kind: kind_filter(request.image_type)?, ..ImageFilter::default() };
        let span = db::PageRange { skip: pagination::skip(request.skip)?, limit: pagination::size(request.page_size)? };
        let (images, total) = self.state.image_versions(&filter, span).await?;
        let version =
            |image: Image| v1::AppVersion { image_id: image.id.to_string(), name: image.name, version: image.version };
        Ok(GetAppVersionsResponse {
            app_versions: images.into_iter().map(version).collect(),
            total_size: convert::count(total),
        })
    }

    async fn remove(&self, request: RemoveImageRequest) -> Result<(), ApiError> {
        let id: ImageId = convert::id("image_id", &request.image_id)?;
        if let Some(kind) = kind_filter(request.image_type)? {
            check_kind(&self.state.image_get(&id).await?.0, Some(kind))?;
        }
        Ok(self.state.image_remove(&id).await?)
    }

    async fn add(&self, request: AddImageRequest) -> Result<ImageId, ApiError> {
        let name = line("name", request.name, MAX_NAME, true)?;
        let version = line("image_version", request.image_version, MAX_VERSION, false)?;
        let description = text("description", request.description, MAX_DESCRIPTION)?;
        let (kind, spec) = image_spec(request.image_type, request.image_spec)?;
        let id = match request.image_id.as_str() {
            "" => kind
                .new_id(|bound| rand::random_range(0..bound))
                .map_err(|error| ApiError::invalid(Violation { field: "image_id", description: error.to_string() }))?,
            id => convert::id("image_id", id)?,
        };
        Span::current().record("appferry.app_id", id.as_str());

        let home = self.state.regions().home();
        let SourceImage { name: source, content, size, absent } = {
            // The semaphore is never closed, and the call's deadline bounds the wait.
            let _permit = self.lookups.acquire().await;
            SourceImage::find(&self.backend, home, &spec, &self.manifests).await?
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
        let on_conflict =
            if request.supersede { NameConflictPolicy::Supersede(&regions) } else { NameConflictPolicy::Reject };
        self.state.image_add_as(&image, on_conflict).await?;
        Ok(id)
    }
}

#[async_trait]
impl ImageService for ImageHandlers {
    async fn add_image(&self, request: Request<AddImageRequest>) -> Result<Response<AddImageResponse>, Status> {
        handle(self.contract, request, |request, _| async move {
            let id = self.add(request.into_inner()).await?;
            Ok(AddImageResponse { image_id: id.to_string() })
        })
        .await
    }

    async fn get_image(&self, request: Request<GetImageRequest>) -> Result<Response<GetImageResponse>, Status> {
        handle(self.contract, request, |request, _| async move {
            let image = self.get(request.into_inner()).await?;
            Ok(GetImageResponse { image: Some(image) })
        })
        .await
    }

    async fn list_images(&self, request: Request<ListImagesRequest>) -> Result<Response<ListImagesResponse>, Status> {
        handle(self.contract, request, |request, _| self.list(request.into_inner())).await
    }

    async fn get_app_versions(
        &self,
        request: Request<GetAppVersionsRequest>,
    ) -> Result<Response<GetAppVersionsResponse>, Status> {
        handle(self.contract, request, |request, _| self.versions(request.into_inner())).await
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Result<Response<RemoveImageResponse>, Status> {
        handle(self.contract, request, |request, _| async move {
            self.remove(request.into_inner()).await?;
            Ok(RemoveImageResponse {})
        })
        .await
    }

    type VerifyImageStream = VerificationStream;

    async fn verify_image(&self, request: Request<VerifyImageRequest>) -> Result<Response<VerificationStream>, Status> {
        handle(self.contract, request, |request, permit| self.verifier.verify(request.into_inner(), permit)).await
    }

    async fn list_regions(
        &self,
        mut request: Request<ListRegionsRequest>,
    ) -> Result<Response<ListRegionsResponse>, Status> {
        Permit::take(&mut request)?;
        let home = self.state.regions().home();
        let regions = self.backend.kinds().into_iter().map(|(region, kind)| v1::Region {
            region_id: region.to_string(),
            home: region == home,
            store_kind: kind.to_owned(),
        });
        Ok(Response::new(ListRegionsResponse { regions: regions.collect() }))
    }
}
