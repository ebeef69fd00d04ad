//! `appferry regions`.

use clap::Args;

use super::{Result, client::Connection, print};
use crate::contract::v1::ListRegionsRequest;

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    connection: Connection,
    /// Print JSON, a line each.
    #[arg(long)]
    json: bool,
}

/// Lists the regions.
pub async fn run(arguments: Arguments) -> Result<()> {
    let response = arguments.connection.images().await?.list_regions(ListRegionsRequest {}).await?.into_inner();
    if arguments.json {
        return response.regions.iter().try_for_each(|region| print::message("Region", region));
    }
    let rows: Vec<_> = response
        .regions
        .into_iter()
        .map(|r| [r.region_id, if r.home { "home".to_owned() } else { String::new() }, r.store_kind])
        .collect();
    print::line(&print::table(["REGION", "ROLE", "STORE"], &rows))
}
