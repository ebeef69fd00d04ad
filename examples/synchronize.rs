//! Copies an image to regions by the client library, and prints the progress.
//!
//! `cargo run --example synchronize -- APP_ID [REGION]…`, with `APPFERRY_ENDPOINT` (default `http://127.0.0.1:50051`)
//! and `APPFERRY_TOKEN`.

use std::{env, error::Error, process::ExitCode};

use appferry::{
    client::Client,
    contract::v1::{SynchronizationState, SynchronizeAppRequest},
};

#[tokio::main]
async fn main() -> Result<ExitCode, Box<dyn Error>> {
    let mut arguments = env::args().skip(1);
    let app_id = arguments.next().ok_or("usage: synchronize APP_ID [REGION]…")?;
    let endpoint = env::var("APPFERRY_ENDPOINT").unwrap_or_else(|_| "http://127.0.0.1:50051".to_owned());
    let client = Client::builder(endpoint).token(env::var("APPFERRY_TOKEN")?).connect().await?;

    // The call is accepted once, however often the library retries it.
    let request = SynchronizeAppRequest { app_id, target_region_ids: arguments.collect(), ..Default::default() };
    let request_id = match client.synchronize_app(request).await {
        Ok(id) => id,
        Err(error) => {
            if let Some(refusal) = error.refusal() {
                eprintln!("refused as {} (request {})", refusal.reason, refusal.request_id.as_deref().unwrap_or("?"));
            }
            return Err(error.into());
        }
    };
    println!("accepted as {request_id}");

    // Each message is a full snapshot, so nothing is lost when the library reconnects.
    let mut watch = client.watch(request_id);
    let mut ended = SynchronizationState::Unspecified;
    while let Some(synchronization) = watch.next().await? {
        let regions = synchronization.regions.iter();
        let shown =
            regions.map(|r| format!("{} {}", r.region_id, r.state().as_str_name().trim_start_matches("REGION_STATE_")));
        println!("{}", shown.collect::<Vec<_>>().join(", "));
        ended = synchronization.state();
    }
    Ok(if ended == SynchronizationState::Succeeded { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
