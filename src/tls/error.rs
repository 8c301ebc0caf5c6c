//! What can be wrong with files of certificates, and with a peer: sentences for people, with the remedy.

use rustls::{AlertDescription, CertificateError, Error};
use std::path::PathBuf;

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {what} in {}: {error}; check the path and its permissions", file.display())]
    Read {
        /// What it should hold.
        what: &'static str,
        /// The file.
        file: PathBuf,
        /// What the kernel said.
        error: std::io::Error,
    },
    /// A file is not what it should be.
    #[error("{} is too long for a PEM file ({bytes} bytes); is it the right one?", file.display())]
    TooLong {
        /// The file.
        file: PathBuf,
        /// Its length.
        bytes: u64,
    },
    /// A file without anything that PEM begins with.
    #[error("{} is not PEM: it has no line -----BEGIN …-----. DER is converted with `openssl x509 -inform der` (a key: `openssl pkey -inform der`)", file.display())]
    NotPem {
        /// The file.
        file: PathBuf,
    },
    /// PEM, but something else in it.
    #[error("{} holds no {what}: its PEM has nothing that begins with -----BEGIN {begins}-----", file.display())]
    Missing {
        /// What it should hold.
        what: &'static str,
        /// How that begins.
        begins: &'static str,
        /// The file.
        file: PathBuf,
    },
    /// A key under a passphrase.
    #[error("the private key in {} is locked with a passphrase, which nobody can type when the relay starts; write it without: `openssl pkey -in {} -out unlocked.pem`", file.display(), file.display())]
    Locked {
        /// The file.
        file: PathBuf,
    },
    /// PEM whose content is damaged, or of a kind that is not served.
    #[error("the {what} in {} cannot be used: {reason}", file.display())]
    Unusable {
        /// What it is.
        what: &'static str,
        /// The file.
        file: PathBuf,
        /// Why.
        reason: String,
    },
    /// Two files that do not belong together.
    #[error("the private key in {} is not the one of the certificate in {}; take the pair that was made together", key.display(), cert.display())]
    KeyMismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's.
        key: PathBuf,
    },
    /// A client certificate without its key, or the other way round.
    #[error("a certificate and its private key are needed together: {missing} is missing")]
    Half {
        /// Which one.
        missing: &'static str,
    },
    /// No authority is known by which a relay could be verified.
    #[error("this system has no list of certificate authorities ({looked}); name the one of your relay's certificate")]
    NoAuthorities {
        /// Where one was looked for.
        looked: String,
    },
    /// A name that cannot stand in a certificate.
    #[error("{name:?} is not a name or an address that a certificate can be made for")]
    ServerName {
        /// The name.
        name: String,
    },
    /// Nothing that a file could cause.
    #[error("TLS cannot be set up: {reason}")]
    Setup {
        /// What rustls said.
        reason: String,
    },
}

/// Why a link has ended, or never came about.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum LinkError {
    /// Whatever the other end speaks, it is not TLS.
    #[error("the other end does not speak TLS")]
    NotTls,
    /// The peer's certificate is not signed by anyone who is believed.
    #[error("the certificate is not signed by an authority that is believed here; name its authority's file (PEM)")]
    Untrusted,
    /// The peer's certificate was good once.
    #[error("the certificate has expired; it must be renewed")]
    Expired,
    /// The peer's certificate will be good.
    #[error("the certificate is not valid yet; is the clock right on both machines?")]
    NotYetValid,
    /// The peer's certificate is somebody else's: what it is for, as half a sentence.
    #[error("the certificate is not for this name: {0}")]
    WrongName(String),
    /// The peer shows an authority's certificate as its own, as `openssl req -x509` makes it when nothing is said.
    #[error(
        "the certificate is an authority's (CA:TRUE) and may not serve as well; make it anew with -addext basicConstraints=critical,CA:FALSE"
    )]
    AuthorityItself,
    /// The peer's certificate has another fault.
    #[error("the certificate cannot be accepted: {0}")]
    BadCertificate(String),
    /// A client certificate is required, and the client has shown none.
    #[error("a client certificate is required and none was shown")]
    CertificateWanted,
    /// The peer does not accept ours.
    #[error("the other end refuses this connection: {0}")]
    Refused(String),
    /// No version or cipher suite in common.
    #[error("no version of TLS in common (1.2 and 1.3 are spoken here, with ECDHE and AEAD alone): {0}")]
    Incompatible(String),
    /// More bytes than a handshake has.
    #[error("the handshake is longer than {max} bytes", max = super::HANDSHAKE_BYTES_MAX)]
    TooLong,
    /// The peer breaks the rules of TLS, or bytes were changed on their way.
    #[error("not a correct TLS peer: {0}")]
    Broken(String),
}

