//! `appferry health`: what a container's health check runs.

use std::time::Duration;

use clap::Args;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{Error, Result, connection::Connection, print};

const PATIENCE: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    connection: Connection,
}

/// Asks a service whether it is healthy.
pub async fn run(arguments: Arguments) -> Result<()> {
    let ask = async {
        let mut client = HealthClient::new(arguments.connection.builder()?.channel().await?);
        let response = client.check(HealthCheckRequest::default()).await?.into_inner();
        Ok::<_, Error>(response.status())
    };
    let status = tokio::time::timeout(PATIENCE, ask).await.map_err(Error::local("no answer"))??;
    if status == ServingStatus::Serving {
        print::line("SERVING")
    } else {
        Err(Error::Ended(format!("the service is {}", status.as_str_name())))
    }
}
