//! Whom a client certificate speaks for.

use super::LinkError;
use super::files::now_seconds;
use crate::base::keys::{Certificate, Identity};
use rustls_pki_types::CertificateDer;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Names of one certificate that are looked at; each must be compared with the name in HELLO.
const NAMES_MAX: usize = 64;

/// Reads a certificate that rustls has verified: now, or when the session that is resumed here began. In that case it
/// may have expired since.
pub(super) fn read(certificate: &CertificateDer<'_>) -> Result<Certificate, LinkError> {
    let (_, parsed) =
        X509Certificate::from_der(certificate).map_err(|error| LinkError::BadCertificate(error.to_string()))?;
    if parsed.validity().not_after.timestamp() < now_seconds() {
        return Err(LinkError::Expired);
    }
    let mut names: Vec<Box<str>> = Vec::new();
    let mut add = |name: &str| {
        if !name.is_empty() && names.len() < NAMES_MAX && !names.iter().any(|known| **known == *name) {
            names.push(name.into());
        }
    };
    for name in parsed.subject().iter_common_name() {
        add(name.as_str().unwrap_or_default());
    }
    let alternatives = parsed.subject_alternative_name().ok().flatten();
    for name in alternatives.iter().flat_map(|extension| &extension.value.general_names) {
        match name {
            GeneralName::DNSName(name) | GeneralName::URI(name) | GeneralName::RFC822Name(name) => add(name),
            GeneralName::IPAddress(bytes) => add(&address(bytes).map_or(String::new(), |address| address.to_string())),
            _ => {}
        }
    }
    Ok(Arc::new(Identity::new(names, certificate)))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let four = <[u8; 4]>::try_from(bytes).map(|bytes| IpAddr::V4(Ipv4Addr::from(bytes)));
    four.or_else(|_| <[u8; 16]>::try_from(bytes).map(|bytes| IpAddr::V6(Ipv6Addr::from(bytes)))).ok()
}
