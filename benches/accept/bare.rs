//! The baseline: a tonic server with an empty implementation of `AppSyncService`.

use std::net::SocketAddr;

use appferry::contract::v1::{SynchronizeAppRequest, SynchronizeAppResponse};
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

use super::Result;

/// Starts the baseline server and returns its address.
pub fn serve() -> Result<SocketAddr> {
    use appferry::contract::v1::app_sync_service_server::AppSyncServiceServer;
    let (incoming, address) = listen()?;
    tokio::spawn(Server::builder().add_service(AppSyncServiceServer::new(Bare)).serve_with_incoming(incoming));
    Ok(address)
}

/// Binds a listener on a free port, with `TCP_NODELAY` set: delayed acknowledgements would add up to 40 ms to a
/// response.
pub fn listen() -> Result<(TcpIncoming, SocketAddr)> {
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse()?)?.with_nodelay(Some(true));
    let address = incoming.local_addr()?;
    Ok((incoming, address))
}

/// Answers every call with a constant.
pub struct Bare;

#[tonic::async_trait]
impl appferry::contract::v1::app_sync_service_server::AppSyncService for Bare {
    async fn synchronize_app(
        &self,
        _: Request<SynchronizeAppRequest>,
    ) -> std::result::Result<Response<SynchronizeAppResponse>, Status> {
        Ok(Response::new(SynchronizeAppResponse { request_id: "0193D5A0-0000-7000-8000-000000000000".into() }))
    }

    async fn get_synchronization(
        &self,
        _: Request<appferry::contract::v1::GetSynchronizationRequest>,
    ) -> std::result::Result<Response<appferry::contract::v1::GetSynchronizationResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_synchronizations(
        &self,
        _: Request<appferry::contract::v1::ListSynchronizationsRequest>,
    ) -> std::result::Result<Response<appferry::contract::v1::ListSynchronizationsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    type WatchSynchronizationStream =
        tokio_stream::Empty<std::result::Result<appferry::contract::v1::WatchSynchronizationResponse, Status>>;

    async fn watch_synchronization(
        &self,
        _: Request<appferry::contract::v1::WatchSynchronizationRequest>,
    ) -> std::result::Result<Response<Self::WatchSynchronizationStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn cancel_synchronization(
        &self,
        _: Request<appferry::contract::v1::CancelSynchronizationRequest>,
    ) -> std::result::Result<Response<appferry::contract::v1::CancelSynchronizationResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}
