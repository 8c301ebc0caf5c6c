//! Certificates for tests, made when they run: an authority, and what it signs.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType, date_time_ymd};
use std::path::{Path, PathBuf};

/// Whoever signs.
pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// Its own certificate.
    pub(crate) file: PathBuf,
}

/// What a certificate is to be like.
pub(crate) struct Wanted<'a> {
    /// Names in the part before the last file suffix, and the subject's common name.
    pub(crate) name: &'a str,
    /// DNS names and IP addresses that it is for.
    pub(crate) hosts: &'a [&'a str],
    /// A URI that it is for.
    pub(crate) uri: Option<&'a str>,
    /// Whether its time is over.
    pub(crate) expired: bool,
}

impl<'a> Wanted<'a> {
    /// One for the relay of these tests.
    pub(crate) fn named(name: &'a str) -> Wanted<'a> {
        Wanted { name, hosts: &["localhost", "127.0.0.1"], uri: None, expired: false }
    }
}

/// A certificate and its key, as files.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

impl Authority {
    /// A new one, whose certificate lies in `folder`.
    pub(crate) fn new(folder: &Path, name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let file = folder.join(format!("{name}.ca.pem"));
        std::fs::write(&file, issuer.pem()).unwrap();
        Authority { issuer, file }
    }

    /// Signs a new certificate and writes it, and its key, to `folder`; over those of the same name, if there are any.
    pub(crate) fn issue(&self, folder: &Path, wanted: &Wanted<'_>) -> Pair {
        let hosts: Vec<String> = wanted.hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).unwrap();
        params.distinguished_name.push(DnType::CommonName, wanted.name);
        if let Some(uri) = wanted.uri {
            params.subject_alt_names.push(SanType::URI(uri.try_into().unwrap()));
        }
        if wanted.expired {
            (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2021, 1, 1));
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let place = |kind: &str| folder.join(format!("{}.{kind}.pem", wanted.name));
        let pair = Pair { cert: place("cert"), key: place("key") };
        std::fs::write(&pair.cert, certificate.pem()).unwrap();
        std::fs::write(&pair.key, key.serialize_pem()).unwrap();
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&pair.key, private).unwrap();
        pair
    }
}
