//! rustls configurations whose secrets can be handed over, from what a command line or a program states.

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    ClientConfig, DigitallySignedStruct, KeyLog, RootCertStore, ServerConfig, SignatureScheme,
    SupportedProtocolVersion,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uktls_record::{CipherSuite, ProtocolVersion};

/// Which versions and ciphers may be negotiated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    /// Allowed versions; empty: TLS 1.2 and 1.3.
    pub versions: Vec<ProtocolVersion>,
    /// Allowed ciphers in order of preference; empty: all, AES-128-GCM first.
    pub ciphers: Vec<CipherSuite>,
}

/// Why a configuration cannot be made: one line that says which file and what is wrong with it.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read the {what} {path}: {source}")]
    Read {
        /// What the file is for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{path} holds no {what} in PEM form: {problem}")]
    Pem {
        /// What the file is for.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// Certificate and key do not belong together, or cannot be used.
    #[error("the certificate {cert} and the key {key} cannot be used together: {source}")]
    Mismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// What rustls says.
        source: rustls::Error,
    },
    /// A self-signed certificate could not be made.
    #[error("cannot make a self-signed certificate: {0}")]
    SelfSigned(#[from] rcgen::Error),
    /// rustls refused the combination.
    #[error("the TLS configuration is not possible: {0}")]
    Tls(#[from] rustls::Error),
}

/// A server's certificate chain and key.
#[derive(Debug)]
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    files: Option<(PathBuf, PathBuf)>,
    pem: Option<String>,
}

impl Identity {
    /// From PEM files.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn from_pem_files(cert: &Path, key: &Path) -> Result<Identity, ConfigError> {
        let chain = certificates(cert, "certificate")?;
        let key_bytes = read(key, "private key")?;
        let parsed = PrivateKeyDer::from_pem_slice(&key_bytes).map_err(|error| match error {
            pem::Error::NoItemsFound => pem_error("private key", key, "no private key found in it"),
            error => pem_error("private key", key, error),
        })?;
        Ok(Identity {
            chain,
            key: parsed,
            files: Some((cert.into(), key.into())),
            pem: None,
        })
    }

    /// A fresh ECDSA P-256 certificate for these names (host names or IP addresses), signed by itself.
    ///
    /// # Errors
    /// A name that cannot stand in a certificate.
    pub fn self_signed(names: Vec<String>) -> Result<Identity, ConfigError> {
        let rcgen::CertifiedKey { cert, signing_key } = rcgen::generate_simple_self_signed(names)?;
        let key = PrivateKeyDer::try_from(signing_key.serialize_der())
            .map_err(|problem| rustls::Error::General(problem.to_owned()))?;
        let pem = cert.pem();
        Ok(Identity {
            chain: vec![cert.der().clone()],
            key,
            files: None,
            pem: Some(pem),
        })
    }

    pub(super) fn from_der(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Identity {
        Identity {
            chain,
            key,
            files: None,
            pem: None,
        }
    }

    pub(super) fn into_der(self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (self.chain, self.key)
    }

    /// The end-entity certificate in DER, as fingerprints are made over it.
    pub fn certificate(&self) -> &[u8] {
        self.chain.first().map_or(&[], |certificate| certificate)
    }

    /// A self-signed certificate in PEM, for `--cacert`; `None` for one that came from files.
    pub fn self_signed_pem(&self) -> Option<&str> {
        self.pem.as_deref()
    }
}

/// Whom a client believes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// Mozilla's root certificates.
    WebRoots,
    /// The certificates of a PEM file, and what they signed.
    File(PathBuf),
    /// Anybody. The connection is encrypted, but to whom is unknown.
    Anybody,
}

