//! Whose certificates are taken from servers that we call: those that the system trusts, and those of a file.

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

/// Why a file's certificates can't be used.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// It is not in PEM form.
    #[error("it is not in PEM form: {0}")]
    Pem(#[from] pem::Error),
    /// There is none in it.
    #[error("there is no certificate in it")]
    Empty,
    /// One of them, or what the system trusts, can't be used.
    #[error(transparent)]
    Tls(#[from] Error),
}

/// How a client has to be set up to take what the system trusts.
pub fn system() -> Result<ClientConfig, TrustError> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier = Verifier::new(Arc::clone(&provider))?;
    Ok(builder(provider)?.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth())
}

/// How a client has to be set up to take the certificates of a file beside those that the system trusts.
pub fn trusting(pem: &[u8]) -> Result<ClientConfig, TrustError> {
    let builder = builder(Arc::new(aws_lc_rs::default_provider()))?;
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier(pem)?).with_no_client_auth())
}

/// What takes the certificates of a file, in PEM form, beside those that the system trusts: what authorities in it have signed, and what is
/// in it itself. The latter is what `openssl req -x509` makes for a server: an authority that is used as a server, which the rules for
/// chains (RFC 5280) do not know and every client takes that was told to.
pub fn verifier(pem: &[u8]) -> Result<Arc<dyn ServerCertVerifier>, TrustError> {
    let listed = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>()?;
    if listed.is_empty() {
        return Err(TrustError::Empty);
    }
    let provider = Arc::new(aws_lc_rs::default_provider());
    let chains = Verifier::new_with_extra_roots(listed.iter().cloned(), provider)?;
    Ok(Arc::new(Trust { chains, listed }))
}

fn builder(provider: Arc<CryptoProvider>) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, Error> {
    ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()
}

#[derive(Debug)]
struct Trust {
    chains: Verifier,
    listed: Vec<CertificateDer<'static>>,
}

impl Trust {
    /// Whether a certificate that is listed is good for a server at that time.
    fn is_good(end_entity: &CertificateDer<'_>, name: &ServerName<'_>, now: UnixTime) -> Result<(), Error> {
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, name)?;
        let bad = |error| Error::InvalidCertificate(error);
        let (_, certificate) = X509Certificate::from_der(end_entity).map_err(|_| bad(CertificateError::BadEncoding))?;
        let now = i64::try_from(now.as_secs()).ok().and_then(|seconds| ASN1Time::from_timestamp(seconds).ok());
        let now = now.ok_or_else(|| Error::General("the time is out of range".to_owned()))?;
        if now < certificate.validity().not_before {
            return Err(bad(CertificateError::NotValidYet));
        }
        if now > certificate.validity().not_after { Err(bad(CertificateError::Expired)) } else { Ok(()) }
    }
}

/// Whether what is wrong with a certificate may be that it has no names, or no place for them.
fn is_about_names(error: &Error) -> bool {
    use CertificateError::{BadEncoding, NotValidForName, NotValidForNameContext, Other};
    matches!(error, Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. } | BadEncoding | Other(_)))
}

/// Whether a certificate says for which names it is: one of version 1 has no place for that.
fn has_names(certificate: &CertificateDer<'_>) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return true };
    !matches!(certificate.subject_alternative_name(), Ok(None))
}

/// That a certificate says for no name that it is (RFC 9525, section 2: a common name is none), and how one is made that does.
fn without_names(name: &ServerName<'_>) -> Error {
    let kind = if matches!(name, ServerName::IpAddress(_)) { "IP" } else { "DNS" };
    let name = name.to_str();
    Error::General(format!(
        "the server's certificate has no subjectAltName, and its common name does not count; make one by openssl req -x509 with \
         -addext subjectAltName={kind}:{name}"
    ))
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let chained = self.chains.verify_server_cert(end_entity, intermediates, name, ocsp, now);
        let judged = if chained.is_err() && self.listed.iter().any(|listed| listed == end_entity) {
            Self::is_good(end_entity, name, now).map(|()| ServerCertVerified::assertion())
        } else {
            chained
        };
        judged
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
