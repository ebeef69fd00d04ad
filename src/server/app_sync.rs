//! `AppSyncService`: wire to domain, one call of the state, and back.

use std::{fmt::Write as _, pin::Pin, sync::Arc};

use futures_util::{Stream, stream};
use opentelemetry::trace::SpanContext;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, async_trait};
use tracing::Span;

use super::{Parts, RETRY_AFTER, page, permit::Permit, wire};
use crate::{
    contract::{
        Contract, Failure,
        v1::{self, app_sync_service_server::AppSyncService},
    },
    db::{Db, NewSynchronization, Snapshots, SynchronizationFilter, TraceContext},
    domain::Synchronization,
};

/// The length of the header `traceparent` of the version that there is.
const TRACEPARENT: usize = 55;
/// The most characters of a trace's headers that are kept.
const MAX_TRACE: usize = 512;

/// See the module.
#[derive(Debug)]
pub struct AppSync {
    pub(super) state: Db,
    pub(super) contract: &'static Contract,
    pub(super) stop: CancellationToken,
}

impl AppSync {
    pub fn new(parts: &Parts) -> Self {
        Self { state: parts.state.clone(), contract: parts.contract, stop: parts.stop.clone() }
    }

    pub(super) fn refuse(&self, permit: &Permit, failure: impl Into<Failure>) -> Status {
        failure.into().status(&self.contract.errors, permit.request_id())
    }

    pub(super) fn wire(&self, synchronization: &Synchronization) -> v1::Synchronization {
        wire::synchronization(synchronization, &self.contract.errors)
    }

    /// Reads a call: everything that can be wrong with it by itself.
    fn read(
        &self,
        request: Request<v1::SynchronizeAppRequest>,
        permit: &Permit,
    ) -> Result<NewSynchronization, Failure> {
        let trace = trace(&request);
        let body = request.into_inner();
        let targets = wire::targets("target_region_ids", &body.target_region_ids, self.state.regions())?;
        let token = match body.client_token.as_str() {
            "" => None,
            token => Some(wire::id("client_token", token)?),
        };
        let ask = NewSynchronization {
            request_id: permit.request_id(),
            image: wire::id("app_id", &body.app_id)?,
            targets,
            overwrite: body.overwrite,
            principal: permit.principal().to_string(),
            token,
            trace,
        };
        let span = Span::current();
        tracing::record_all!(
            span,
            appferry.app_id = ask.image.as_str(),
            appferry.target_region_ids = ask.targets.canonical()
        );
        Ok(ask)
    }
}

/// The trace that a call belongs to: that of its own span, or, where nothing is exported, its caller's.
fn trace<T>(request: &Request<T>) -> Option<TraceContext> {
    let kept = |value: &str| (!value.is_empty() && value.len() <= MAX_TRACE).then(|| value.to_owned());
    let callers = |name| request.metadata().get(name).and_then(|value| value.to_str().ok()).and_then(kept);
    let (parent, state) = match request.extensions().get::<SpanContext>() {
        Some(own) => (Some(traceparent(own)), kept(&own.trace_state().header())),
        None => (callers("traceparent"), callers("tracestate")),
    };
    Some(TraceContext { parent: parent?, state })
}

/// A span as the header of W3C Trace Context, "traceparent".
fn traceparent(span: &SpanContext) -> String {
    let mut header = String::with_capacity(TRACEPARENT);
    // Writing to a text can't fail.
    let _ = write!(header, "00-{}-{}-{:02x}", span.trace_id(), span.span_id(), span.trace_flags());
    header
}

/// A stream of snapshots on its way to a watcher.
struct Watching {
    snapshots: Snapshots,
    contract: &'static Contract,
    stop: CancellationToken,
    permit: Permit,
    next: Next,
}

/// What a watcher is sent next.
enum Next {
    /// The snapshot that there is.
    First,
    /// A snapshot when there is a new one.
    Change,
    /// Nothing: the last has been sent.
    Nothing,
}

type Snapshot = Result<v1::WatchSynchronizationResponse, Status>;

