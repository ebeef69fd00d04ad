//! `appferry sync`.

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
    /// The image.
    app_id: String,
    /// A region to carry it to; may be repeated. Without it, all that have not got it.
    #[arg(long, value_name = "REGION")]
    to: Vec<String>,
    /// A name for this call: repeated with the same name, it is not carried out again.
    #[arg(long, value_name = "TOKEN", default_value = "")]
    client_token: String,
    /// Replace what others have put in the image's place in a region; without it, such a region fails.
    #[arg(long)]
    overwrite: bool,
    /// Wait until it has ended, showing its progress; fail if it did.
    #[arg(long)]
    wait: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Asks for a synchronization, and follows it if that is wanted.
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
        return status::judge(&last);
    }
    if arguments.json {
        print::message("SynchronizeAppResponse", &SynchronizeAppResponse { request_id })
    } else {
        print::line(&ForeignText::value(request_id))
    }
}
