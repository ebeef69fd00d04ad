//! Handlers of `AppSyncService`.

use std::{fmt::Write as _, pin::Pin, sync::Arc};

use futures_util::{Stream, stream};
use opentelemetry::trace::SpanContext;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, async_trait};
use tracing::Span;

use super::{convert, handle::handle, pagination, permit::Permit};
use crate::{
    contract::{
        ApiError, Contract,
        v1::{
            self, CancelSynchronizationRequest, CancelSynchronizationResponse, GetSynchronizationRequest,
            GetSynchronizationResponse, ListSynchronizationsRequest, ListSynchronizationsResponse,
            SynchronizeAppRequest, SynchronizeAppResponse, WatchSynchronizationRequest, WatchSynchronizationResponse,
            app_sync_service_server::AppSyncService,
        },
    },
    db::{Db, NewSynchronization, Snapshots, SynchronizationFilter, TraceContext},
    domain::Synchronization,
    server::{Dependencies, RETRY_AFTER},
};

/// Length of a `traceparent` header of version 00, in bytes.
const TRACEPARENT_LENGTH: usize = 55;
/// Longest `traceparent` or `tracestate` header that is stored, in bytes.
const MAX_TRACE_HEADER: usize = 512;

/// Handles `AppSyncService`, and `google.longrunning.Operations` (see `operations.rs`).
#[derive(Debug)]
pub struct SyncHandlers {
    pub(super) state: Db,
    pub(super) contract: &'static Contract,
    pub(super) stop: CancellationToken,
}

impl SyncHandlers {
    pub fn new(dependencies: &Dependencies) -> Self {
        let Dependencies { state, contract, stop, .. } = dependencies;
        Self { state: state.clone(), contract, stop: stop.clone() }
    }

    pub(super) fn message(&self, synchronization: &Synchronization) -> v1::Synchronization {
        convert::synchronization(synchronization, &self.contract.errors)
    }

    /// Parses a request to create a synchronization. Performs no look-up.
    fn parse(&self, request: Request<SynchronizeAppRequest>, permit: &Permit) -> Result<NewSynchronization, ApiError> {
        let trace = trace_context(&request);
        let body = request.into_inner();
        let targets = convert::targets("target_region_ids", &body.target_region_ids, self.state.regions())?;
        let token = match body.client_token.as_str() {
            "" => None,
            token => Some(convert::id("client_token", token)?),
        };
        let new = NewSynchronization {
            request_id: permit.request_id(),
            image: convert::id("app_id", &body.app_id)?,
            targets,
            overwrite: body.overwrite,
            principal: permit.principal().to_string(),
            token,
            trace,
        };
        let span = Span::current();
        tracing::record_all!(
            span,
            appferry.app_id = new.image.as_str(),
            appferry.target_region_ids = new.targets.canonical()
        );
        Ok(new)
    }
}

/// Returns the trace context to store with a synchronization: the context of the call's span or, if no spans are
/// exported, the caller's context.
fn trace_context<T>(request: &Request<T>) -> Option<TraceContext> {
    let bounded = |value: &str| (!value.is_empty() && value.len() <= MAX_TRACE_HEADER).then(|| value.to_owned());
    let header = |name| request.metadata().get(name).and_then(|value| value.to_str().ok()).and_then(bounded);
    let (parent, state) = match request.extensions().get::<SpanContext>() {
        Some(span) => (Some(traceparent(span)), bounded(&span.trace_state().header())),
        None => (header("traceparent"), header("tracestate")),
    };
    Some(TraceContext { parent: parent?, state })
}

/// Formats a span as a `traceparent` header (W3C Trace Context, section 3.2).
fn traceparent(span: &SpanContext) -> String {
    let mut header = String::with_capacity(TRACEPARENT_LENGTH);
    // Writing to a string never fails.
    let _ = write!(header, "00-{}-{}-{:02x}", span.trace_id(), span.span_id(), span.trace_flags());
    header
}

/// A stream of a synchronization's snapshots to one watcher.
struct WatchStream {
    snapshots: Snapshots,
    contract: &'static Contract,
    stop: CancellationToken,
    permit: Permit,
    next: NextItem,
}

