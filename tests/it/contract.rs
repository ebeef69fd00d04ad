//! The contract: every row of the error tables reaches a client as the original API documents it, and the service
//! describes itself by reflection and health, which require no credential.

use std::{collections::HashMap, time::Duration};

use appferry::contract::{
    ApiError, ApiErrorCode, Contract,
    v1::{
        CommonErrorCode, ErrorCode, SynchronizeAppRequest, SynchronizeAppResponse,
        app_sync_service_client::AppSyncServiceClient,
        app_sync_service_server::{AppSyncService, AppSyncServiceServer},
    },
};
use tokio::net::TcpListener;
use tokio_stream::{Stream, wrappers::TcpListenerStream};
use tonic::{Code as Grpc, Request, Response, Status, transport::Server};
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient};

use crate::harness::{
    process, refusal,
    site::{self, Site},
};

/// The error table of SynchronizeApp in the original API's documentation, with the gRPC status of each row.
const OWN: [(ErrorCode, i32, &str, &str, Grpc); 8] = [
    (ErrorCode::ImageAlreadyExists, 400, "ImageAlreadyExists", "The image id already exists.", Grpc::AlreadyExists),
    (ErrorCode::InvalidParams, 403, "InvalidParams", "Invalid parameters: the cause.", Grpc::InvalidArgument),
    (ErrorCode::ImageNotFound, 404, "ImageNotFound", "The specified image does not exist.", Grpc::NotFound),
    (ErrorCode::DbError, 406, "DbError", "A database error occurred.", Grpc::Internal),
    (
        ErrorCode::ServiceApiError,
        406,
        "ServiceAPIError",
        "Failed to call the operation. Cause:the cause.",
        Grpc::Internal,
    ),
    (ErrorCode::EcsError, 406, "EcsError", "An error occurred while calling the ECS API operation.", Grpc::Internal),
    (ErrorCode::AliyunError, 406, "AliyunError", "An Alibaba Cloud product error occurred.", Grpc::Internal),
    (
        ErrorCode::ServiceUnavailable,
        503,
        "ServiceUnavailable",
        "The request has failed due to a temporary failure of the server.",
        Grpc::Unavailable,
    ),
];

/// The errors that all operations of the product share.
const COMMON: [(CommonErrorCode, i32, &str, Grpc); 7] = [
    (CommonErrorCode::NoPermission, 403, "NoPermission", Grpc::PermissionDenied),
    (CommonErrorCode::InvalidAccessKeyIdNotFound, 404, "InvalidAccessKeyId.NotFound", Grpc::Unauthenticated),
    (CommonErrorCode::SignatureDoesNotMatch, 400, "SignatureDoesNotMatch", Grpc::Unauthenticated),
    (CommonErrorCode::InvalidTimeStampExpired, 400, "InvalidTimeStamp.Expired", Grpc::Unauthenticated),
    (CommonErrorCode::SignatureNonceUsed, 400, "SignatureNonceUsed", Grpc::Unauthenticated),
    (CommonErrorCode::MissingCredentials, 401, "MissingCredentials", Grpc::Unauthenticated),
    (CommonErrorCode::Throttling, 429, "Throttling", Grpc::ResourceExhausted),
];

/// A service that rejects every call with the error that its `app_id` names.
struct Refusing(&'static Contract, HashMap<String, ApiErrorCode>);

#[tonic::async_trait]
impl AppSyncService for Refusing {
    async fn synchronize_app(
        &self,
        request: Request<SynchronizeAppRequest>,
    ) -> Result<Response<SynchronizeAppResponse>, Status> {
        let code = self.1[&request.into_inner().app_id];
        let id = appferry::new_request_id();
        let mut status = ApiError::new(code, "the cause").status(&self.0.errors, id);
        status.metadata_mut().insert("x-request-id", id.to_string().parse().expect("text"));
        Err(status)
    }

    async fn get_synchronization(
        &self,
        _: Request<appferry::contract::v1::GetSynchronizationRequest>,
    ) -> Result<Response<appferry::contract::v1::GetSynchronizationResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn list_synchronizations(
        &self,
        _: Request<appferry::contract::v1::ListSynchronizationsRequest>,
    ) -> Result<Response<appferry::contract::v1::ListSynchronizationsResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    type WatchSynchronizationStream = std::pin::Pin<
        Box<dyn Stream<Item = Result<appferry::contract::v1::WatchSynchronizationResponse, Status>> + Send>,
    >;

    async fn watch_synchronization(
        &self,
        _: Request<appferry::contract::v1::WatchSynchronizationRequest>,
    ) -> Result<Response<Self::WatchSynchronizationStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn cancel_synchronization(
        &self,
        _: Request<appferry::contract::v1::CancelSynchronizationRequest>,
    ) -> Result<Response<appferry::contract::v1::CancelSynchronizationResponse>, Status> {
        Err(Status::unimplemented(""))
    }
}

#[tokio::test]
async fn every_row_of_the_error_tables_reaches_a_client_as_it_is_documented() {
    let codes = OWN.iter().map(|row| (row.2.to_owned(), ApiErrorCode::SynchronizeApp(row.0)));
    let codes = codes.chain(COMMON.iter().map(|row| (row.2.to_owned(), ApiErrorCode::Common(row.0)))).collect();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let service = AppSyncServiceServer::new(Refusing(Contract::load().expect("the contract"), codes));
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(TcpListenerStream::new(listener)));
    let mut client = AppSyncServiceClient::new(site::channel(address).await);

    for (code, http_status, reason, message, grpc) in OWN {
        let refused = client.synchronize_app(site::ask(reason, &[])).await.expect_err(reason);
        let refused = refusal::read(&refused);
        refused.is(grpc, reason, http_status);
        assert!(refused.message.starts_with(message), "{:?}", refused.message);
        assert_eq!(refusal::code(&refused.detail), code.into());
    }
    for (code, http_status, reason, grpc) in COMMON {
        let refused = client.synchronize_app(site::ask(reason, &[])).await.expect_err(reason);
        let refused = refusal::read(&refused);
        refused.is(grpc, reason, http_status);
        assert_eq!(refusal::code(&refused.detail), code.into());
    }
}

