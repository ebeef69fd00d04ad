//! `appferry status`, and following a synchronization to its end.

use std::time::Duration;

use clap::Args;
use tonic::Code;

use super::{Error, Result, client::Connection, print, progress::Progress};
use crate::contract::v1::{
    GetSynchronizationRequest, Synchronization, SynchronizationState, WatchSynchronizationRequest,
};

/// How often a stream that breaks off is opened again, and how long to wait before.
const RECONNECTS: u32 = 20;
const RECONNECT_WAIT: Duration = Duration::from_millis(500);

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    connection: Connection,
    /// The request id that `sync` printed.
    request_id: String,
    /// Follow it until it has ended; fail if it did.
    #[arg(long)]
    watch: bool,
    /// Print JSON: with --watch, a line a change.
    #[arg(long)]
    json: bool,
}

/// Shows a synchronization.
pub async fn run(arguments: Arguments) -> Result<()> {
    if !arguments.watch {
        let request = GetSynchronizationRequest { request_id: arguments.request_id };
        let response = arguments.connection.app_sync().await?.get_synchronization(request).await?.into_inner();
        let found = response.synchronization.unwrap_or_default();
        return if arguments.json {
            print::message("Synchronization", &found)
        } else {
            print::line(&print::synchronization(&found))
        };
    }
    let json = arguments.json;
    let each = |s: &Synchronization| if json { print::message("Synchronization", s) } else { Ok(()) };
    let last = follow(&arguments.connection, &arguments.request_id, !json, each).await?;
    if !json {
        print::line(&print::synchronization(&last))?;
    }
    judge(&last)
}

/// Follows a synchronization to its end, and returns how it ended. A stream that breaks off is opened again: every snapshot is
/// whole, so that nothing is lost.
pub async fn follow(
    connection: &Connection,
    request_id: &str,
    show: bool,
    each: impl Fn(&Synchronization) -> Result<()>,
) -> Result<Synchronization> {
    let mut progress = Progress::new();
    let mut failures = 0;
    loop {
        let (error, progressed) = match watch(connection, request_id, &mut progress, show, &each).await {
            Ok(last) => {
                progress.finish();
                return Ok(last);
            }
            Err(broken) => broken,
        };
        failures = if progressed { 1 } else { failures + 1 };
        let temporary = match &error {
            Error::Refused(status) => matches!(
                status.code(),
                Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Internal
            ),
            Error::Local { .. } => progressed || failures > 1,
            Error::Ended(_) | Error::Usage(_) => false,
        };
        if !temporary || failures > RECONNECTS {
            progress.finish();
            return Err(error);
        }
        tokio::time::sleep(RECONNECT_WAIT).await;
    }
}

/// Watches once. An error tells whether anything had arrived before.
async fn watch(
    connection: &Connection,
    request_id: &str,
    progress: &mut Progress,
    show: bool,
    each: &impl Fn(&Synchronization) -> Result<()>,
) -> std::result::Result<Synchronization, (Error, bool)> {
    let mut progressed = false;
    let mut client = connection.app_sync().await.map_err(|error| (error, progressed))?;
    let request = WatchSynchronizationRequest { request_id: request_id.to_owned() };
    let mut stream =
        client.watch_synchronization(request).await.map_err(|error| (error.into(), progressed))?.into_inner();
    loop {
        let message = stream.message().await.map_err(|error| (error.into(), progressed))?;
        let Some(snapshot) = message.and_then(|m| m.synchronization) else {
            let status = tonic::Status::unavailable("the stream ended before the synchronization");
            return Err((status.into(), progressed));
        };
        progressed = true;
        if show {
            progress.show(&snapshot);
        }
        each(&snapshot).map_err(|error| (error, progressed))?;
        if snapshot.state() != SynchronizationState::Running {
            return Ok(snapshot);
        }
    }
}

/// Whether a synchronization ended as it should.
pub fn judge(last: &Synchronization) -> Result<()> {
    match last.state() {
        SynchronizationState::Succeeded => Ok(()),
        state => Err(Error::Ended(format!(
            "the synchronization {} ended as {}",
            last.request_id,
            print::synchronization_state(state)
        ))),
    }
}