/// A server's configuration: tickets for resumption, ALPN `http/1.1`, secrets extractable.
///
/// # Errors
/// A certificate that does not fit its key; no cipher left for the versions.
pub fn server_config(
    identity: Identity,
    choice: &Choice,
    key_log: Option<Arc<dyn KeyLog>>,
) -> Result<Arc<ServerConfig>, ConfigError> {
    let Identity {
        chain, key, files, ..
    } = identity;
    let mut config = ServerConfig::builder_with_provider(provider(choice))
        .with_protocol_versions(&versions(choice))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|source| match files {
            Some((cert, key)) => ConfigError::Mismatch { cert, key, source },
            None => ConfigError::Tls(source),
        })?;
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.enable_secret_extraction = true;
    if let Some(key_log) = key_log {
        config.key_log = key_log;
    }
    Ok(Arc::new(config))
}

/// A client's configuration: ALPN `http/1.1`, secrets extractable.
///
/// # Errors
/// A bad file of certificates; no cipher left for the versions.
pub fn client_config(
    trust: &Trust,
    choice: &Choice,
    key_log: Option<Arc<dyn KeyLog>>,
) -> Result<Arc<ClientConfig>, ConfigError> {
    let provider = provider(choice);
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&versions(choice))?;
    let verified = |believed| {
        builder
            .clone()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Verifier {
                believed,
                provider: provider.clone(),
            }))
    };
    let builder = match trust {
        Trust::WebRoots => {
            let roots = RootCertStore {
                roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
            };
            builder.clone().with_root_certificates(roots)
        }
        Trust::File(path) => {
            let certificates = certificates(path, "certificate")?;
            let mut roots = RootCertStore::empty();
            for certificate in &certificates {
                roots
                    .add(certificate.clone())
                    .map_err(|error| pem_error("usable certificate", path, error))?;
            }
            let chains =
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                    .build()
                    .map_err(|error| pem_error("usable certificate", path, error))?;
            verified(Believed::File {
                certificates,
                chains,
            })
        }
        Trust::Anybody => verified(Believed::Any),
    };
    let mut config = builder.with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.enable_secret_extraction = true;
    if let Some(key_log) = key_log {
        config.key_log = key_log;
    }
    Ok(Arc::new(config))
}

/// aws-lc-rs with the chosen ciphers only, in the chosen order.
pub(super) fn provider(choice: &Choice) -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    let ciphers = if choice.ciphers.is_empty() {
        &CipherSuite::ALL[..]
    } else {
        &choice.ciphers
    };
    let all = std::mem::take(&mut provider.cipher_suites);
    for &cipher in ciphers {
        provider.cipher_suites.extend(
            all.iter()
                .filter(|suite| cipher_of(suite.suite()) == Some(cipher)),
        );
    }
    Arc::new(provider)
}

/// The record cipher of a cipher suite that the stack can take over.
pub(super) fn cipher_of(suite: rustls::CipherSuite) -> Option<CipherSuite> {
    use rustls::CipherSuite as S;
    match suite {
        S::TLS13_AES_128_GCM_SHA256
        | S::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
        | S::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => Some(CipherSuite::Aes128Gcm),
        S::TLS13_AES_256_GCM_SHA384
        | S::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384
        | S::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 => Some(CipherSuite::Aes256Gcm),
        S::TLS13_CHACHA20_POLY1305_SHA256
        | S::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
        | S::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256 => Some(CipherSuite::ChaCha20Poly1305),
        _ => None,
    }
}

pub(super) fn versions(choice: &Choice) -> Vec<&'static SupportedProtocolVersion> {
    let allowed = |version| choice.versions.is_empty() || choice.versions.contains(&version);
    let mut versions = Vec::with_capacity(2);
    if allowed(ProtocolVersion::Tls13) {
        versions.push(&rustls::version::TLS13);
    }
    if allowed(ProtocolVersion::Tls12) {
        versions.push(&rustls::version::TLS12);
    }
    versions
}

fn read(path: &Path, what: &'static str) -> Result<Vec<u8>, ConfigError> {
    std::fs::read(path).map_err(|source| ConfigError::Read {
        what,
        path: path.into(),
        source,
    })
}

