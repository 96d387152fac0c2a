//! Certificates, under the file names that QEMU, nbdkit and libnbd share.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

/// What a server proves its identity with, and whose clients it lets in.
///
/// The directory holds `server-cert.pem` and `server-key.pem`, and `ca-cert.pem` with the authority whose certificate
/// clients need where they are verified.
#[derive(Clone)]
pub struct TlsIdentity {
    config: Arc<ServerConfig>,
}

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file is missing, unreadable, or not PEM of the right kind.
    #[error("read {path}", path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: rustls_pki_types::pem::Error,
    },
    /// Key and certificate do not belong together, or are of a kind that is not supported.
    #[error("use the certificates in {directory}", directory = .directory.display())]
    Unusable {
        /// The directory.
        directory: PathBuf,
        /// The reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl TlsIdentity {
    /// Loads the certificates in `directory`; with `verify_clients`, clients need one of the authority in
    /// `ca-cert.pem`.
    ///
    /// # Errors
    /// [`TlsError`] names the file or what is wrong with it.
    pub fn load(directory: &Path, verify_clients: bool) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let unusable = |source: Box<dyn std::error::Error + Send + Sync>| TlsError::Unusable {
            directory: directory.to_owned(),
            source,
        };
        // proto.md, "TLS versions": TLS 1.2 must be supported, and later versions should be.
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|error| unusable(error.into()))?;
        let builder = if verify_clients {
            let roots = Arc::new(roots(directory)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider).build();
            builder.with_client_cert_verifier(verifier.map_err(|error| unusable(error.into()))?)
        } else {
            builder.with_no_client_auth()
        };
        let chain = certificates(&directory.join("server-cert.pem"))?;
        let key_path = directory.join("server-key.pem");
        let key = PrivateKeyDer::from_pem_file(&key_path)
            .map_err(|source| TlsError::File { path: key_path, source })?;
        let config = builder.with_single_cert(chain, key).map_err(|error| unusable(error.into()))?;
        Ok(Self { config: Arc::new(config) })
    }

    pub(super) fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(self.config.clone())
    }
}

impl std::fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsIdentity")
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |source| TlsError::File { path: path.to_owned(), source };
    CertificateDer::pem_file_iter(path).map_err(failed)?.collect::<Result<_, _>>().map_err(failed)
}

fn roots(directory: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&directory.join("ca-cert.pem"))? {
        roots
            .add(certificate)
            .map_err(|error| TlsError::Unusable { directory: directory.to_owned(), source: error.into() })?;
    }
    Ok(roots)
}