impl From<Error> for LinkError {
    fn from(error: Error) -> LinkError {
        match error {
            Error::InvalidMessage(_) => LinkError::NotTls,
            Error::InvalidCertificate(problem) => match problem {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => LinkError::Expired,
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => LinkError::NotYetValid,
                CertificateError::UnknownIssuer | CertificateError::BadSignature => LinkError::Untrusted,
                CertificateError::NotValidForName => LinkError::WrongName("it is for others".to_owned()),
                CertificateError::NotValidForNameContext { presented, .. } => {
                    LinkError::WrongName(names_of(&presented))
                }
                // rustls has no name of its own for it.
                problem if problem.to_string().contains("CaUsedAsEndEntity") => LinkError::AuthorityItself,
                problem => LinkError::BadCertificate(problem.to_string()),
            },
            Error::NoCertificatesPresented => LinkError::CertificateWanted,
            Error::AlertReceived(alert) => LinkError::Refused(meaning(alert)),
            Error::PeerIncompatible(_) => LinkError::Incompatible(error.to_string()),
            error => LinkError::Broken(error.to_string()),
        }
    }
}

impl LinkError {
    /// What ended the handshake that an error of the stream below speaks of; none: it speaks of something else.
    pub fn within(error: &std::io::Error) -> Option<LinkError> {
        error.get_ref()?.downcast_ref::<Error>().cloned().map(LinkError::from)
    }
}

/// At most so many names of a certificate are said.
const NAMES_MAX: usize = 8;

/// What a certificate is for. Its names come as rustls prints them, `DnsName("a.example")` and `IpAddress(127.0.0.1)`.
fn names_of(presented: &[String]) -> String {
    if presented.is_empty() {
        return "it has no names at all (subjectAltName is missing)".to_owned();
    }
    let bare = |name: &String| {
        let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or(name);
        inner.trim_matches('"').to_owned()
    };
    let mut names: Vec<String> = presented.iter().take(NAMES_MAX).map(bare).collect();
    if presented.len() > NAMES_MAX {
        names.push("…".to_owned());
    }
    format!("it is for {}", names.join(", "))
}

/// What an alert means to whoever reads a log.
fn meaning(alert: AlertDescription) -> String {
    let text = match alert {
        AlertDescription::CertificateRequired => "it requires a client certificate",
        AlertDescription::UnknownCA => "it does not believe the authority of our certificate",
        // Webpki's word for a certificate without the purpose that it is shown for.
        AlertDescription::UnsupportedCertificate => {
            "our certificate may not be used by a client (extendedKeyUsage clientAuth is missing)"
        }
        AlertDescription::CertificateExpired => "our certificate has expired",
        AlertDescription::BadCertificate | AlertDescription::CertificateUnknown => "it does not accept our certificate",
        AlertDescription::ProtocolVersion => "it speaks another version of TLS",
        AlertDescription::HandshakeFailure => "nothing in common, or no certificate that it accepts",
        AlertDescription::AccessDenied => "access denied",
        _ => return format!("alert {alert:?}"),
    };
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_alerts_are_said_as_people_write_them() {
        let names = ["DnsName(\"localhost\")", "DnsName(\"relay.example\")", "IpAddress(127.0.0.1)"].map(str::to_owned);
        assert_eq!(names_of(&names), "it is for localhost, relay.example, 127.0.0.1");
        assert!(names_of(&[]).contains("no names"));
        let refused = LinkError::from(Error::AlertReceived(AlertDescription::UnsupportedCertificate));
        assert!(refused.to_string().contains("clientAuth"), "{refused}");
    }
}
