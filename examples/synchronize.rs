//! Synchronizes an image to regions with the client library and prints its progress.
//!
//! `cargo run --example synchronize -- APP_ID [REGION]…`, with `APPFERRY_ENDPOINT` (default: `http://127.0.0.1:50051`)
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

    // The library adds a client token, so that the service accepts the request only once, even after retries.
    let request = SynchronizeAppRequest { app_id, target_region_ids: arguments.collect(), ..Default::default() };
    let request_id = match client.synchronize_app(request).await {
        Ok(id) => id,
        Err(error) => {
            if let Some(refusal) = error.refusal() {
                eprintln!("rejected: {} (request {})", refusal.reason, refusal.request_id.as_deref().unwrap_or("?"));
            }
            return Err(error.into());
        }
    };
    println!("accepted as {request_id}");

    // Each snapshot is complete, so that nothing is missed when the library reopens the stream.
    let mut watch = client.watch(request_id);
    let mut state = SynchronizationState::Unspecified;
    while let Some(synchronization) = watch.next().await? {
        let regions = synchronization.regions.iter();
        let states =
            regions.map(|r| format!("{} {}", r.region_id, r.state().as_str_name().trim_start_matches("REGION_STATE_")));
        println!("{}", states.collect::<Vec<_>>().join(", "));
        state = synchronization.state();
    }
    Ok(if state == SynchronizationState::Succeeded { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
