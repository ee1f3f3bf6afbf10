//! TLS of the metrics server, by rustls with the cryptography of ring.
//!
//! TLS 1.3 alone, without sessions that are resumed: a scrape every few seconds needs neither, and a client whose authority
//! is taken away has no ticket that outlives it.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, InconsistentKeys, RootCertStore, ServerConfig};

use super::access::{AccessError, PemFile};

/// How long before a certificate's end there are warnings.
const SOON: Duration = Duration::from_secs(14 * 86_400);

/// The server's side, from these files. What is unwise about them is added to the warnings.
pub(super) fn config(
    certificate: &PemFile,
    key: &PemFile,
    client_ca: Option<&PemFile>,
    warnings: &mut Vec<String>,
) -> Result<Arc<ServerConfig>, AccessError> {
    let provider = Arc::new(ring::default_provider());
    let chain = certificates(certificate)?;
    let private = PrivateKeyDer::from_pem_slice(key.text.as_bytes());
    let private = private.map_err(|why| not_pem(key, "private key", &why))?;
    if let Some(leaf) = chain.first() {
        warnings.extend(of_time(certificate, leaf, &provider, SystemTime::now())?);
    }
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|why| AccessError::new("tls", why.to_string(), DEFECT))?;
    let builder = match client_ca {
        Some(file) => builder.with_client_cert_verifier(verifier(file, provider)?),
        None => builder.with_no_client_auth(),
    };
    let config = builder.with_single_cert(chain, private);
    let mut config = config.map_err(|why| unfit(certificate, key, &why))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

const DEFECT: &str = "this is a defect of crosspoint; please report it";

/// The certificates of a file, at least one.
fn certificates(file: &PemFile) -> Result<Vec<CertificateDer<'static>>, AccessError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(file.text.as_bytes()).collect();
    let all = all.map_err(|why| not_pem(file, "certificate", &why))?;
    match all.is_empty() {
        true => Err(not_pem(file, "certificate", &pem::Error::NoItemsFound)),
        false => Ok(all),
    }
}

fn not_pem(file: &PemFile, what: &str, why: &pem::Error) -> AccessError {
    let path = file.path.display();
    let message = match why {
        pem::Error::NoItemsFound => format!("{path} has no {what} in PEM"),
        why => format!("{path} is not PEM: {why}"),
    };
    let help = match what {
        "certificate" => "the file must have a block -----BEGIN CERTIFICATE-----",
        _ => {
            "the file must have a block -----BEGIN PRIVATE KEY-----, which is not encrypted; a key with a passphrase is decrypted by: openssl pkey -in OLD -out NEW"
        }
    };
    AccessError::new(file.key, message, help)
}

/// Why certificate and key are not accepted.
fn unfit(certificate: &PemFile, key: &PemFile, why: &rustls::Error) -> AccessError {
    let [crt, private] = [certificate, key].map(|file| file.path.display());
    match why {
        rustls::Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => AccessError::new(
            key.key,
            format!("the key in {private} does not belong to the first certificate in {crt}"),
            format!(
                "these must print the same: openssl pkey -pubout -in {private}; openssl x509 -noout -pubkey -in {crt}"
            ),
        ),
        rustls::Error::InvalidCertificate(_) => bad_certificate(certificate, why),
        why => AccessError::new(
            key.key,
            format!("the key in {private} cannot be used: {why}"),
            "use a key of ECDSA with P-256 or P-384, of Ed25519, or of RSA with 2048 to 8192 bits",
        ),
    }
}

fn bad_certificate(file: &PemFile, why: &rustls::Error) -> AccessError {
    let path = file.path.display();
    AccessError::new(
        file.key,
        format!("a certificate in {path} cannot be used: {why}"),
        format!("this shows what it is: openssl x509 -noout -text -in {path}"),
    )
}

/// The check of clients' certificates.
fn verifier(
    file: &PemFile,
    provider: Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, AccessError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        let added = roots.add(certificate);
        added.map_err(|why| bad_certificate(file, &why))?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
    verifier.map_err(|why| AccessError::new(file.key, why.to_string(), DEFECT))
}

/// A warning if a certificate is not valid at `now`, or not for much longer. Clients refuse it, which they should say.
fn of_time(
    file: &PemFile,
    leaf: &CertificateDer<'_>,
    provider: &CryptoProvider,
    now: SystemTime,
) -> Result<Option<String>, AccessError> {
    let parsed = ParsedCertificate::try_from(leaf).map_err(|why| bad_certificate(file, &why))?;
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    // Without an authority the check fails in any case; times are checked first.
    let look = |at: Duration| {
        let (roots, at) = (RootCertStore::empty(), UnixTime::since_unix_epoch(at));
        let algorithms = provider.signature_verification_algorithms.all;
        match verify_server_cert_signed_by_trust_anchor(&parsed, &roots, &[], at, algorithms) {
            Err(rustls::Error::InvalidCertificate(why)) => Some(why),
            _ => None,
        }
    };
    let days = |seconds: u64| format!("{} day(s)", seconds.div_ceil(86_400));
    let what = match (look(now), look(now + SOON)) {
        (Some(CertificateError::ExpiredContext { not_after, .. }), _) => {
            let ago = now.as_secs().saturating_sub(not_after.as_secs());
            format!("expired {} ago: clients refuse it", days(ago))
        }
        (Some(CertificateError::NotValidYetContext { not_before, .. }), _) => {
            let wait = not_before.as_secs().saturating_sub(now.as_secs());
            format!(
                "becomes valid in {}: until then clients refuse it",
                days(wait)
            )
        }
        (_, Some(CertificateError::ExpiredContext { not_after, .. })) => {
            let left = not_after.as_secs().saturating_sub(now.as_secs());
            format!("expires in {}", days(left))
        }
        _ => return Ok(None),
    };
    let (key, path) = (file.key, file.path.display());
    Ok(Some(format!(
        "[metrics] {key}: the certificate in {path} {what}; replace the file, then: crosspoint reload"
    )))
}
