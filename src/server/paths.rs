//! Who answers for a path. A method of the contract has everything before it that lets calls in; health and reflection stand open, and
//! any other path is told that it is none.

use std::{
    convert::Infallible,
    task::{Context, Poll},
};

use futures_util::future::{BoxFuture, Either};
use http::{Request, Response};
use tonic::body::Body;
use tower::Service;

use super::{app_sync::AppSync, image::Images};
use crate::contract::{
    longrunning::operations_server::{self, OperationsServer},
    v1::{
        app_sync_service_server::{self, AppSyncServiceServer},
        image_service_server::{self, ImageServiceServer},
    },
};

/// The service that a path is of; nothing for one that names no method (gRPC over HTTP/2, "Path").
fn service(path: &str) -> &str {
    path.strip_prefix('/').and_then(|path| path.split_once('/')).map_or("", |(service, _)| service)
}

/// All paths.
#[derive(Debug, Clone)]
pub struct Paths<G, O> {
    /// The methods of the contract, with what stands before them.
    pub guarded: G,
    /// The rest, with what stands before that.
    pub open: O,
}

impl<G, O, B> Service<Request<B>> for Paths<G, O>
where
    G: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
    O: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<G::Future, O::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        // The other one always is.
        self.guarded.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        match service(request.uri().path()) {
            app_sync_service_server::SERVICE_NAME
            | image_service_server::SERVICE_NAME
            | operations_server::SERVICE_NAME => Either::Left(self.guarded.call(request)),
            _ => Either::Right(self.open.call(request)),
        }
    }
}

/// The methods of the contract.
#[derive(Debug, Clone)]
pub struct Methods {
    pub app_sync: AppSyncServiceServer<AppSync>,
    pub images: ImageServiceServer<Images>,
    pub operations: OperationsServer<AppSync>,
}

impl Service<Request<Body>> for Methods {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match service(request.uri().path()) {
            image_service_server::SERVICE_NAME => self.images.call(request),
            operations_server::SERVICE_NAME => self.operations.call(request),
            _ => self.app_sync.call(request),
        }
    }
}
