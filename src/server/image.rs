//! `ImageService`: wire to domain, the home region's store where an image is registered, and the state.

use std::sync::Arc;

use tonic::{Request, Response, Status, async_trait};
use tracing::Span;

use super::{
    Parts, page,
    permit::Permit,
    verify::{Found, Verifier},
    wire,
};
use crate::{
    contract::{
        Contract, Failure, Violation,
        v1::{self, CommonErrorCode, ErrorCode, add_image_request, image_service_server::ImageService},
    },
    domain::{Clock, Image, ImageId, ImageKind, RegionId, Replica},
    region::{self, ImageSpec, Stores, Tree},
    state::State,
};

const MAX_NAME: usize = 128;
const MAX_VERSION: usize = 64;
const MAX_DESCRIPTION: usize = 1_024;

/// See the module.
#[derive(Debug)]
pub struct Images {
    state: State,
    stores: Stores,
    contract: Arc<Contract>,
    clock: Clock,
    verifier: Verifier,
}

impl Images {
    pub fn new(parts: &Parts) -> Self {
        Self {
            state: parts.state.clone(),
            stores: parts.stores.clone(),
            contract: Arc::clone(&parts.contract),
            clock: parts.clock.clone(),
            verifier: Verifier::new(
                parts.state.clone(),
                parts.stores.clone(),
                Arc::clone(&parts.contract),
                parts.stop.clone(),
            ),
        }
    }

    fn refuse(&self, permit: &Permit, failure: impl Into<Failure>) -> Status {
        failure.into().status(&self.contract.errors, permit.request_id())
    }

    fn image(&self, image: &Image, replicas: &[(RegionId, Replica)]) -> v1::Image {
        // A home region that is no longer configured has no store that could tell.
        let store = self.stores.get(&image.home);
        let url = store.map_or_else(|| image.source.to_string(), |store| store.url(&image.source));
        wire::image(image, url, replicas, self.state.regions())
    }

    async fn add(&self, body: v1::AddImageRequest) -> Result<ImageId, Failure> {
        let name = wire::text("name", body.name, MAX_NAME, true)?;
        let version = wire::text("image_version", body.image_version, MAX_VERSION, false)?;
        let description = wire::text("description", body.description, MAX_DESCRIPTION, false)?;
        let (kind, spec) = spec(body.image_type, body.image_spec)?;
        let id = match body.image_id.as_str() {
            "" => kind
                .new_id(|bound| rand::random_range(0..bound))
                .map_err(|error| Failure::invalid(Violation { field: "image_id", description: error.to_string() }))?,
            id => wire::id("image_id", id)?,
        };
        Span::current().record("appferry.app_id", id.as_str());

        let home = self.state.regions().home();
        let store = self.stores.get(home).ok_or_else(|| Failure::new(CommonErrorCode::InternalError, ""))?;
        let source = store
            .locate(&spec)
            .map_err(|description| Failure::invalid(Violation { field: field(kind), description }))?;
        let store_failed = |error: region::Error| {
            let cause = format!("the home region {home}: {error}");
            let code = if error.is_missing() { ErrorCode::ImageNotFound } else { ErrorCode::ServiceApiError };
            Failure::new(code, cause).in_regions([home])
        };
        let root = store.root(&source).await.map_err(store_failed)?.ok_or_else(|| {
            let cause = format!("The home region {home} has no image {source}.");
            Failure::new(ErrorCode::ImageNotFound, cause).in_regions([home])
        })?;
        let tree = Tree::read(&**store, &source, &root).await.map_err(store_failed)?;
        let image = Image {
            id: id.clone(),
            name,
            version,
            description,
            kind,
            source,
            home: home.clone(),
            root,
            size: tree.size(),
            created_at: self.clock.now(),
        };
        self.state.image_add(&image).await?;
        Ok(id)
    }
}

fn field(kind: ImageKind) -> &'static str {
    match kind {
        ImageKind::Vm => "vm_image_spec.image_id",
        ImageKind::Container => "container_image_spec.registry_url",
    }
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
    async fn add_image(&self, request: Request<v1::AddImageRequest>) -> Result<Response<v1::AddImageResponse>, Status> {
        let permit = Permit::of(&request)?;
        let body = request.into_inner();
        let id = self.add(body).await.map_err(|failure| self.refuse(&permit, failure))?;
        Ok(Response::new(v1::AddImageResponse { image_id: id.to_string() }))
    }

    async fn get_image(&self, request: Request<v1::GetImageRequest>) -> Result<Response<v1::GetImageResponse>, Status> {
        let permit = Permit::of(&request)?;
        let body = request.into_inner();
        let answer = async {
            let id: ImageId = wire::id("image_id", &body.image_id)?;
            Ok::<_, Failure>(self.state.image_get(&id).await?)
        };
        let (image, replicas) = answer.await.map_err(|failure| self.refuse(&permit, failure))?;
        let image = Some(self.image(&image, &replicas));
        Ok(Response::new(v1::GetImageResponse { image }))
    }

    async fn list_images(
        &self,
        request: Request<v1::ListImagesRequest>,
    ) -> Result<Response<v1::ListImagesResponse>, Status> {
        let permit = Permit::of(&request)?;
        let body = request.into_inner();
        let answer = async {
            let after: Option<ImageId> = page::after(&body.page_token)?;
            Ok::<_, Failure>(self.state.image_list(after.as_ref(), page::size(body.page_size)?).await?)
        };
        let found = answer.await.map_err(|failure| self.refuse(&permit, failure))?;
        let last = found.images.last().filter(|_| found.more);
        Ok(Response::new(v1::ListImagesResponse {
            next_page_token: last.map(|(image, _)| page::token(&image.id)).unwrap_or_default(),
            images: found.images.iter().map(|(image, replicas)| self.image(image, replicas)).collect(),
        }))
    }

    async fn remove_image(
        &self,
        request: Request<v1::RemoveImageRequest>,
    ) -> Result<Response<v1::RemoveImageResponse>, Status> {
        let permit = Permit::of(&request)?;
        let body = request.into_inner();
        let answer = async {
            let id: ImageId = wire::id("image_id", &body.image_id)?;
            Ok::<_, Failure>(self.state.image_remove(&id).await?)
        };
        answer.await.map_err(|failure| self.refuse(&permit, failure))?;
        Ok(Response::new(v1::RemoveImageResponse {}))
    }

    type VerifyImageStream = Found;

    async fn verify_image(&self, request: Request<v1::VerifyImageRequest>) -> Result<Response<Found>, Status> {
        let permit = Permit::of(&request)?;
        let found = self.verifier.verify(request.into_inner(), permit.clone()).await;
        found.map(Response::new).map_err(|failure| self.refuse(&permit, failure))
    }

    async fn list_regions(
        &self,
        request: Request<v1::ListRegionsRequest>,
    ) -> Result<Response<v1::ListRegionsResponse>, Status> {
        Permit::of(&request)?;
        let home = self.state.regions().home();
        let regions = self.stores.iter().map(|(region, store)| v1::Region {
            region_id: region.to_string(),
            home: region == home,
            store_kind: store.kind().as_str().to_owned(),
        });
        Ok(Response::new(v1::ListRegionsResponse { regions: regions.collect() }))
    }
}