#[tokio::test]
async fn health_is_told_to_everybody_and_watched() {
    let running = Site::new().start().await;
    let mut client = HealthClient::new(running.channel().await);
    for service in ["", "appferry.v1.AppSyncService", "appferry.v1.ImageService", "google.longrunning.Operations"] {
        let check = HealthCheckRequest { service: service.to_owned() };
        let status = client.check(check.clone()).await.expect("it is answered").into_inner().status();
        assert_eq!(status, ServingStatus::Serving, "{service}");
    }
    let mut watch = client.watch(HealthCheckRequest::default()).await.expect("it is answered").into_inner();
    assert_eq!(watch.message().await.expect("it goes on").expect("a status").status(), ServingStatus::Serving);
    let stopped = tokio::spawn(running.stop());
    let last = watch.message().await.expect("it goes on").expect("a status");
    assert_eq!(last.status(), ServingStatus::NotServing);
    // A watch does not delay the shutdown: the service ends its stream instead of cutting it off after the default
    // 12 s.
    while let Some(contains) = watch.message().await.expect("it ends in order") {
        assert_eq!(contains.status(), ServingStatus::NotServing);
    }
    tokio::time::timeout(Duration::from_secs(6), stopped).await.expect("at once").expect("it stops");
}

#[tokio::test]
async fn reflection_tells_the_services_of_both_versions_and_the_tables() {
    use tonic_reflection::pb::{v1, v1alpha};
    let running = Site::new().start().await;

    let ask = v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1::server_reflection_request::MessageRequest::FileContainingSymbol(
            "appferry.v1.AppSyncService".to_owned(),
        )),
    };
    let list = v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(String::new())),
    };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(running.channel().await);
    let mut answers =
        client.server_reflection_info(tokio_stream::iter([list, ask])).await.expect("it is answered").into_inner();
    let answer = answers.message().await.expect("it goes on").expect("an answer");
    let Some(v1::server_reflection_response::MessageResponse::ListServicesResponse(services)) = answer.message_response
    else {
        panic!("{answer:?}");
    };
    let mut names: Vec<_> = services.service.into_iter().map(|s| s.name).collect();
    names.sort();
    for name in ["appferry.v1.AppSyncService", "appferry.v1.ImageService", "grpc.health.v1.Health"] {
        assert!(names.iter().any(|n| n == name), "{name} is not among {names:?}");
    }
    let answer = answers.message().await.expect("it goes on").expect("an answer");
    let Some(v1::server_reflection_response::MessageResponse::FileDescriptorResponse(files)) = answer.message_response
    else {
        panic!("{answer:?}");
    };
    // Reflection serves the custom options, so that clients can read the authorization rules.
    let action = b"ehpc:SynchronizeApp";
    let contains =
        files.file_descriptor_proto.iter().any(|file| file.windows(action.len()).any(|bytes| bytes == action));
    assert!(contains, "the authorization option is lost");

    let list = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1alpha::server_reflection_request::MessageRequest::ListServices(String::new())),
    };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(running.channel().await);
    let mut answers =
        client.server_reflection_info(tokio_stream::iter([list])).await.expect("it is answered").into_inner();
    let answer = format!("{:?}", answers.message().await.expect("it goes on"));
    assert!(answer.contains("appferry.v1.AppSyncService"), "{answer}");
    running.stop().await;
}

/// Clients built with a released contract keep working: `scripts/breaking` detects a change that would break them.
#[test]
fn what_breaks_clients_is_found() {
    let directory = tempfile::tempdir().expect("a directory");
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let within = |program: &str, arguments: &[&str]| {
        let path = format!("{}:{}", root.join(".tools/bin").display(), std::env::var("PATH").unwrap_or_default());
        let mut command = std::process::Command::new(program);
        command.args(arguments).current_dir(directory.path()).env("PATH", path);
        command.output().expect("it runs: source scripts/tools")
    };
    for part in ["proto", "buf.yaml", "scripts"] {
        let from = root.join(part);
        process::stdout(&within("cp", &["-r", from.to_str().expect("text"), "."]));
    }
    let breaking = |arguments: &[&str]| within("scripts/breaking", arguments);
    let is_refused = |named: &str| {
        let output = breaking(&[]);
        let message = String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success() && message.contains(named), "{output:?}");
    };
    process::stdout(&breaking(&[]));

    let file = directory.path().join("proto/appferry/v1/app_sync.proto");
    let proto = std::fs::read_to_string(&file).expect("the contract");
    let write = |contract: &str| std::fs::write(&file, contract).expect("it is written");
    write(&proto.replace("string client_token = 3;", "string client_token = 15;"));
    is_refused("SynchronizeAppRequest");
    // Adding a field breaks no client. Removing the field after a release does.
    write(&proto.replace("string client_token = 3;", "string client_token = 3;\n  string note = 15;"));
    process::stdout(&breaking(&[]));
    process::stdout(&breaking(&["--release"]));
    process::stdout(&breaking(&[]));
    write(&proto);
    is_refused("note");
}
