//! A synchronization as it goes on, through broken connections and services that are replaced.

use tonic::{Code, Streaming};

use super::{ApiErrorResponse, Client, Error, retry};
use crate::contract::v1::{
    Synchronization, SynchronizationState, WatchSynchronizationRequest, WatchSynchronizationResponse,
};

/// Snapshots of a synchronization, each when something has changed, the last when it has ended. Every snapshot is whole: one that
/// comes after a broken connection has everything that happened meanwhile.
#[derive(Debug)]
pub struct Watch {
    client: Client,
    request_id: String,
    stream: Option<Streaming<WatchSynchronizationResponse>>,
    last: Option<Synchronization>,
    /// How often it has been opened in vain since something came.
    failures: u32,
}

impl Watch {
    pub(super) fn new(client: Client, request_id: String) -> Self {
        Self { client, request_id, stream: None, last: None, failures: 0 }
    }

    /// The next snapshot that differs from the one before; nothing after the last.
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
                let opened = self.client.app_sync().watch_synchronization(request).await?;
                self.stream.insert(opened.into_inner())
            }
        };
        match stream.message().await? {
            Some(message) => message.synchronization.ok_or(Error::Incomplete("synchronization")),
            // Only a synchronization that has ended ends a stream in order, and that was seen before.
            None => Err(tonic::Status::unavailable("the stream ended before the synchronization").into()),
        }
    }

    /// Waits before it is opened again, if that may help.
    async fn pause(&mut self, refusal: Box<ApiErrorResponse>) -> Result<(), Error> {
        // One that was open, and ended because streams don't live for ever, is opened again at once.
        let outlived = self.stream.take().is_some() && refusal.status.code() == Code::DeadlineExceeded;
        let wait = retry::wait(&refusal, &self.client.backoff, self.failures, rand::random());
        self.failures += 1;
        match wait {
            _ if outlived => Ok(()),
            Some(wait) => {
                tokio::time::sleep(wait).await;
                Ok(())
            }
            None => Err(Error::Refused(refusal)),
        }
    }
}
