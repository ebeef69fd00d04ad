//! The client library, for other services and for the command line. It provides typed errors, deadlines, retries when
//! the service asks for them or the connection breaks, and watching across broken connections.
//!
//! ```no_run
//! # async fn run() -> Result<(), appferry::client::Error> {
//! use appferry::{client::Client, contract::v1::SynchronizeAppRequest};
//!
//! let client = Client::builder("http://127.0.0.1:50051").token("…").connect().await?;
//! let request = SynchronizeAppRequest { app_id: "gromacs-2026".into(), ..Default::default() };
//! let id = client.synchronize_app(request).await?;
//! let mut watch = client.watch(&id);
//! while let Some(synchronization) = watch.next().await? {
//!     println!("{:?}", synchronization.state());
//! }
//! # Ok(())
//! # }
//! ```

mod connect;
mod error;
mod retry;
mod watch;

use std::time::Duration;

use tokio::time::Instant;
use tonic::{Request, Response, Status, codegen::InterceptedService, transport::Channel};
use uuid::Uuid;

pub use connect::{AuthInterceptor, Builder};
pub use error::Error;
pub use watch::Watch;

pub use crate::contract::ApiErrorResponse;
use crate::{
    contract::v1::{
        AddImageRequest, CancelSynchronizationRequest, GetImageRequest, GetSynchronizationRequest, Image,
        ListImagesRequest, ListImagesResponse, ListRegionsRequest, ListSynchronizationsRequest,
        ListSynchronizationsResponse, Region, RemoveImageRequest, RemoveImageResponse, Synchronization,
        SynchronizeAppRequest, app_sync_service_client::AppSyncServiceClient, image_service_client::ImageServiceClient,
    },
    domain::Backoff,
};

/// The generated client of `AppSyncService`, with the caller's credential.
pub type AppSync = AppSyncServiceClient<InterceptedService<Channel, AuthInterceptor>>;
/// The generated client of `ImageService`, with the caller's credential.
pub type Images = ImageServiceClient<InterceptedService<Channel, AuthInterceptor>>;

type Result<T> = std::result::Result<T, Error>;

/// A client of the service. Clones share one connection.
#[derive(Debug, Clone)]
pub struct Client {
    app_sync: AppSync,
    images: Images,
    deadline: Duration,
    backoff: Backoff,
}

impl Client {
    /// Builds a client of the service at an `http://` or `https://` URL.
    #[must_use]
    pub fn builder(endpoint: impl Into<String>) -> Builder {
        Builder::new(endpoint)
    }

    fn new(channel: Channel, caller: AuthInterceptor, builder: &Builder) -> Self {
        Self {
            app_sync: AppSyncServiceClient::with_interceptor(channel.clone(), caller.clone()),
            images: ImageServiceClient::with_interceptor(channel, caller),
            deadline: builder.deadline,
            backoff: builder.backoff,
        }
    }

    /// Returns the generated client of `AppSyncService`, which does not retry calls.
    #[must_use]
    pub fn app_sync(&self) -> AppSync {
        self.app_sync.clone()
    }

    /// Returns the generated client of `ImageService`, which does not retry calls.
    #[must_use]
    pub fn images(&self) -> Images {
        self.images.clone()
    }

    /// Requests an image in the regions that the request names, or, if it names none, in all regions that do not have
    /// the image. Returns the id of the synchronization.
    ///
    /// A request without a client token gets one, so that retries are accepted only once.
    pub async fn synchronize_app(&self, mut request: SynchronizeAppRequest) -> Result<String> {
        if request.client_token.is_empty() {
            request.client_token = Uuid::now_v7().to_string();
        }
        let response = self.with_retries(&request, |request| {
            let mut client = self.app_sync();
            async move { client.synchronize_app(request).await }
        });
        Ok(response.await?.request_id)
    }

    /// Returns a synchronization with the state of each region.
    pub async fn get_synchronization(&self, request_id: impl Into<String>) -> Result<Synchronization> {
        let request = GetSynchronizationRequest { request_id: request_id.into() };
        let response = self.with_retries(&request, |request| {
            let mut client = self.app_sync();
            async move { client.get_synchronization(request).await }
        });
        response.await?.synchronization.ok_or(Error::Incomplete("synchronization"))
    }