impl Watching {
    async fn next(mut self) -> Option<(Snapshot, Self)> {
        let there = match self.next {
            Next::First => true,
            Next::Change => tokio::select! {
                changed = self.snapshots.changed() => changed.is_ok(),
                () = self.stop.cancelled() => false,
            },
            Next::Nothing => return None,
        };
        if !there {
            self.next = Next::Nothing;
            let failure = Failure::unavailable("The service is shutting down; watch again", RETRY_AFTER);
            let status = failure.status(&self.contract.errors, self.permit.request_id());
            return Some((Err(status), self));
        }
        let snapshot = Arc::clone(&self.snapshots.borrow_and_update());
        self.next = if snapshot.state.is_terminal() { Next::Nothing } else { Next::Change };
        let synchronization = Some(wire::synchronization(&snapshot, &self.contract.errors));
        Some((Ok(v1::WatchSynchronizationResponse { synchronization }), self))
    }
}

type Watch = Pin<Box<dyn Stream<Item = Result<v1::WatchSynchronizationResponse, Status>> + Send>>;

#[async_trait]
impl AppSyncService for AppSync {
    async fn synchronize_app(
        &self,
        mut request: Request<v1::SynchronizeAppRequest>,
    ) -> Result<Response<v1::SynchronizeAppResponse>, Status> {
        let permit = Permit::take(&mut request)?;
        let ask = self.read(request, &permit).map_err(|failure| self.refuse(&permit, failure))?;
        let id = self.state.accept(ask).await.map_err(|error| self.refuse(&permit, error))?;
        Ok(Response::new(v1::SynchronizeAppResponse { request_id: id.to_string() }))
    }

    async fn get_synchronization(
        &self,
        mut request: Request<v1::GetSynchronizationRequest>,
    ) -> Result<Response<v1::GetSynchronizationResponse>, Status> {
        let permit = Permit::take(&mut request)?;
        let body = request.into_inner();
        let answer = async {
            let id = wire::id("request_id", &body.request_id)?;
            Ok::<_, Failure>(self.state.synchronization_get(id).await?)
        };
        let found = answer.await.map_err(|failure| self.refuse(&permit, failure))?;
        Ok(Response::new(v1::GetSynchronizationResponse { synchronization: Some(self.wire(&found)) }))
    }

    async fn list_synchronizations(
        &self,
        mut request: Request<v1::ListSynchronizationsRequest>,
    ) -> Result<Response<v1::ListSynchronizationsResponse>, Status> {
        let permit = Permit::take(&mut request)?;
        let body = request.into_inner();
        let answer = async {
            let image = match body.app_id.as_str() {
                "" => None,
                id => Some(wire::id("app_id", id)?),
            };
            let filter = SynchronizationFilter { image, state: wire::state_filter(body.state)? };
            let before = page::after(&body.page_token)?;
            Ok::<_, Failure>(self.state.synchronization_list(&filter, before, page::size(body.page_size)?).await?)
        };
        let found = answer.await.map_err(|failure| self.refuse(&permit, failure))?;
        Ok(Response::new(v1::ListSynchronizationsResponse {
            next_page_token: page::next(found.synchronizations.last().map(|s| &s.request_id), found.more),
            synchronizations: found.synchronizations.iter().map(|s| self.wire(s)).collect(),
        }))
    }

    type WatchSynchronizationStream = Watch;

    async fn watch_synchronization(
        &self,
        mut request: Request<v1::WatchSynchronizationRequest>,
    ) -> Result<Response<Watch>, Status> {
        let permit = Permit::take(&mut request)?;
        let body = request.into_inner();
        let answer = async {
            let id = wire::id("request_id", &body.request_id)?;
            Ok::<_, Failure>(self.state.synchronization_watch(id).await?)
        };
        let snapshots = answer.await.map_err(|failure| self.refuse(&permit, failure))?;
        let watch = Watching { snapshots, contract: self.contract, stop: self.stop.clone(), permit, next: Next::First };
        Ok(Response::new(Box::pin(stream::unfold(watch, Watching::next))))
    }

    async fn cancel_synchronization(
        &self,
        mut request: Request<v1::CancelSynchronizationRequest>,
    ) -> Result<Response<v1::CancelSynchronizationResponse>, Status> {
        let permit = Permit::take(&mut request)?;
        let body = request.into_inner();
        let answer = async {
            let id = wire::id("request_id", &body.request_id)?;
            Ok::<_, Failure>(self.state.synchronization_cancel(id).await?)
        };
        let found = answer.await.map_err(|failure| self.refuse(&permit, failure))?;
        Ok(Response::new(v1::CancelSynchronizationResponse { synchronization: Some(self.wire(&found)) }))
    }
}
