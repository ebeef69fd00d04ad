//! `appferry cancel`.

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

/// Cancels a synchronization and shows where it stands then.
pub async fn run(arguments: Arguments) -> Result<()> {
    let found = arguments.connection.client().await?.cancel_synchronization(arguments.request_id).await?;
    if arguments.json {
        print::message("Synchronization", &found)
    } else {
        print::line(&print::synchronization(&found))
    }
}
