//! `google.longrunning.Operations`: synchronizations for clients that know nothing of them (AIP-151). The same handlers' other
//! face.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, timeout_at};
use tonic::{Code as GrpcCode, Request, Response, Status, async_trait};
use tonic_types::pb;

use super::{app_sync::AppSync, layer::Deadline, page, permit::Permit, wire};
use crate::{
    contract::{
        Failure, Violation, any,
        longrunning::{
            CancelOperationRequest, GetOperationRequest, ListOperationsRequest, ListOperationsResponse, Operation,
            WaitOperationRequest, operation::Result as Ending, operations_server::Operations,
        },
        v1::CommonErrorCode,
    },
    db::SynchronizationFilter,
    domain::{ForeignText, RequestId, Synchronization, SynchronizationState},
};

/// What the names of operations begin with.
const COLLECTION: &str = "operations";
/// How long before a call's deadline whoever waits is answered: a part of what it may take, and this at most.
const BEFORE_DEADLINE: Duration = Duration::from_secs(1);

impl AppSync {
    fn operation(&self, of: &Synchronization) -> Operation {
        let rows = &self.contract.errors;
        let synchronization = any("appferry.v1.Synchronization", &self.wire(of));
        let result = match of.state {
            SynchronizationState::Running => None,
            SynchronizationState::Succeeded => Some(Ending::Response(synchronization.clone())),
            SynchronizationState::Failed => Some(Ending::Error(failure(of).rpc_status(rows, of.request_id))),
            SynchronizationState::Canceled => {
                let message = "The synchronization was canceled before the image was in every region".to_owned();
                Some(Ending::Error(pb::Status { code: GrpcCode::Cancelled.into(), message, details: Vec::new() }))
            }
        };
        let name = format!("{COLLECTION}/{}", of.request_id);
        Operation { name, metadata: Some(synchronization), done: of.state.is_terminal(), result }
    }

    /// Waits until it is done, until `at`, or until the service stops, and tells where it stands then.
    async fn wait(&self, id: RequestId, at: Instant) -> Result<Operation, Failure> {
        let mut snapshots = self.state.synchronization_watch(id).await?;
        let done = snapshots.wait_for(|snapshot| snapshot.state.is_terminal());
        tokio::select! {
            // Whoever feeds it ends with the service, and then this is what is known.
            _ = timeout_at(at, done) => {}
            () = self.stop.cancelled() => {}
        }
        let last = Arc::clone(&snapshots.borrow());
        Ok(self.operation(&last))
    }

    async fn answer<T>(&self, permit: &Permit, answer: impl Future<Output = Result<T, Failure>>) -> Answer<T> {
        answer.await.map(Response::new).map_err(|failure| self.refuse(permit, failure))
    }
}

type Answer<T> = Result<Response<T>, Status>;

/// Why a synchronization has failed: the first region that did says how, and all are named.
fn failure(of: &Synchronization) -> Failure {
    let failed = || of.regions.iter().filter_map(|view| Some((&view.region, view.fault.as_ref()?)));
    let causes: Vec<String> = failed().map(|(region, fault)| format!("{region}: {}", fault.message)).collect();
    match failed().next() {
        Some((_, first)) => {
            Failure::new(wire::fault_code(first.kind), causes.join("; ")).in_regions(failed().map(|(region, _)| region))
        }
        None => Failure::new(CommonErrorCode::InternalError, ""),
    }
}

/// Reads the name of an operation.
fn id(name: &str) -> Result<RequestId, Failure> {
    let refused = |description: String| Failure::invalid(Violation { field: "name", description });
    let id = name
        .strip_prefix(COLLECTION)
        .and_then(|rest| rest.strip_prefix('/'))
        .ok_or_else(|| refused(format!("{:?} is not {COLLECTION}/REQUEST_ID", ForeignText::value(name))))?;
    id.parse().map_err(|error: crate::domain::IdError| refused(error.to_string()))
}

/// Reads a filter: comparisons by `=`, joined by AND (AIP-160).
fn filter(text: &str) -> Result<SynchronizationFilter, Failure> {
    let mut filter = SynchronizationFilter::default();
    if text.trim().is_empty() {
        return Ok(filter);
    }
    let refused = |problem: String| Failure::invalid(Violation { field: "filter", description: problem });
    for term in text.split(" AND ") {
        let (key, value) = term
            .split_once('=')
            .map(|(key, value)| (key.trim(), value.trim().trim_matches('"')))
            .ok_or_else(|| refused(format!("{:?} is not KEY = VALUE", ForeignText::value(term))))?;
        let twice = match (key, value) {
            ("done", "false") => filter.state.replace(SynchronizationState::Running).is_some(),
            ("metadata.state", name) => {
                let none = |_| {
                    refused(format!(
                        "{:?} is no state: RUNNING, SUCCEEDED, FAILED or CANCELED",
                        ForeignText::value(name)
                    ))
                };
                let state: SynchronizationState = name.parse().map_err(none)?;
                filter.state.replace(state).is_some()
            }
            ("metadata.app_id", id) => filter.image.replace(wire::id("filter", id)?).is_some(),
            _ => {
                let known = "done = false, metadata.state = STATE and metadata.app_id = \"ID\"";
                return Err(refused(format!("{:?} is not known; expected {known}", ForeignText::value(term.trim()))));
            }
        };
        if twice {
            return Err(refused(format!("{:?} says again what was said before", ForeignText::value(term.trim()))));
        }
    }
    Ok(filter)
}

