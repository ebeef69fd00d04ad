//! `appferry sync`: requests a synchronization.

use clap::Args;

use super::{Result, connection::Connection, print, status};
use crate::{
    contract::v1::{SynchronizeAppRequest, SynchronizeAppResponse},
    domain::ForeignText,
};

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    connection: Connection,
    /// The id of the image.
    app_id: String,
    /// A region to synchronize to; may be repeated. Default: all regions that do not have the image.
    #[arg(long, value_name = "REGION")]
    to: Vec<String>,
    /// An idempotency token: a repeated call with the same token returns the first request id.
    #[arg(long, value_name = "TOKEN", default_value = "")]
    client_token: String,
    /// Replace another image that has this image's name in a region; without it, the copy to such a region fails.
    #[arg(long)]
    overwrite: bool,
    /// Wait for the result, showing progress; exit non-zero unless it succeeded.
    #[arg(long)]
    wait: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Requests a synchronization, and waits for it if `--wait` is set.
pub async fn run(arguments: Arguments) -> Result<()> {
    let request = SynchronizeAppRequest {
        app_id: arguments.app_id,
        target_region_ids: arguments.to,
        client_token: arguments.client_token,
        overwrite: arguments.overwrite,
    };
    let client = arguments.connection.client().await?;
    let request_id = client.synchronize_app(request).await?;
    if arguments.wait {
        let last = status::follow(&client, &request_id, !arguments.json, |_| Ok(())).await?;
        if arguments.json {
            print::message("Synchronization", &last)?;
        } else {
            print::line(&print::synchronization(&last))?;
        }
        return status::check_succeeded(&last);
    }
    if arguments.json {
        print::message("SynchronizeAppResponse", &SynchronizeAppResponse { request_id })
    } else {
        print::line(&ForeignText::value(request_id))
    }
}
