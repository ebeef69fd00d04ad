//! The service as a command's client sees it.

use std::{fs, path::PathBuf, time::Duration};

use clap::Args;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use super::{Error, Result, embedded};
use crate::contract::v1::{app_sync_service_client::AppSyncServiceClient, image_service_client::ImageServiceClient};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the service is, and who calls.
#[derive(Debug, Clone, Args)]
pub struct Connection {
    /// The service's endpoint.
    #[arg(long, env = "APPFERRY_ENDPOINT", default_value = "http://127.0.0.1:50051", value_name = "URL")]
    pub endpoint: String,
    /// The file that holds the bearer token; without it, `$APPFERRY_TOKEN`, or that of ./appferry-data.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Certificates in PEM form that are trusted beside the system's.
    #[arg(long, env = "APPFERRY_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// The caller's own certificate in PEM form, which takes the place of a token.
    #[arg(long, value_name = "FILE", requires = "key_file")]
    pub certificate_file: Option<PathBuf>,
    /// Its private key in PEM form.
    #[arg(long, value_name = "FILE", requires = "certificate_file")]
    pub key_file: Option<PathBuf>,
    /// The bearer token.
    #[arg(skip)]
    pub token: Option<String>,
}

/// Puts the token on every call, if there is one.
#[derive(Clone)]
pub struct Bearer(Option<MetadataValue<Ascii>>);

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> std::result::Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

pub type AppSync = AppSyncServiceClient<InterceptedService<Channel, Bearer>>;
pub type Images = ImageServiceClient<InterceptedService<Channel, Bearer>>;

impl Connection {
    /// Connects without any credential.
    pub async fn channel(&self) -> Result<Channel> {
        let usage = |error: tonic::transport::Error| Error::Usage(format!("--endpoint {}: {error}", self.endpoint));
        let mut endpoint = Endpoint::from_shared(self.endpoint.clone()).map_err(usage)?;
        if endpoint.uri().scheme_str() == Some("https") {
            endpoint = endpoint.tls_config(self.tls()?).map_err(usage)?;
        } else if self.certificate_file.is_some() {
            return Err(Error::Usage(format!("--certificate-file: {} is not an https URL", self.endpoint)));
        }
        let connected = endpoint.connect_timeout(CONNECT_TIMEOUT).connect().await;
        connected.map_err(Error::local(format!("no service answers at {}", self.endpoint)))
    }

    pub async fn app_sync(&self) -> Result<AppSync> {
        Ok(AppSyncServiceClient::with_interceptor(self.channel().await?, self.bearer()?))
    }

    pub async fn images(&self) -> Result<Images> {
        Ok(ImageServiceClient::with_interceptor(self.channel().await?, self.bearer()?))
    }

    fn tls(&self) -> Result<ClientTlsConfig> {
        let pem = |file: &PathBuf| fs::read(file).map_err(Error::local(format!("reading {}", file.display())));
        let mut tls = ClientTlsConfig::new().with_enabled_roots();
        if let Some(file) = &self.ca_file {
            tls = tls.ca_certificate(Certificate::from_pem(pem(file)?));
        }
        if let (Some(certificate), Some(key)) = (&self.certificate_file, &self.key_file) {
            tls = tls.identity(Identity::from_pem(pem(certificate)?, pem(key)?));
        }
        Ok(tls)
    }

    /// Whether the service is on this machine.
    fn is_local(&self) -> bool {
        let host = self.endpoint.parse::<http::Uri>().ok().and_then(|uri| uri.host().map(str::to_owned));
        host.is_some_and(|host| {
            let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
            address.map_or(host == "localhost", |address| address.is_loopback())
        })
    }

    fn bearer(&self) -> Result<Bearer> {
        let environment = || std::env::var("APPFERRY_TOKEN").ok().filter(|token| !token.is_empty());
        let token = match (&self.token, &self.token_file) {
            (Some(token), _) => token.clone(),
            (None, Some(file)) => read(file)?,
            (None, None) => match environment() {
                Some(token) => token,
                None if self.certificate_file.is_some() => return Ok(Bearer(None)),
                // It is the administrator's, of the service that was started here: nobody else is to see it.
                None if self.is_local() => read(&PathBuf::from(embedded::DIRECTORY).join(embedded::TOKEN))?,
                None => {
                    let endpoint = &self.endpoint;
                    return Err(Error::Usage(format!(
                        "no token for {endpoint}: give --token-file or $APPFERRY_TOKEN; that of ./{} is only for this machine",
                        embedded::DIRECTORY
                    )));
                }
            },
        };
        let value = format!("Bearer {}", token.trim());
        let mut value: MetadataValue<Ascii> =
            value.parse().map_err(|_| Error::Usage("the token has characters that no header may have".to_owned()))?;
        value.set_sensitive(true);
        Ok(Bearer(Some(value)))
    }
}

fn read(file: &PathBuf) -> Result<String> {
    let hint = format!("no token: --token-file and $APPFERRY_TOKEN are not given, and {}", file.display());
    fs::read_to_string(file).map_err(Error::local(hint))
}
