//! Handlers of `google.longrunning.Operations` (AIP-151): synchronizations for clients that do not know the contract.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};
use tonic::{Code, Request, Response, Status, async_trait};
use tonic_types::pb;

use super::{
    CallDeadline, SyncHandlers, convert,
    handle::handle,
    operation_fields::{self, COLLECTION},
    pagination,
};
use crate::{
    contract::{
        ApiError, Violation,
        longrunning::{
            CancelOperationRequest, GetOperationRequest, ListOperationsRequest, ListOperationsResponse, Operation,
            WaitOperationRequest, operation::Result as OperationResult, operations_server::Operations,
        },
        pack_any,
        v1::CommonErrorCode,
    },
    domain::{ForeignText, RequestId, Synchronization, SynchronizationState},
};

/// Time between the latest return of `WaitOperation` and the call's deadline. A tenth of the call's duration is used
/// instead if it is shorter.
const WAIT_MARGIN: Duration = Duration::from_secs(1);

impl SyncHandlers {
    fn operation(&self, synchronization: &Synchronization) -> Operation {
        let request_id = synchronization.request_id;
        let message = pack_any("appferry.v1.Synchronization", &self.message(synchronization));
        let result = match synchronization.state {
            SynchronizationState::Running => None,
            SynchronizationState::Succeeded => Some(OperationResult::Response(message.clone())),
            SynchronizationState::Failed => {
                let status = failure(synchronization).rpc_status(&self.contract.errors, request_id);
                Some(OperationResult::Error(status))
            }
            SynchronizationState::Canceled => {
                let message = "The synchronization was canceled before the image was in every region".to_owned();
                let status = pb::Status { code: Code::Cancelled.into(), message, details: Vec::new() };
                Some(OperationResult::Error(status))
            }
        };
        let done = synchronization.state.is_terminal();
        Operation { name: format!("{COLLECTION}/{request_id}"), metadata: Some(message), done, result }
    }

    /// Waits until the synchronization has ended, until `at`, or until the service stops. Then returns the operation's
    /// state.
    async fn wait(&self, id: RequestId, at: Instant) -> Result<Operation, ApiError> {
        let mut snapshots = self.state.synchronization_watch(id).await?;
        let done = snapshots.wait_for(|snapshot| snapshot.state.is_terminal());
        tokio::select! {
            // An error means that the feed of snapshots has ended at shutdown; the last snapshot is returned.
            _ = timeout_at(at, done) => {}
            () = self.stop.cancelled() => {}
        }
        let last = Arc::clone(&snapshots.borrow());
        Ok(self.operation(&last))
    }
}

/// Returns the error of a failed synchronization: the code of the first region that failed, and the causes of all
/// failures.
fn failure(synchronization: &Synchronization) -> ApiError {
    let failed = || synchronization.regions.iter().filter_map(|view| Some((&view.region, view.fault.as_ref()?)));
    let causes: Vec<String> = failed().map(|(region, fault)| format!("{region}: {}", fault.message)).collect();
    match failed().next() {
        Some((_, first)) => ApiError::new(convert::fault_code(first.kind), causes.join("; "))
            .in_regions(failed().map(|(region, _)| region)),
        None => ApiError::new(CommonErrorCode::InternalError, ""),
    }
}

/// Returns the latest time at which `WaitOperation` returns.
fn wait_until(timeout: Option<prost_types::Duration>, deadline: Option<CallDeadline>) -> Result<Instant, ApiError> {
    let now = Instant::now();
    let latest = deadline.map_or(now, |deadline| deadline.at - WAIT_MARGIN.min(deadline.allowed / 10));
    let Some(timeout) = timeout else { return Ok(latest) };
    let invalid =
        |error| ApiError::invalid(Violation { field: "timeout", description: format!("{timeout:?}: {error}") });
    let timeout = Duration::try_from(timeout).map_err(invalid)?;
    Ok(now.checked_add(timeout).map_or(latest, |at| at.min(latest)))
}

#[async_trait]
impl Operations for SyncHandlers {
    async fn list_operations(
        &self,
        request: Request<ListOperationsRequest>,
    ) -> Result<Response<ListOperationsResponse>, Status> {
        handle(self.contract, request, |request, _| async move {
            let body = request.into_inner();
            if !matches!(body.name.as_str(), "" | COLLECTION) {
                let description =
                    format!("{:?} has no operations; expected {COLLECTION:?}", ForeignText::value(&body.name));
                return Err(ApiError::invalid(Violation { field: "name", description }));
            }
            let filter = operation_fields::filter(&body.filter)?;
            let before = pagination::last_entry(&body.page_token)?;
            let size = pagination::size(body.page_size)?;
            let page = self.state.synchronization_list(&filter, before, size).await?;
            Ok(ListOperationsResponse {
                next_page_token: pagination::next_token(page.synchronizations.last().map(|s| &s.request_id), page.more),
                operations: page.synchronizations.iter().map(|s| self.operation(s)).collect(),
            })
        })
        .await
    }

    async fn get_operation(&self, request: Request<GetOperationRequest>) -> Result<Response<Operation>, Status> {
        handle(self.contract, request, |request, _| async move {
            let id = operation_fields::id(&request.get_ref().name)?;
            Ok(self.operation(&self.state.synchronization_get(id).await?))
        })
        .await
    }

    async fn cancel_operation(&self, request: Request<CancelOperationRequest>) -> Result<Response<()>, Status> {
        handle(self.contract, request, |request, _| async move {
            self.state.synchronization_cancel(operation_fields::id(&request.get_ref().name)?).await?;
            Ok(())
        })
        .await
    }

    async fn wait_operation(&self, request: Request<WaitOperationRequest>) -> Result<Response<Operation>, Status> {
        handle(self.contract, request, |request, _| async move {
            let deadline = request.extensions().get::<CallDeadline>().copied();
            let body = request.into_inner();
            let until = wait_until(body.timeout, deadline)?;
            self.wait(operation_fields::id(&body.name)?, until).await
        })
        .await
    }
}