/// The next item of a [`WatchStream`].
enum NextItem {
    /// The current snapshot.
    Current,
    /// A snapshot that differs from the last one sent.
    Changed,
    /// No item: the last one has been sent.
    End,
}

type WatchItem = Result<WatchSynchronizationResponse, Status>;

impl WatchStream {
    async fn next(mut self) -> Option<(WatchItem, Self)> {
        let is_running = match self.next {
            NextItem::Current => true,
            NextItem::Changed => tokio::select! {
                changed = self.snapshots.changed() => changed.is_ok(),
                () = self.stop.cancelled() => false,
            },
            NextItem::End => return None,
        };
        if !is_running {
            self.next = NextItem::End;
            let error = ApiError::unavailable("The service is shutting down; watch again", RETRY_AFTER);
            let status = error.status(&self.contract.errors, self.permit.request_id());
            return Some((Err(status), self));
        }
        let snapshot = Arc::clone(&self.snapshots.borrow_and_update());
        self.next = if snapshot.state.is_terminal() { NextItem::End } else { NextItem::Changed };
        let synchronization = Some(convert::synchronization(&snapshot, &self.contract.errors));
        Some((Ok(WatchSynchronizationResponse { synchronization }), self))
    }
}

type WatchResponse = Pin<Box<dyn Stream<Item = WatchItem> + Send>>;

#[async_trait]
impl AppSyncService for SyncHandlers {
    async fn synchronize_app(
        &self,
        request: Request<SynchronizeAppRequest>,
    ) -> Result<Response<SynchronizeAppResponse>, Status> {
        handle(self.contract, request, |request, permit| async move {
            let id = self.state.accept(self.parse(request, &permit)?).await?;
            Ok(SynchronizeAppResponse { request_id: id.to_string() })
        })
        .await
    }

    async fn get_synchronization(
        &self,
        request: Request<GetSynchronizationRequest>,
    ) -> Result<Response<GetSynchronizationResponse>, Status> {
        handle(self.contract, request, |request, _| async move {
            let id = convert::id("request_id", &request.get_ref().request_id)?;
            let synchronization = self.message(&self.state.synchronization_get(id).await?);
            Ok(GetSynchronizationResponse { synchronization: Some(synchronization) })
        })
        .await
    }

    async fn list_synchronizations(
        &self,
        request: Request<ListSynchronizationsRequest>,
    ) -> Result<Response<ListSynchronizationsResponse>, Status> {
        handle(self.contract, request, |request, _| async move {
            let body = request.into_inner();
            let image = match body.app_id.as_str() {
                "" => None,
                id => Some(convert::id("app_id", id)?),
            };
            let filter = SynchronizationFilter { image, state: convert::state_filter(body.state)? };
            let before = pagination::last_entry(&body.page_token)?;
            let size = pagination::size(body.page_size)?;
            let page = self.state.synchronization_list(&filter, before, size).await?;
            Ok(ListSynchronizationsResponse {
                next_page_token: pagination::next_token(page.synchronizations.last().map(|s| &s.request_id), page.more),
                synchronizations: page.synchronizations.iter().map(|s| self.message(s)).collect(),
            })
        })
        .await
    }

    type WatchSynchronizationStream = WatchResponse;

    async fn watch_synchronization(
        &self,
        request: Request<WatchSynchronizationRequest>,
    ) -> Result<Response<WatchResponse>, Status> {
        handle(self.contract, request, |request, permit| async move {
            let id = convert::id("request_id", &request.get_ref().request_id)?;
            let snapshots = self.state.synchronization_watch(id).await?;
            let (contract, stop) = (self.contract, self.stop.clone());
            let watch = WatchStream { snapshots, contract, stop, permit, next: NextItem::Current };
            Ok(Box::pin(stream::unfold(watch, WatchStream::next)) as WatchResponse)
        })
        .await
    }

    async fn cancel_synchronization(
        &self,
        request: Request<CancelSynchronizationRequest>,
    ) -> Result<Response<CancelSynchronizationResponse>, Status> {
        handle(self.contract, request, |request, _| async move {
            let id = convert::id("request_id", &request.get_ref().request_id)?;
            let synchronization = self.message(&self.state.synchronization_cancel(id).await?);
            Ok(CancelSynchronizationResponse { synchronization: Some(synchronization) })
        })
        .await
    }
}
