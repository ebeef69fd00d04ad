//! Where a command finds the service, and who calls.

use std::{fs, path::PathBuf};

use clap::Args;

use super::{Error, Result, data_dir};
use crate::{
    client::{Builder, Client},
    domain::ForeignText,
    server_trust,
};

/// Where the service is, and who calls.
#[derive(Debug, Clone, Args)]
pub struct Connection {
    /// The service's endpoint.
    #[arg(long, env = "APPFERRY_ENDPOINT", default_value = "http://127.0.0.1:50051", value_name = "URL")]
    pub endpoint: String,
    /// The file that holds the bearer token; without it, `$APPFERRY_TOKEN`, or that of ./appferry-data.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// Certificates in PEM form that are trusted beside the system's: authorities, and servers' own.
    #[arg(long, env = "APPFERRY_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// The caller's own certificate in PEM form, which takes the place of a token.
    #[arg(long, value_name = "FILE", requires = "key_file")]
    pub certificate_file: Option<PathBuf>,
    /// Its private key in PEM form.
    #[arg(long, value_name = "FILE", requires = "certificate_file")]
    pub key_file: Option<PathBuf>,
    /// Send the token over a connection that is not encrypted, to a service that is not on this machine.
    #[arg(long, env = "APPFERRY_ALLOW_PLAINTEXT")]
    pub allow_plaintext: bool,
    /// The bearer token.
    #[arg(skip)]
    pub token: Option<String>,
}

impl Connection {
    /// A client without any credential but the caller's certificate.
    pub fn builder(&self) -> Result<Builder> {
        let pem = |file: &PathBuf| fs::read(file).map_err(Error::local(format!("reading {}", file.display())));
        let mut builder = Client::builder(&self.endpoint);
        if let Some(file) = &self.ca_file {
            let certificates = pem(file)?;
            server_trust::verifier(&certificates).map_err(Error::local(format!("--ca-file {}", file.display())))?;
            builder = builder.ca_certificate(certificates);
        }
        if let (Some(certificate), Some(key)) = (&self.certificate_file, &self.key_file) {
            if !self.endpoint.starts_with("https://") {
                return Err(Error::Usage(format!("--certificate-file: {} is not an https URL", self.endpoint)));
            }
            builder = builder.identity(pem(certificate)?, pem(key)?);
        }
        Ok(builder)
    }

    /// Connects.
    pub async fn client(&self) -> Result<Client> {
        let builder = self.builder()?;
        self.check_secrecy()?;
        // Where nobody answers, that is what is told, and not that a token is missing.
        let channel = builder.channel().await?;
        let builder = match self.token()? {
            Some(token) => builder.token(token),
            None => builder,
        };
        Ok(builder.over(channel)?)
    }

    /// Refuses to show a token to whoever is on the way.
    fn check_secrecy(&self) -> Result<()> {
        let has_token = self.token.is_some() || self.token_file.is_some() || environment().is_some();
        if !has_token || self.allow_plaintext || self.is_local() || self.endpoint.starts_with("https://") {
            return Ok(());
        }
        Err(Error::Usage(format!(
            "--endpoint {}: the token would be sent in clear to another machine; use an https URL, or --allow-plaintext where the network is trusted",
            ForeignText::value(&self.endpoint)
        )))
    }

    /// Whether the service is on this machine.
    fn is_local(&self) -> bool {
        let host = self.endpoint.parse::<http::Uri>().ok().and_then(|uri| uri.host().map(str::to_owned));
        host.is_some_and(|host| {
            let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
            address.map_or(host == "localhost", |address| address.is_loopback())
        })
    }

    fn token(&self) -> Result<Option<String>> {
        let token = match (&self.token, &self.token_file) {
            (Some(token), _) => token.clone(),
            (None, Some(file)) => read(file)?,
            (None, None) => match environment() {
                Some(token) => token,
                None if self.certificate_file.is_some() => return Ok(None),
                // It is the administrator's, of the service that was started here: nobody else is to see it.
                None if self.is_local() => read(&PathBuf::from(data_dir::DIRECTORY).join(data_dir::TOKEN))?,
                None => {
                    let endpoint = &self.endpoint;
                    return Err(Error::Usage(format!(
                        "no token for {endpoint}: give --token-file or $APPFERRY_TOKEN; that of ./{} is only for this machine",
                        data_dir::DIRECTORY
                    )));
                }
            },
        };
        Ok(Some(token))
    }
}

fn environment() -> Option<String> {
    std::env::var("APPFERRY_TOKEN").ok().filter(|token| !token.is_empty())
}

fn read(file: &PathBuf) -> Result<String> {
    let hint = format!("no token: --token-file and $APPFERRY_TOKEN are not given, and {}", file.display());
    fs::read_to_string(file).map_err(Error::local(hint))
}