    /// Returns one page of synchronizations, newest first.
    pub async fn list_synchronizations(
        &self,
        request: ListSynchronizationsRequest,
    ) -> Result<ListSynchronizationsResponse> {
        self.with_retries(&request, |request| {
            let mut client = self.app_sync();
            async move { client.list_synchronizations(request).await }
        })
        .await
    }

    /// Watches a synchronization until it ends.
    #[must_use]
    pub fn watch(&self, request_id: impl Into<String>) -> Watch {
        Watch::new(self.clone(), request_id.into())
    }

    /// Waits until a synchronization has ended. Returns its last snapshot.
    pub async fn wait(&self, request_id: impl Into<String>) -> Result<Synchronization> {
        let mut watch = self.watch(request_id);
        let mut last = None;
        while let Some(snapshot) = watch.next().await? {
            last = Some(snapshot);
        }
        last.ok_or(Error::Incomplete("synchronization"))
    }

    /// Cancels the unfinished copies of a synchronization. Returns the synchronization.
    pub async fn cancel_synchronization(&self, request_id: impl Into<String>) -> Result<Synchronization> {
        let request = CancelSynchronizationRequest { request_id: request_id.into() };
        let response = self.with_retries(&request, |request| {
            let mut client = self.app_sync();
            async move { client.cancel_synchronization(request).await }
        });
        response.await?.synchronization.ok_or(Error::Incomplete("synchronization"))
    }

    /// Registers an image. Returns its id. Does not retry the call, because a second call would conflict with the image
    /// that the first one registered.
    pub async fn add_image(&self, request: AddImageRequest) -> Result<String> {
        Ok(self.images().add_image(request).await?.into_inner().image_id)
    }

    /// Returns an image with its state in each region.
    pub async fn get_image(&self, image_id: impl Into<String>) -> Result<Image> {
        let request = GetImageRequest { image_id: image_id.into(), ..Default::default() };
        let response = self.with_retries(&request, |request| {
            let mut client = self.images();
            async move { client.get_image(request).await }
        });
        response.await?.image.ok_or(Error::Incomplete("image"))
    }

    /// Returns one page of images.
    pub async fn list_images(&self, request: ListImagesRequest) -> Result<ListImagesResponse> {
        self.with_retries(&request, |request| {
            let mut client = self.images();
            async move { client.list_images(request).await }
        })
        .await
    }

    /// Removes the registration of an image; its bytes stay in the stores. Does not retry the call, because a second
    /// call would not find the image.
    pub async fn remove_image(&self, image_id: impl Into<String>) -> Result<RemoveImageResponse> {
        let request = RemoveImageRequest { image_id: image_id.into(), ..Default::default() };
        Ok(self.images().remove_image(request).await?.into_inner())
    }

    /// Returns the configured regions.
    pub async fn list_regions(&self) -> Result<Vec<Region>> {
        let response = self.with_retries(&ListRegionsRequest {}, |request| {
            let mut client = self.images();
            async move { client.list_regions(request).await }
        });
        Ok(response.await?.regions)
    }

    /// Makes an idempotent call. Retries it as long as a retry may help and the deadline has not passed.
    async fn with_retries<Q: Clone, R, F>(&self, request: &Q, call: impl Fn(Request<Q>) -> F) -> Result<R>
    where
        F: Future<Output = std::result::Result<Response<R>, Status>>,
    {
        let deadline = Instant::now() + self.deadline;
        let mut failures = 0;
        loop {
            let mut timed = Request::new(request.clone());
            timed.set_timeout(deadline.saturating_duration_since(Instant::now()));
            let refusal: ApiErrorResponse = match call(timed).await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) => status.into(),
            };
            let wait = retry::delay(&refusal, &self.backoff, failures, rand::random());
            match wait.map(|wait| Instant::now() + wait).filter(|at| *at < deadline) {
                Some(at) => tokio::time::sleep_until(at).await,
                None => return Err(Error::Refused(Box::new(refusal))),
            }
            failures += 1;
        }
    }
}
