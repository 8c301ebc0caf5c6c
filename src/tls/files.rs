//! PEM files to certificates, keys and authorities; every mistake that people make with them has its sentence.

use super::TlsError;
use rustls::RootCertStore;
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};
use zeroize::Zeroizing;

/// Longest file that is read: all authorities of a system are a quarter of this.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Before this many seconds are over, a certificate's end is spoken of.
const SOON_SECONDS: i64 = 14 * 24 * 3_600;

/// What is said when the certificate of an authority is meant.
const AUTHORITY: &str = "authority's certificate";

/// Where systems keep the authorities they believe.
const SYSTEM_AUTHORITIES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

fn read(what: &'static str, file: &Path) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    let failed = |error| TlsError::Read { what, file: file.to_owned(), error };
    let opened = File::open(file).map_err(failed)?;
    let mut text = Zeroizing::new(Vec::with_capacity(16 * 1024));
    opened.take(FILE_BYTES_MAX + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(TlsError::TooLong { file: file.to_owned(), bytes: text.len() as u64 });
    }
    if !text.windows(11).any(|window| window == b"-----BEGIN ") {
        return Err(TlsError::NotPem { file: file.to_owned() });
    }
    Ok(text)
}

/// All certificates of a file, at least one.
pub(super) fn certificates(what: &'static str, file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(what, file)?;
    let found: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(&text).collect();
    let found = found.map_err(|error| unusable(what, file, error))?;
    if found.is_empty() {
        return Err(TlsError::Missing { what, begins: "CERTIFICATE", file: file.to_owned() });
    }
    for certificate in &found {
        X509Certificate::from_der(certificate).map_err(|error| unusable(what, file, error))?;
    }
    Ok(found)
}

fn unusable(what: &'static str, file: &Path, reason: impl ToString) -> TlsError {
    TlsError::Unusable { what, file: file.to_owned(), reason: reason.to_string() }
}

/// The first private key of a file.
pub(super) fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    const WHAT: &str = "private key";
    let text = read(WHAT, file)?;
    match PrivateKeyDer::from_pem_slice(&text) {
        Ok(key) => Ok(key),
        Err(pem::Error::NoItemsFound) if text.windows(9).any(|window| window == b"ENCRYPTED") => {
            Err(TlsError::Locked { file: file.to_owned() })
        }
        Err(pem::Error::NoItemsFound) => {
            Err(TlsError::Missing { what: WHAT, begins: "PRIVATE KEY", file: file.to_owned() })
        }
        Err(error) => Err(unusable(WHAT, file, error)),
    }
}

/// Authorities of a file, for whoever does the handshake elsewhere.
pub struct Authorities(Vec<CertificateDer<'static>>);

impl Authorities {
    /// Reads them, PEM.
    pub fn read(file: &Path) -> Result<Authorities, TlsError> {
        let found = certificates(AUTHORITY, file)?;
        for certificate in &found {
            // One that cannot be believed in would otherwise be left out without a word.
            RootCertStore::empty().add(certificate.clone()).map_err(|error| unusable(AUTHORITY, file, error))?;
        }
        Ok(Authorities(found))
    }

    /// Each of them, DER.
    pub fn ders(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(|certificate| &certificate[..])
    }
}

/// The authorities in a file.
pub(super) fn authorities(file: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(AUTHORITY, file)? {
        roots.add(certificate).map_err(|error| unusable(AUTHORITY, file, error))?;
    }
    Ok(roots)
}

/// The authorities that this system believes.
pub(super) fn system_authorities() -> Result<RootCertStore, TlsError> {
    for place in SYSTEM_AUTHORITIES.map(Path::new) {
        if !place.exists() {
            continue;
        }
        let mut roots = RootCertStore::empty();
        // One that cannot be used does not spoil the others: the list is not the user's.
        roots.add_parsable_certificates(certificates(AUTHORITY, place)?);
        if !roots.is_empty() {
            return Ok(roots);
        }
    }
    Err(TlsError::NoAuthorities { looked: SYSTEM_AUTHORITIES.join(", ") })
}

/// What the operator should know about a certificate and its key, though they work.
pub(super) fn concerns(cert: &Path, key: &Path, chain: &[CertificateDer<'_>]) -> Vec<String> {
    let mut said = Vec::new();
    if let Ok(mode) = std::fs::metadata(key).map(|about| about.permissions().mode())
        && mode & 0o007 != 0
    {
        let (mode, key) = (mode & 0o777, key.display());
        said.push(format!(
            "the private key {key} can be read by every user of this machine (mode {mode:o}); `chmod 600 {key}`"
        ));
    }
    let Some(Ok((_, certificate))) = chain.first().map(|first| X509Certificate::from_der(first)) else { return said };
    let (begins, ends) = (certificate.validity().not_before, certificate.validity().not_after);
    let (now, cert) = (now_seconds(), cert.display());
    if ends.timestamp() <= now {
        said.push(format!("the certificate {cert} has expired ({}); clients will refuse it", time_of(ends)));
    } else if ends.timestamp() - now < SOON_SECONDS {
        said.push(format!("the certificate {cert} expires soon ({})", time_of(ends)));
    }
    if begins.timestamp() > now {
        said.push(format!("the certificate {cert} is not valid yet (from {})", time_of(begins)));
    }
    said
}

/// A certificate's time as times are written everywhere here: ISO 8601, UTC.
fn time_of(time: ASN1Time) -> String {
    let time = time.to_datetime();
    let (year, month, day) = (time.year(), u8::from(time.month()), time.day());
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", time.hour(), time.minute(), time.second())
}

/// Seconds since 1970.
pub(super) fn now_seconds() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}
