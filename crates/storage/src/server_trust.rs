//! Verifies the certificates of servers that this service calls, using the certificates that the system trusts and
//! those in a file.

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

/// Returns the TLS configuration of a client that trusts the certificates of the system.
///
/// # Errors
///
/// Fails if the certificates of the system can't be used.
pub fn system() -> Result<ClientConfig, TrustError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Verifier::new(Arc::clone(&provider))?;
    Ok(builder(provider)?.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth())
}

/// Returns the TLS configuration of a client that trusts the certificates of a PEM file in addition to those of the
/// system.
///
/// # Errors
///
/// Fails if the file contains no usable certificate.
pub fn trusting(pem: &[u8]) -> Result<ClientConfig, TrustError> {
    let builder = builder(Arc::new(aws_lc_rs::default_provider()))?;
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier(pem)?).with_no_client_auth())
}

/// Returns a verifier that accepts the certificates that the system trusts, certificates that an authority in a PEM
/// file has issued, and the certificates in the file themselves. The last rule is needed for the self-signed
/// certificates that `openssl req -x509` creates. They are authorities, which RFC 5280 does not allow as servers.
///
/// # Errors
///
/// Fails if the file contains no usable certificate.
pub fn verifier(pem: &[u8]) -> Result<Arc<dyn ServerCertVerifier>, TrustError> {
    let listed = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>()?;
    if listed.is_empty() {
        return Err(TrustError::Empty);
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let chains = Verifier::new_with_extra_roots(listed.iter().cloned(), provider)?;
    Ok(Arc::new(ListedVerifier { chains, listed }))
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

/// Returns whether the error may be caused by missing names. A certificate of version 1 has no field for them.
fn is_about_names(error: &Error) -> bool {
    use CertificateError::{BadEncoding, NotValidForName, NotValidForNameContext, Other};
    matches!(error, Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. } | BadEncoding | Other(_)))
}

/// Returns whether a certificate has a subjectAltName. Returns `true` if the certificate can't be parsed.
fn has_names(certificate: &CertificateDer<'_>) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return true };
    !matches!(certificate.subject_alternative_name(), Ok(None))
}

/// Returns the error for a certificate without a subjectAltName, with advice on how to create a certificate that has
/// one. A common name is not used (RFC 9525, section 2).
fn without_names(name: &ServerName<'_>) -> Error {
    let kind = if matches!(name, ServerName::IpAddress(_)) { "IP" } else { "DNS" };
    let name = name.to_str();
    Error::General(format!(
        "the server's certificate has no subjectAltName, and its common name does not count; make one by openssl req -x509 with \
         -addext subjectAltName={kind}:{name}"
    ))
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
        let verified = if chained.is_err() && self.listed.iter().any(|listed| listed == end_entity) {
            Self::check_listed(end_entity, name, now).map(|()| ServerCertVerified::assertion())
        } else {
            chained
        };
        verified
            .map_err(|error| if is_about_names(&error) && !has_names(end_entity) { without_names(name) } else { error })
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
