//! TLS: who we are, and whose certificates we take from others. Files are read anew without a restart.

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

/// How long a handshake may take.
pub const HANDSHAKE: Duration = Duration::from_secs(10);

/// Where certificates are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsSettings {
    /// Our certificate and those that lead to its issuer, in PEM form.
    pub certificate_file: PathBuf,
    /// Its private key, in PEM form.
    pub key_file: PathBuf,
    /// The issuers of client certificates that are taken, in PEM form; without any, none is asked for.
    pub client_ca_file: Option<PathBuf>,
    /// Whether a client must show a certificate.
    pub require_client_certificate: bool,
}

/// Why certificates can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read.
    #[error("{}: it can't be read", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file does not have what it should.
    #[error("{}: {problem}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is missing, or wrong.
        problem: String,
    },
    /// They don't go together.
    #[error("the certificate and its key can't be used")]
    Pair(#[source] rustls::Error),
}

/// What connections are accepted with, as the files had it when they were last read.
#[derive(Debug)]
pub struct Tls {
    settings: TlsSettings,
    /// What the files had in them.
    seen: Mutex<[u8; 32]>,
    current: watch::Sender<Arc<Accepting>>,
}

impl Tls {
    /// Reads the files.
    pub fn load(settings: TlsSettings) -> Result<Self, TlsError> {
        let files = Files::read(&settings)?;
        let current = watch::Sender::new(files.accepting(&settings)?);
        Ok(Self { settings, seen: Mutex::new(files.digest()), current })
    }

    /// Reads them anew. If they have changed, connections that are open are told to come again, and those whose client would not be
    /// taken any more are cut, so that none outlives what it was accepted by.
    pub fn reload(&self) -> Result<(), TlsError> {
        let files = Files::read(&self.settings)?;
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if *seen != files.digest() {
            self.current.send_replace(files.accepting(&self.settings)?);
            *seen = files.digest();
        }
        Ok(())
    }

    /// What connections are accepted with now, and is told when that changes.
    #[must_use]
    pub fn current(&self) -> watch::Receiver<Arc<Accepting>> {
        self.current.subscribe()
    }
}

/// What connections are accepted with.
#[derive(Debug)]
pub struct Accepting {
    config: Arc<ServerConfig>,
    /// Judges the certificates of clients, if any are asked for.
    clients: Option<Arc<dyn ClientCertVerifier>>,
}

impl Accepting {
    /// Accepts connections.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&self.config))
    }

    /// Whether a client would be accepted now that has shown these certificates, its own first.
    pub fn takes(&self, shown: &[CertificateDer<'_>]) -> bool {
        match (&self.clients, shown.split_first()) {
            (Some(clients), Some((own, others))) => clients.verify_client_cert(own, others, UnixTime::now()).is_ok(),
            (Some(clients), None) => !clients.client_auth_mandatory(),
            (None, shown) => shown.is_none(),
        }
    }
}

/// What the files have in them.
struct Files {
    certificate: Vec<u8>,
    key: Vec<u8>,
    clients: Option<Vec<u8>>,
}

impl Files {
    fn read(settings: &TlsSettings) -> Result<Self, TlsError> {
        let read = |path: &PathBuf| fs::read(path).map_err(|source| TlsError::File { path: path.clone(), source });
        Ok(Self {
            certificate: read(&settings.certificate_file)?,
            key: read(&settings.key_file)?,
            clients: settings.client_ca_file.as_ref().map(read).transpose()?,
        })
    }

    fn digest(&self) -> [u8; 32] {
        let parts = [Some(&self.certificate), Some(&self.key), self.clients.as_ref()];
        let digests = parts.into_iter().flatten().map(Sha256::digest);
        digests.fold(Sha256::new(), Sha256::chain_update).finalize().into()
    }

    fn accepting(&self, settings: &TlsSettings) -> Result<Arc<Accepting>, TlsError> {
        let content = |path: &Path, problem: String| TlsError::Content { path: path.to_owned(), problem };
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
        let builder = builder.map_err(TlsError::Pair)?;
        let clients = self.clients(settings, provider)?;
        let builder = match &clients {
            None => builder.with_no_client_auth(),
            Some(clients) => builder.with_client_cert_verifier(Arc::clone(clients)),
        };
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|_| content(&settings.key_file, "there is no private key in PEM form".to_owned()))?;
        let chain = certificates(&settings.certificate_file, &self.certificate)?;
        let mut config = builder.with_single_cert(chain, key).map_err(TlsError::Pair)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // A session that is taken up again would bring back a certificate that is no longer taken.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        Ok(Arc::new(Accepting { config: Arc::new(config), clients }))
    }

    /// What judges the certificates of clients.
    fn clients(
        &self,
        settings: &TlsSettings,
        provider: Arc<rustls::crypto::CryptoProvider>,
    ) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsError> {
        let Some((file, pem)) = settings.client_ca_file.as_ref().zip(self.clients.as_ref()) else { return Ok(None) };
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
    let certificates = certificates.map_err(|_| problem("a certificate can't be read"))?;
    if certificates.is_empty() { Err(problem("there is no certificate in PEM form")) } else { Ok(certificates) }
}
