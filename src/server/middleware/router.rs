//! Routes calls by path: methods of the contract go through the guarded stack, all other paths to the public services,
//! which answer unknown methods with UNIMPLEMENTED.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use futures_util::future::{BoxFuture, Either};
use http::{Request, Response};
use tonic::body::Body;
use tower::Service;

use crate::{
    contract::{
        longrunning::operations_server::{self, OperationsServer},
        v1::{
            app_sync_service_server::{self, AppSyncServiceServer},
            image_service_server::{self, ImageServiceServer},
        },
    },
    server::grpc::{ImageHandlers, SyncHandlers},
};

/// Returns the service name of a path; empty if the path names no method (gRPC over HTTP/2, "Path").
fn service_name(path: &str) -> &str {
    path.strip_prefix('/').and_then(|path| path.split_once('/')).map_or("", |(service, _)| service)
}

/// Routes between the guarded and the public services.
#[derive(Debug, Clone)]
pub struct Router<G, P> {
    /// Methods of the contract, behind their layers.
    pub guarded: G,
    /// Health and reflection, behind their layers.
    pub public: P,
}

impl<G, P, B> Service<Request<B>> for Router<G, P>
where
    G: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
    P: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<G::Future, P::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // The public services are always ready.
        self.guarded.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match service_name(request.uri().path()) {
            app_sync_service_server::SERVICE_NAME
            | image_service_server::SERVICE_NAME
            | operations_server::SERVICE_NAME => Either::Left(self.guarded.call(request)),
            _ => Either::Right(self.public.call(request)),
        }
    }
}

/// The handlers of the contract's methods.
#[derive(Debug, Clone)]
pub struct ContractServices {
    pub app_sync: AppSyncServiceServer<SyncHandlers>,
    pub images: ImageServiceServer<ImageHandlers>,
    pub operations: OperationsServer<SyncHandlers>,
}

impl Service<Request<Body>> for ContractServices {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match service_name(request.uri().path()) {
            image_service_server::SERVICE_NAME => self.images.call(request),
            operations_server::SERVICE_NAME => self.operations.call(request),
            _ => self.app_sync.call(request),
        }
    }
}
