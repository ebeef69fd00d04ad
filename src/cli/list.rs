//! `appferry list`: lists synchronizations.

use clap::Args;

use super::{Error, Result, connection::Connection, print};
use crate::contract::v1::{ListSynchronizationsRequest, RegionState, Synchronization, SynchronizationState};

/// The page size of list requests.
const PAGE_SIZE: i32 = 200;

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    connection: Connection,
    /// Only synchronizations of this image.
    #[arg(long, value_name = "APP_ID", default_value = "")]
    app: String,
    /// Only synchronizations in this state: running, succeeded, failed or canceled.
    #[arg(long)]
    state: Option<String>,
    /// Maximum number of results.
    #[arg(long, default_value_t = 50, value_name = "N")]
    limit: usize,
    /// Print JSON, one line per synchronization.
    #[arg(long)]
    json: bool,
}

/// Prints synchronizations, newest first.
pub async fn run(arguments: Arguments) -> Result<()> {
    let state = match &arguments.state {
        None => SynchronizationState::Unspecified,
        Some(name) => SynchronizationState::from_str_name(&format!("SYNCHRONIZATION_STATE_{}", name.to_uppercase()))
            .filter(|state| *state != SynchronizationState::Unspecified)
            .ok_or_else(|| Error::usage(format!("--state {name}: expected running, succeeded, failed or canceled")))?,
    };
    let client = arguments.connection.client().await?;
    let mut synchronizations: Vec<Synchronization> = Vec::new();
    let mut page_token = String::new();
    while synchronizations.len() < arguments.limit {
        let request = ListSynchronizationsRequest {
            app_id: arguments.app.clone(),
            state: state.into(),
            page_size: PAGE_SIZE,
            page_token,
        };
        let page = client.list_synchronizations(request).await?;
        synchronizations.extend(page.synchronizations);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    synchronizations.truncate(arguments.limit);
    if arguments.json {
        return synchronizations.iter().try_for_each(|s| print::message("Synchronization", s));
    }
    let rows: Vec<_> = synchronizations.iter().map(row).collect();
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
