//! TLS of listeners: the server's certificate, and the issuers of client certificates. Changed files are reloaded
//! without a restart.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject as _},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

/// Longest duration of a handshake.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Paths of certificates and keys, all in PEM form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// The server's certificate, followed by intermediate certificates.
    pub certificate_file: PathBuf,
    /// The private key of the server's certificate.
    pub key_file: PathBuf,
    /// Issuers of accepted client certificates. If unset, clients are not asked for a certificate.
    pub client_ca_file: Option<PathBuf>,
    /// Whether clients without a certificate are rejected.
    pub require_client_certificate: bool,
}

/// Why the TLS configuration can't be loaded.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error("failed to read {}", path.display())]
    #[allow(missing_docs, reason = "the fields are named")]
    File { path: PathBuf, source: io::Error },
    /// A file has no usable content.
    #[error("{}: {problem}", path.display())]
    #[allow(missing_docs, reason = "the fields are named")]
    Content { path: PathBuf, problem: String },
    /// The certificate and the key do not match, or have an unsupported form.
    #[error("the certificate and its key can't be used")]
    Pair(#[source] rustls::Error),
}

/// The TLS configuration in force; reloaded from its files.
#[derive(Debug)]
pub struct Tls {
    settings: TlsSettings,
    /// Digest of the files as they were last read.
    loaded: Mutex<[u8; 32]>,
    current: watch::Sender<Arc<ServerTls>>,
}

impl Tls {
    /// Reads the files that `settings` names.
    ///
    /// # Errors
    ///
    /// Fails if a file can't be read or has no usable content.
    pub fn load(settings: TlsSettings) -> Result<Self, TlsError> {
        let files = Files::read(&settings)?;
        let current = watch::Sender::new(files.server_tls(&settings)?);
        Ok(Self { settings, loaded: Mutex::new(files.digest()), current })
    }

    /// Reloads the files. If they have changed, open connections are closed gracefully, and connections whose client
    /// certificate is no longer accepted are cut. No connection outlives the certificates that it was accepted with.
    ///
    /// # Errors
    ///
    /// Fails if the files are not usable; the previous configuration stays in force.
    pub fn reload(&self) -> Result<(), TlsError> {
        let files = Files::read(&self.settings)?;
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if *loaded != files.digest() {
            self.current.send_replace(files.server_tls(&self.settings)?);
            *loaded = files.digest();
        }
        Ok(())
    }

    /// Returns a receiver of the configuration in force, which is notified of changes.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<ServerTls>> {
        self.current.subscribe()
    }
}

/// The configuration that connections are accepted with.
#[derive(Debug)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    /// Verifies client certificates; `None` if clients are not asked for a certificate.
    client_verifier: Option<Arc<dyn ClientCertVerifier>>,
}

impl ServerTls {
    /// Returns an acceptor for one handshake.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config))
    }

    /// Whether a client with this certificate chain, its own certificate first, would be accepted now.
    pub fn accepts_client(&self, chain: &[CertificateDer<'_>]) -> bool {
        match (&self.client_verifier, chain.split_first()) {
            (Some(verifier), Some((own, issuers))) => {
                verifier.verify_client_cert(own, issuers, UnixTime::now()).is_ok()
            }
            (Some(verifier), None) => !verifier.client_auth_mandatory(),
            (None, certificate) => certificate.is_none(),
        }
    }
}

/// The content of the files that [`TlsSettings`] names.
struct Files {
    certificate: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

impl Files {
    fn read(settings: &TlsSettings) -> Result<Self, TlsError> {
        let read = |path: &PathBuf| fs::read(path).map_err(|source| TlsError::File { path: path.clone(), source });
        Ok(Self {
            certificate: read(&settings.certificate_file)?,
            key: read(&settings.key_file)?,
            client_ca: settings.client_ca_file.as_ref().map(read).transpose()?,
        })
    }

    fn digest(&self) -> [u8; 32] {
        let parts = [Some(&self.certificate), Some(&self.key), self.client_ca.as_ref()];
        let digests = parts.into_iter().flatten().map(Sha256::digest);
        digests.fold(Sha256::new(), Sha256::chain_update).finalize().into()
    }

    fn server_tls(&self, settings: &TlsSettings) -> Result<Arc<ServerTls>, TlsError> {
        let content = |path: &Path, problem: String| TlsError::Content { path: path.to_owned(), problem };
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let builder = builder.map_err(TlsError::Pair)?;
        let client_verifier = self.client_verifier(settings, provider)?;
        let builder = match &client_verifier {
            None => builder.with_no_client_auth(),
            Some(verifier) => builder.with_client_cert_verifier(Arc::clone(verifier)),
        };
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|_| content(&settings.key_file, "no private key in PEM form".to_owned()))?;
        let chain = certificates(&settings.certificate_file, &self.certificate)?;
        let mut config = builder.with_single_cert(chain, key).map_err(TlsError::Pair)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // No session resumption: it would skip the verification of the client's certificate.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(Arc::new(ServerTls { config: Arc::new(config), client_verifier }))
    }

    /// Returns the verifier of client certificates; `None` if clients are not asked for a certificate.
    fn client_verifier(
        &self,
        settings: &TlsSettings,
        provider: Arc<rustls::crypto::CryptoProvider>,
    ) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsError> {
        let Some((file, pem)) = settings.client_ca_file.as_ref().zip(self.client_ca.as_ref()) else { return Ok(None) };
        let content = |problem: String| TlsError::Content { path: file.clone(), problem };
        let mut roots = RootCertStore::empty();
        for certificate in certificates(file, pem)? {
            roots.add(certificate).map_err(|error| content(error.to_string()))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier = if settings.require_client_certificate { verifier } else { verifier.allow_unauthenticated() };
        Ok(Some(verifier.build().map_err(|error| content(error.to_string()))?))
    }
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let problem = |problem: &str| TlsError::Content { path: path.to_owned(), problem: problem.to_owned() };
    let certificates = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let certificates = certificates.map_err(|_| problem("malformed certificate"))?;
    if certificates.is_empty() { Err(problem("no certificate in PEM form")) } else { Ok(certificates) }
}
