//! `appferry health`: checks the health of a service, for the health check of a container.

use std::time::Duration;

use clap::Args;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use super::{Error, Result, connection::Connection, print};

const TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    connection: Connection,
}

/// Prints the health of a service. Fails if it is not SERVING.
pub async fn run(arguments: Arguments) -> Result<()> {
    let check = async {
        let mut client = HealthClient::new(arguments.connection.builder()?.channel().await?);
        let response = client.check(HealthCheckRequest::default()).await?.into_inner();
        Ok::<_, Error>(response.status())
    };
    let status =
        tokio::time::timeout(TIMEOUT, check).await.map_err(Error::local("the service did not respond in time"))??;
    if status == ServingStatus::Serving {
        print::line("SERVING")
    } else {
        Err(Error::failed(format!("the service is {}", status.as_str_name())))
    }
}
