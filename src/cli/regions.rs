//! `appferry regions`: lists the regions.

use clap::Args;

use super::{Result, connection::Connection, print};

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    connection: Connection,
    /// Print JSON, one line per region.
    #[arg(long)]
    json: bool,
}

/// Prints the regions.
pub async fn run(arguments: Arguments) -> Result<()> {
    let regions = arguments.connection.client().await?.list_regions().await?;
    if arguments.json {
        return regions.iter().try_for_each(|region| print::message("Region", region));
    }
    let rows: Vec<_> = regions
        .into_iter()
        .map(|r| [r.region_id, if r.home { "home".to_owned() } else { String::new() }, r.store_kind])
        .collect();
    print::line(&print::table(["REGION", "ROLE", "STORE"], &rows))
}
