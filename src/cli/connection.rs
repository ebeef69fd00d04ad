//! The options with which a command connects to the service.

use std::{fs, path::PathBuf};

use clap::Args;

use super::{Error, Result, data_dir};
use crate::{
    client::{Builder, Client},
    domain::ForeignText,
    storage::server_trust,
};

/// The address of the service and the caller's credentials.
#[derive(Debug, Clone, Args)]
pub struct Connection {
    /// The URL of the service.
    #[arg(long, env = "APPFERRY_ENDPOINT", default_value = "http://127.0.0.1:50051", value_name = "URL")]
    pub endpoint: String,
    /// The file with the bearer token. Default: `$APPFERRY_TOKEN`, or for a local service the token in ./appferry-data.
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// A file with certificates in PEM form, of authorities or of servers, that are trusted in addition to the
    /// system's.
    #[arg(long, env = "APPFERRY_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// The file with the client certificate in PEM form, in place of a token.
    #[arg(long, value_name = "FILE", requires = "key_file")]
    pub certificate_file: Option<PathBuf>,
    /// The file with the private key of the client certificate in PEM form.
    #[arg(long, value_name = "FILE", requires = "certificate_file")]
    pub key_file: Option<PathBuf>,
    /// Send the token to a remote service over an unencrypted connection.
    #[arg(long, env = "APPFERRY_ALLOW_PLAINTEXT")]
    pub allow_plaintext: bool,
    /// The bearer token, which `demo` sets.
    #[arg(skip)]
    pub token: Option<String>,
}

impl Connection {
    /// Returns a client builder with the client certificate, but without a token.
    pub fn builder(&self) -> Result<Builder> {
        let pem = |file: &PathBuf| fs::read(file).map_err(Error::local(format!("failed to read {}", file.display())));
        let mut builder = Client::builder(&self.endpoint);
        if let Some(file) = &self.ca_file {
            let certificates = pem(file)?;
            server_trust::verifier(&certificates).map_err(Error::local(format!("--ca-file {}", file.display())))?;
            builder = builder.ca_certificate(certificates);
        }
        if let (Some(certificate), Some(key)) = (&self.certificate_file, &self.key_file) {
            if !self.endpoint.starts_with("https://") {
                let problem = format!("--certificate-file needs an https URL, and --endpoint is {}", self.endpoint);
                return Err(Error::usage(problem));
            }
            builder = builder.identity(pem(certificate)?, pem(key)?);
        }
        Ok(builder)
    }

    /// Connects to the service.
    pub async fn client(&self) -> Result<Client> {
        let builder = self.builder()?;
        self.check_secrecy()?;
        // Connects before it reads the token: an unreachable service is a more important error than a missing token.
        let channel = builder.channel().await?;
        let builder = match self.token()? {
            Some(token) => builder.token(token),
            None => builder,
        };
        Ok(builder.over(channel)?)
    }

    /// Rejects a connection that would send the token unencrypted to another machine.
    fn check_secrecy(&self) -> Result<()> {
        let has_token = self.token.is_some() || self.token_file.is_some() || token_variable().is_some();
        if !has_token || self.allow_plaintext || self.is_local() || self.endpoint.starts_with("https://") {
            return Ok(());
        }
        let endpoint = ForeignText::value(&self.endpoint);
        Err(Error::usage(format!("--endpoint {endpoint}: the token would be sent unencrypted to another machine"))
            .with_hint("use an https URL, or --allow-plaintext on a trusted network"))
    }

    /// Returns whether the service is on this machine.
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
            (None, Some(file)) => read_token(file)?,
            (None, None) => match token_variable() {
                Some(token) => token,
                None if self.certificate_file.is_some() => return Ok(None),
                // The administrator's token of a local service must not be sent to another machine.
                None if self.is_local() => read_token(&PathBuf::from(data_dir::DIRECTORY).join(data_dir::TOKEN))?,
                None => {
                    let hint = format!(
                        "set --token-file or APPFERRY_TOKEN; the token in ./{} is for local services only",
                        data_dir::DIRECTORY
                    );
                    return Err(Error::usage(format!("no token for {}", self.endpoint)).with_hint(hint));
                }
            },
        };
        Ok(Some(token))
    }
}

fn token_variable() -> Option<String> {
    std::env::var("APPFERRY_TOKEN").ok().filter(|token| !token.is_empty())
}

fn read_token(file: &PathBuf) -> Result<String> {
    let context =
        format!("no token: neither --token-file nor APPFERRY_TOKEN has one, and {} can't be read", file.display());
    fs::read_to_string(file).map_err(Error::local(context))
}