#[async_trait]
impl Operations for AppSync {
    async fn list_operations(&self, mut request: Request<ListOperationsRequest>) -> Answer<ListOperationsResponse> {
        let permit = Permit::take(&mut request)?;
        let body = request.into_inner();
        let answer = async {
            if !matches!(body.name.as_str(), "" | COLLECTION) {
                let description =
                    format!("{:?} has no operations; expected {COLLECTION:?}", ForeignText::value(&body.name));
                return Err(Failure::invalid(Violation { field: "name", description }));
            }
            let (filter, before) = (filter(&body.filter)?, page::after(&body.page_token)?);
            let found = self.state.synchronization_list(&filter, before, page::size(body.page_size)?).await?;
            Ok(ListOperationsResponse {
                next_page_token: page::next(found.synchronizations.last().map(|s| &s.request_id), found.more),
                operations: found.synchronizations.iter().map(|s| self.operation(s)).collect(),
            })
        };
        self.answer(&permit, answer).await
    }

    async fn get_operation(&self, mut request: Request<GetOperationRequest>) -> Answer<Operation> {
        let permit = Permit::take(&mut request)?;
        let body = request.into_inner();
        let answer = async { Ok(self.operation(&self.state.synchronization_get(id(&body.name)?).await?)) };
        self.answer(&permit, answer).await
    }

    async fn cancel_operation(&self, mut request: Request<CancelOperationRequest>) -> Answer<()> {
        let permit = Permit::take(&mut request)?;
        let body = request.into_inner();
        let answer = async {
            self.state.synchronization_cancel(id(&body.name)?).await?;
            Ok(())
        };
        self.answer(&permit, answer).await
    }

    async fn wait_operation(&self, mut request: Request<WaitOperationRequest>) -> Answer<Operation> {
        let permit = Permit::take(&mut request)?;
        let deadline = request.extensions().get::<Deadline>().copied();
        let body = request.into_inner();
        let answer = async {
            let now = Instant::now();
            let in_time = deadline.map_or(now, |d| d.at - BEFORE_DEADLINE.min(d.allowed / 10));
            let patience = match body.timeout {
                None => in_time,
                Some(asked) => {
                    let refused = |error| {
                        Failure::invalid(Violation { field: "timeout", description: format!("{asked:?}: {error}") })
                    };
                    let asked = Duration::try_from(asked).map_err(refused)?;
                    now.checked_add(asked).map_or(in_time, |at| at.min(in_time))
                }
            };
            self.wait(id(&body.name)?, patience).await
        };
        self.answer(&permit, answer).await
    }
}

#[cfg(test)]
mod tests {
    use super::{filter, id};
    use crate::{db::SynchronizationFilter, domain::SynchronizationState};

    #[test]
    fn a_filter_is_what_it_says_or_is_refused() {
        let both = filter("done = false AND metadata.app_id=\"ci-vm-1\"").expect("a filter");
        assert_eq!(
            (both.state, both.image.map(|id| id.to_string())),
            (Some(SynchronizationState::Running), Some("ci-vm-1".into()))
        );
        assert_eq!(filter("metadata.state = FAILED").expect("a filter").state, Some(SynchronizationState::Failed));
        let SynchronizationFilter { state, image } = filter(" ").expect("all");
        assert!(state.is_none() && image.is_none());
        for bad in [
            "done = true",
            "done",
            "metadata.state = LOST",
            "done = false AND metadata.state = FAILED",
            "app = 1",
            "metadata.app_id = \"../x\"",
            "done = false OR done = false",
        ] {
            assert!(filter(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_name_is_that_of_an_operation() {
        assert!(id("operations/896D338C-E4F4-41EC-A154-D605E5DE42F1").is_ok());
        for bad in [
            "",
            "operations",
            "operations/",
            "operations/x",
            "896D338C-E4F4-41EC-A154-D605E5DE42F1",
            "operation/896D338C-E4F4-41EC-A154-D605E5DE42F1",
        ] {
            assert!(id(bad).is_err(), "{bad}");
        }
    }
}
