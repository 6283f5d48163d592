//! Encrypted connections: which servers are trusted, and the handshake.
//!
//! The modes are those of PostgreSQL's own programs. `prefer` and `require` hide what is said from those who listen, but
//! not from somebody who stands in between; the other two make sure of who the server is.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_postgres::tls::{ChannelBinding, MakeTlsConnect, TlsConnect};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use tokio_rustls::rustls::crypto::{self, CryptoProvider, WebPkiSupportedAlgorithms};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{
    self, CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};

/// How a connection is encrypted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Tls {
    /// Not at all.
    Disable,
    /// Where the server offers it, whoever that is.
    Prefer,
    /// Always, whoever the server is.
    Require,
    /// Always, with a server that an authority has signed for.
    VerifyAuthority(Authorities),
    /// Always, with a server that an authority has signed for under the name that is connected to.
    VerifyFull(Authorities),
}

/// Who signs for servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Authorities {
    /// Those that the system trusts.
    System,
    /// Those in a PEM file.
    File(PathBuf),
}

impl Tls {
    /// Returns what makes encrypted connections in this way. Reads the certificates of the authorities.
    pub(super) fn connector(&self) -> Result<Connector, String> {
        let trust = match self {
            Self::Disable | Self::Prefer | Self::Require => Trust::Anybody,
            Self::VerifyAuthority(authorities) => Trust::Authority(authorities.read()?),
            Self::VerifyFull(authorities) => Trust::AuthorityAndName(authorities.read()?),
        };
        let provider = Arc::new(crypto::ring::default_provider());
        let verifier = Verifier { trust, algorithms: provider.signature_verification_algorithms };
        let config = client(provider, verifier).map_err(|error| error.to_string())?;
        Ok(Connector(TlsConnector::from(Arc::new(config))))
    }
}

fn client(provider: Arc<CryptoProvider>, verifier: Verifier) -> Result<ClientConfig, rustls::Error> {
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth())
}

impl Authorities {
    fn read(&self) -> Result<RootCertStore, String> {
        let mut roots = RootCertStore::empty();
        match self {
            Self::System => {
                let found = rustls_native_certs::load_native_certs();
                roots.add_parsable_certificates(found.certs);
                if roots.is_empty() {
                    let why = found.errors.first().map_or_else(String::new, |error| format!(": {error}"));
                    return Err(format!(
                        "the system trusts nobody to sign for servers{why}; name a file by `sslrootcert`"
                    ));
                }
            }
            Self::File(path) => {
                let shown = path.display();
                let refused = |why: String| format!("the authorities in {shown} cannot be read: {why}");
                let certificates =
                    CertificateDer::pem_file_iter(path).map_err(|error| refused(error.to_string()))?;
                for certificate in certificates {
                    let certificate = certificate.map_err(|error| refused(error.to_string()))?;
                    roots.add(certificate).map_err(|error| refused(error.to_string()))?;
                }
                if roots.is_empty() {
                    return Err(refused("there is no certificate in it".to_owned()));
                }
            }
        }
        Ok(roots)
    }
}

/// Who is believed to be the server.
#[derive(Debug)]
enum Trust {
    Anybody,
    Authority(RootCertStore),
    AuthorityAndName(RootCertStore),
}

#[derive(Debug)]
struct Verifier {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let signed = |roots: &RootCertStore| {
            let certificate = ParsedCertificate::try_from(end_entity)?;
            let algorithms = self.algorithms.all;
            verify_server_cert_signed_by_trust_anchor(&certificate, roots, intermediates, now, algorithms)?;
            Ok::<_, rustls::Error>(certificate)
        };
        match &self.trust {
            Trust::Anybody => {}
            Trust::Authority(roots) => drop(signed(roots)?),
            Trust::AuthorityAndName(roots) => verify_server_name(&signed(roots)?, server_name)?,
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        crypto::verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        crypto::verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Makes encrypted connections.
#[derive(Clone)]
pub(super) struct Connector(TlsConnector);

impl std::fmt::Debug for Connector {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Connector").finish_non_exhaustive()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> MakeTlsConnect<S> for Connector {
    type Stream = Stream<S>;
    type TlsConnect = Handshake;
    type Error = io::Error;

    fn make_tls_connect(&mut self, host: &str) -> io::Result<Handshake> {
        Ok(Handshake { connector: self.0.clone(), host: host.to_owned() })
    }
}

/// A handshake that is about to begin.
pub(super) struct Handshake {
    connector: TlsConnector,
    host: String,
}

impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> TlsConnect<S> for Handshake {
    type Stream = Stream<S>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream<S>>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        Box::pin(async move {
            let name = ServerName::try_from(self.host)
                .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
            self.connector
                .connect(name, stream)
                .await
                .map(|stream| Stream(Box::new(stream)))
                .map_err(explained)
        })
    }
}

/// Says which mode would be content with a certificate that is not.
fn explained(error: io::Error) -> io::Error {
    use rustls::Error::InvalidCertificate;

    let tls = error.get_ref().and_then(|source| source.downcast_ref::<rustls::Error>());
    let why = match tls {
        Some(InvalidCertificate(CertificateError::UnknownIssuer)) => {
            "none of the authorities that are trusted has signed for the server: name its own by `sslrootcert`"
        }
        Some(InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        )) => "the server's certificate is for another name than the one that is connected to",
        _ => return error,
    };
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// An encrypted connection.
pub(super) struct Stream<S>(Box<tokio_rustls::client::TlsStream<S>>);

impl<S: AsyncRead + AsyncWrite + Unpin> tokio_postgres::tls::TlsStream for Stream<S> {
    fn channel_binding(&self) -> ChannelBinding {
        // It would tell of somebody in between only where the server is not verified, which is chosen knowingly.
        ChannelBinding::none()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.0).poll_shutdown(context)
    }
}
