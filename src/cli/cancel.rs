//! `appferry cancel`: cancels a synchronization.

use clap::Args;

use super::{Result, connection::Connection, print};

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

/// Cancels a synchronization and prints its state.
pub async fn run(arguments: Arguments) -> Result<()> {
    let synchronization = arguments.connection.client().await?.cancel_synchronization(arguments.request_id).await?;
    if arguments.json {
        print::message("Synchronization", &synchronization)
    } else {
        print::line(&print::synchronization(&synchronization))
    }
}
