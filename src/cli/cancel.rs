//! `appferry cancel`.

use clap::Args;

use super::{Result, client::Connection, print};
use crate::contract::v1::CancelSynchronizationRequest;

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    connection: Connection,
    /// The request id that `sync` printed.
    request_id: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Cancels a synchronization and shows where it stands then.
pub async fn run(arguments: Arguments) -> Result<()> {
    let request = CancelSynchronizationRequest { request_id: arguments.request_id };
    let response = arguments.connection.app_sync().await?.cancel_synchronization(request).await?.into_inner();
    let found = response.synchronization.unwrap_or_default();
    if arguments.json {
        print::message("Synchronization", &found)
    } else {
        print::line(&print::synchronization(&found))
    }
}
