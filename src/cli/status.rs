//! `appferry status`: prints or watches a synchronization.

use clap::Args;

use super::{Error, Result, connection::Connection, print, progress::Progress};
use crate::{
    client::Client,
    contract::v1::{Synchronization, SynchronizationState},
};

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    connection: Connection,
    /// The request id that `sync` printed.
    request_id: String,
    /// Watch until it has ended; exit non-zero unless it succeeded.
    #[arg(long)]
    watch: bool,
    /// Print JSON; with --watch, one line per change.
    #[arg(long)]
    json: bool,
}

/// Prints a synchronization, or watches it.
pub async fn run(arguments: Arguments) -> Result<()> {
    let client = arguments.connection.client().await?;
    if !arguments.watch {
        let synchronization = client.get_synchronization(&arguments.request_id).await?;
        return if arguments.json {
            print::message("Synchronization", &synchronization)
        } else {
            print::line(&print::synchronization(&synchronization))
        };
    }
    let json = arguments.json;
    let each = |s: &Synchronization| if json { print::message("Synchronization", s) } else { Ok(()) };
    let last = follow(&client, &arguments.request_id, !json, each).await?;
    if !json {
        print::line(&print::synchronization(&last))?;
    }
    check_succeeded(&last)
}

/// Watches a synchronization until it ends, and returns the last snapshot. Shows progress if `show` is set, and calls
/// `each` for every snapshot.
pub async fn follow(
    client: &Client,
    request_id: &str,
    show: bool,
    each: impl Fn(&Synchronization) -> Result<()>,
) -> Result<Synchronization> {
    let mut progress = Progress::new();
    let last = watch(client, request_id, |snapshot| {
        if show {
            progress.show(snapshot);
        }
        each(snapshot)
    });
    let last = last.await;
    progress.finish();
    last
}

async fn watch(
    client: &Client,
    request_id: &str,
    mut each: impl FnMut(&Synchronization) -> Result<()>,
) -> Result<Synchronization> {
    let mut watch = client.watch(request_id);
    let mut last = None;
    while let Some(snapshot) = watch.next().await? {
        each(&snapshot)?;
        last = Some(snapshot);
    }
    last.ok_or_else(|| Error::failed(format!("the service sent no snapshot of {request_id}")))
}

/// Fails unless the synchronization succeeded.
pub fn check_succeeded(last: &Synchronization) -> Result<()> {
    match last.state() {
        SynchronizationState::Succeeded => Ok(()),
        state => Err(Error::failed(format!(
            "synchronization {} ended as {}",
            last.request_id,
            print::synchronization_state(state)
        ))),
    }
}
