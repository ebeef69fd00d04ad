//! `appferry list`.

use clap::Args;

use super::{Error, Result, connection::Connection, print};
use crate::contract::v1::{ListSynchronizationsRequest, RegionState, Synchronization, SynchronizationState};

/// Entries that are asked for at once.
const PAGE: i32 = 200;

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    connection: Connection,
    /// Only those of this image.
    #[arg(long, value_name = "APP_ID", default_value = "")]
    app: String,
    /// Only those in this state: running, succeeded, failed or canceled.
    #[arg(long)]
    state: Option<String>,
    /// At most as many.
    #[arg(long, default_value_t = 50, value_name = "N")]
    limit: usize,
    /// Print JSON, a line each.
    #[arg(long)]
    json: bool,
}

/// Lists synchronizations.
pub async fn run(arguments: Arguments) -> Result<()> {
    let state = match &arguments.state {
        None => SynchronizationState::Unspecified,
        Some(name) => SynchronizationState::from_str_name(&format!("SYNCHRONIZATION_STATE_{}", name.to_uppercase()))
            .filter(|state| *state != SynchronizationState::Unspecified)
            .ok_or_else(|| Error::Usage(format!("--state {name}: expected running, succeeded, failed or canceled")))?,
    };
    let client = arguments.connection.client().await?;
    let mut found: Vec<Synchronization> = Vec::new();
    let mut page_token = String::new();
    while found.len() < arguments.limit {
        let request = ListSynchronizationsRequest {
            app_id: arguments.app.clone(),
            state: state.into(),
            page_size: PAGE,
            page_token,
        };
        let page = client.list_synchronizations(request).await?;
        found.extend(page.synchronizations);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    found.truncate(arguments.limit);
    if arguments.json {
        return found.iter().try_for_each(|s| print::message("Synchronization", s));
    }
    let rows: Vec<_> = found.iter().map(row).collect();
    print::line(&print::table(["REQUEST", "APP", "STATE", "AVAILABLE", "CREATED"], &rows))
}

fn row(s: &Synchronization) -> [String; 5] {
    let available = s.regions.iter().filter(|r| r.state() == RegionState::Available).count();
    [
        s.request_id.clone(),
        s.app_id.clone(),
        print::synchronization_state(s.state()).to_owned(),
        format!("{available}/{}", s.regions.len()),
        s.create_time.as_ref().map(ToString::to_string).unwrap_or_default(),
    ]
}
