//! `appferry status`, and following a synchronization to its end.

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
    /// Follow it until it has ended; fail if it did.
    #[arg(long)]
    watch: bool,
    /// Print JSON: with --watch, a line a change.
    #[arg(long)]
    json: bool,
}

/// Shows a synchronization.
pub async fn run(arguments: Arguments) -> Result<()> {
    let client = arguments.connection.client().await?;
    if !arguments.watch {
        let found = client.get_synchronization(&arguments.request_id).await?;
        return if arguments.json {
            print::message("Synchronization", &found)
        } else {
            print::line(&print::synchronization(&found))
        };
    }
    let json = arguments.json;
    let each = |s: &Synchronization| if json { print::message("Synchronization", s) } else { Ok(()) };
    let last = follow(&client, &arguments.request_id, !json, each).await?;
    if !json {
        print::line(&print::synchronization(&last))?;
    }
    judge(&last)
}

/// Follows a synchronization to its end, and returns how it ended.
pub async fn follow(
    client: &Client,
    request_id: &str,
    show: bool,
    each: impl Fn(&Synchronization) -> Result<()>,
) -> Result<Synchronization> {
    let mut progress = Progress::new();
    let watched = watch(client, request_id, |snapshot| {
        if show {
            progress.show(snapshot);
        }
        each(snapshot)
    });
    let last = watched.await;
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
    last.ok_or_else(|| Error::Ended(format!("nothing was told of {request_id}")))
}

/// Whether a synchronization ended as it should.
pub fn judge(last: &Synchronization) -> Result<()> {
    match last.state() {
        SynchronizationState::Succeeded => Ok(()),
        state => Err(Error::Ended(format!(
            "the synchronization {} ended as {}",
            last.request_id,
            print::synchronization_state(state)
        ))),
    }
}