fn pem_error(what: &'static str, path: &Path, problem: impl std::fmt::Display) -> ConfigError {
    ConfigError::Pem {
        what,
        path: path.into(),
        problem: problem.to_string(),
    }
}

/// All certificates of a PEM file, at least one.
fn certificates(
    path: &Path,
    what: &'static str,
) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let bytes = read(path, what)?;
    let found: Vec<_> = CertificateDer::pem_slice_iter(&bytes)
        .collect::<Result<_, _>>()
        .map_err(|e| pem_error(what, path, e))?;
    if found.is_empty() {
        Err(pem_error(what, path, "no certificate found in it"))
    } else {
        Ok(found)
    }
}

/// Whom a client believes that goes by other rules than webpki's alone. Signatures are always checked, so that a broken
/// peer shows.
#[derive(Debug)]
struct Verifier {
    believed: Believed,
    provider: Arc<CryptoProvider>,
}

#[derive(Debug)]
enum Believed {
    /// Every certificate.
    Any,
    /// The certificates of a file, and chains that end in them.
    ///
    /// webpki refuses a server's certificate that is marked as an authority's, which is what `openssl req -x509` makes by
    /// default. One that the user named itself is believed all the same, if it is for the right name; its dates are the
    /// user's business then.
    File {
        certificates: Vec<CertificateDer<'static>>,
        chains: Arc<WebPkiServerVerifier>,
    },
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match &self.believed {
            Believed::Any => Ok(ServerCertVerified::assertion()),
            Believed::File { certificates, .. } if certificates.iter().any(|c| c == end_entity) => {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, name)?;
                Ok(ServerCertVerified::assertion())
            }
            Believed::File { chains, .. } => {
                chains.verify_server_cert(end_entity, intermediates, name, ocsp_response, now)
            }
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_file_and_the_fault() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = |name: &str| folder.path().join(name);
        let made =
            rcgen::generate_simple_self_signed(vec!["a.test".into()]).expect("a certificate");
        let other =
            rcgen::generate_simple_self_signed(vec!["b.test".into()]).expect("a certificate");
        std::fs::write(path("cert"), made.cert.pem()).expect("write");
        std::fs::write(path("key"), made.signing_key.serialize_pem()).expect("write");
        std::fs::write(path("other"), other.signing_key.serialize_pem()).expect("write");
        std::fs::write(path("noise"), "no PEM at all").expect("write");

        let said = |cert: &str, key: &str| match Identity::from_pem_files(&path(cert), &path(key))
            .and_then(|identity| server_config(identity, &Choice::default(), None))
        {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        };
        assert_eq!(said("cert", "key"), "");
        assert!(
            said("none", "key").starts_with("cannot read the certificate ")
                && said("none", "key").contains("/none:")
        );
        assert!(said("noise", "key").contains("/noise holds no certificate in PEM form"));
        assert!(said("cert", "cert").contains("/cert holds no private key in PEM form"));
        assert!(said("cert", "none").starts_with("cannot read the private key "));
        assert!(
            said("cert", "other").contains("cannot be used together"),
            "{}",
            said("cert", "other")
        );
        let trust = Trust::File(path("noise"));
        assert!(client_config(&trust, &Choice::default(), None).is_err());
    }

    #[test]
    fn a_choice_narrows_versions_and_ciphers() {
        let choice = Choice {
            versions: vec![ProtocolVersion::Tls12],
            ciphers: vec![CipherSuite::ChaCha20Poly1305],
        };
        let config = client_config(&Trust::WebRoots, &choice, None).expect("a configuration");
        let suites = &config.crypto_provider().cipher_suites;
        assert!(!suites.is_empty());
        assert!(
            suites
                .iter()
                .all(|suite| cipher_of(suite.suite()) == Some(CipherSuite::ChaCha20Poly1305))
        );
        let all =
            client_config(&Trust::Anybody, &Choice::default(), None).expect("a configuration");
        assert_eq!(
            cipher_of(all.crypto_provider().cipher_suites[0].suite()),
            Some(CipherSuite::Aes128Gcm)
        );
    }
}
