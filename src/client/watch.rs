//! Watches a synchronization across broken connections and restarts of the service.

use tonic::{Code, Streaming};

use super::{ApiErrorResponse, Client, Error, retry};
use crate::contract::v1::{
    Synchronization, SynchronizationState, WatchSynchronizationRequest, WatchSynchronizationResponse,
};

/// A stream of snapshots of a synchronization: one for every change, and a last one when the synchronization has ended.
/// Every snapshot is complete, so that nothing is missed after a broken connection.
#[derive(Debug)]
pub struct Watch {
    client: Client,
    request_id: String,
    stream: Option<Streaming<WatchSynchronizationResponse>>,
    last: Option<Synchronization>,
    /// The number of failed attempts to open the stream since the last snapshot.
    failures: u32,
}

impl Watch {
    pub(super) fn new(client: Client, request_id: String) -> Self {
        Self { client, request_id, stream: None, last: None, failures: 0 }
    }

    /// Returns the next snapshot that differs from the previous one; `None` after the last one.
    pub async fn next(&mut self) -> Result<Option<Synchronization>, Error> {
        if self.last.as_ref().is_some_and(|last| last.state() != SynchronizationState::Running) {
            return Ok(None);
        }
        loop {
            match self.read().await {
                Ok(snapshot) => {
                    self.failures = 0;
                    if self.last.as_ref() != Some(&snapshot) {
                        self.last = Some(snapshot.clone());
                        return Ok(Some(snapshot));
                    }
                }
                Err(Error::Refused(refusal)) => self.pause(refusal).await?,
                Err(other) => return Err(other),
            }
        }
    }

    async fn read(&mut self) -> Result<Synchronization, Error> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let request = WatchSynchronizationRequest { request_id: self.request_id.clone() };
                let response = self.client.app_sync().watch_synchronization(request).await?;
                self.stream.insert(response.into_inner())
            }
        };
        match stream.message().await? {
            Some(message) => message.synchronization.ok_or(Error::Incomplete("synchronization")),
            // The stream of an ended synchronization ends after its last snapshot, and this watch has not received it.
            None => Err(tonic::Status::unavailable("the stream ended before the synchronization").into()),
        }
    }

    /// Waits before the stream is reopened. Fails if a retry would not help.
    async fn pause(&mut self, refusal: Box<ApiErrorResponse>) -> Result<(), Error> {
        // A stream that reached its maximum lifetime is reopened at once.
        let is_expired = self.stream.take().is_some() && refusal.status.code() == Code::DeadlineExceeded;
        let wait = retry::delay(&refusal, &self.client.backoff, self.failures, rand::random());
        self.failures += 1;
        match wait {
            _ if is_expired => Ok(()),
            Some(wait) => {
                tokio::time::sleep(wait).await;
                Ok(())
            }
            None => Err(Error::Refused(refusal)),
        }
    }
}
