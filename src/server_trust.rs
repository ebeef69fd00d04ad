//! Verification of the certificates of servers that this service calls: those that the system trusts, and those of a
//! file.

use std::sync::Arc;

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, ServerName, UnixTime, pem, pem::PemObject as _},
    server::ParsedCertificate,
};
use rustls_platform_verifier::Verifier;
use x509_parser::prelude::{ASN1Time, FromDer as _, X509Certificate};

/// An error of a file with trusted certificates.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file is not in PEM form.
    #[error("it is not in PEM form: {0}")]
    Pem(#[from] pem::Error),
    /// The file contains no certificate.
    #[error("it contains no certificate")]
    Empty,
    /// A certificate of the file or of the system can't be used.
    #[error(transparent)]
    Tls(#[from] Error),
}

/// Returns the TLS configuration of a client that trusts the certificates of a PEM file besides those of the system:
/// certificates that an authority of the file has issued, and the certificates in the file themselves. The latter
/// accepts the self-signed certificates that `openssl req -x509` creates: they are authorities, which RFC 5280 does not
/// allow as servers.
///
/// # Errors
///
/// Fails if the file contains no usable certificate.
pub fn trusting(pem: &[u8]) -> Result<ClientConfig, TrustError> {
    let listed = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>()?;
    if listed.is_empty() {
        return Err(TrustError::Empty);
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let chains = Verifier::new_with_extra_roots(listed.iter().cloned(), Arc::clone(&provider))?;
    let verifier = ListedVerifier { chains, listed };
    Ok(builder(provider)?.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth())
}

fn builder(provider: Arc<CryptoProvider>) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, Error> {
    ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()
}

/// Verifies chains, and accepts the listed certificates themselves.
#[derive(Debug)]
struct ListedVerifier {
    chains: Verifier,
    listed: Vec<CertificateDer<'static>>,
}

impl ListedVerifier {
    /// Checks that a listed certificate is valid for a server name at the time `now`.
    fn check_listed(end_entity: &CertificateDer<'_>, name: &ServerName<'_>, now: UnixTime) -> Result<(), Error> {
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, name)?;
        let invalid = |error| Error::InvalidCertificate(error);
        let (_, certificate) =
            X509Certificate::from_der(end_entity).map_err(|_| invalid(CertificateError::BadEncoding))?;
        let now = i64::try_from(now.as_secs()).ok().and_then(|seconds| ASN1Time::from_timestamp(seconds).ok());
        let now = now.ok_or_else(|| Error::General("the time is out of range".to_owned()))?;
        if now < certificate.validity().not_before {
            return Err(invalid(CertificateError::NotValidYet));
        }
        if now > certificate.validity().not_after { Err(invalid(CertificateError::Expired)) } else { Ok(()) }
    }
}

impl ServerCertVerifier for ListedVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chained = self.chains.verify_server_cert(end_entity, intermediates, name, ocsp, now);
        if chained.is_err() && self.listed.iter().any(|listed| listed == end_entity) {
            return Self::check_listed(end_entity, name, now).map(|()| ServerCertVerified::assertion());
        }
        chained
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chains.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chains.supported_verify_schemes()
    }
}
