//! The settings of what protects: TLS, credentials, the licence. What they need of each other is checked here.

use super::paths::Layout;
use super::settings::{Resolved, SettingsError, Source, find};
use super::settings_key::KeyText;
use std::fmt;
use std::path::PathBuf;

/// What TLS is set up from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsFiles {
    /// The certificate chain, PEM.
    pub cert: PathBuf,
    /// Its private key, PEM.
    pub key: PathBuf,
    /// Authorities whose client certificates are believed, PEM.
    pub ca: Option<PathBuf>,
    /// Whether every client must show one.
    pub mutual: bool,
    /// Whether it speaks for the agents it names alone.
    pub bind_names: bool,
}

/// What the licence is found and kept with.
#[derive(Clone, Default)]
pub struct LicenceSettings {
    /// A key or a document from the environment; none: the activated one, if there is one.
    pub given: Option<KeyText>,
    /// The server; empty: none is known.
    pub server: String,
    /// Authorities by which the server's certificate is believed, PEM; none: the public ones.
    pub ca: Option<PathBuf>,
    /// Whether usage is reported to it.
    pub telemetry: bool,
}

impl fmt::Debug for LicenceSettings {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "LicenceSettings({:?}, telemetry {})", self.server, self.telemetry)
    }
}

/// The file that a setting names, if it names one. One named in relay.toml is seen from that file's folder.
pub(super) fn file_of(layout: &Layout, resolved: &[Resolved], key: &str) -> Option<PathBuf> {
    let entry = find(resolved, key);
    let path = PathBuf::from(entry.values.first()?);
    Some(if matches!(entry.source, Source::File { .. }) { layout.folder.join(path) } else { path })
}

/// What TLS is set up from, if it is on.
pub(super) fn tls_of(layout: &Layout, resolved: &[Resolved]) -> Result<Option<TlsFiles>, SettingsError> {
    let path = |key| file_of(layout, resolved, key);
    let on = |key| find(resolved, key).values.first().is_some_and(|value| value == "true");
    let needs = |key: &'static str, needed, how| {
        let origin = find(resolved, key).source.clone();
        SettingsError::Needs { key, origin, needed, how }
    };
    let (cert, key, ca) = (path("tls.cert"), path("tls.key"), path("tls.ca"));
    let (mutual, bind_names) = (on("tls.mutual"), on("tls.bind_names"));
    if mutual && ca.is_none() {
        return Err(needs("tls.mutual", "tls.ca", "give --tls-ca with the authorities of your clients' certificates"));
    }
    if bind_names && ca.is_none() {
        return Err(needs(
            "tls.bind_names",
            "tls.ca",
            "give --tls-ca with the authorities of your clients' certificates",
        ));
    }
    match (cert, key) {
        (Some(cert), Some(key)) => Ok(on("tls.enabled").then_some(TlsFiles { cert, key, ca, mutual, bind_names })),
        (Some(_), None) => Err(needs("tls.cert", "tls.key", "give --tls-key with the certificate's private key")),
        (None, Some(_)) => Err(needs("tls.key", "tls.cert", "give --tls-cert with the certificate of that key")),
        (None, None) if ca.is_some() => Err(needs("tls.ca", "tls.cert", "TLS is off without --tls-cert and --tls-key")),
        (None, None) => Ok(None),
    }
}

/// https anywhere; http on loopback alone, where nobody else listens.
pub(super) fn is_server_url(text: &str) -> bool {
    let local = ["http://127.0.0.1", "http://[::1]", "http://localhost"];
    let rest = match text.strip_prefix("https://") {
        Some(rest) => Some(rest),
        None => local
            .iter()
            .find_map(|host| text.strip_prefix(host))
            .filter(|rest| rest.is_empty() || rest.starts_with([':', '/']))
            .map(|_| "local"),
    };
    rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(['@', ' ', '"'])) && text.is_ascii()
}

#[cfg(test)]
mod tests {
    use super::super::paths::Environment;
    use super::super::settings::tests::read;
    use super::*;

    #[test]
    fn authentication_is_asked_for_by_flag_variable_or_file() {
        let on = |flags: &[(&'static str, &str)], variable: &str, file: &str| {
            read(flags, &Environment::of([("AGENT_RELAY_REQUIRE_AUTH", variable)]), file)
                .map(|settings| settings.require_auth)
        };
        assert!(on(&[], "true", "").unwrap() && !on(&[], "false", "[auth]\nrequired = true\n").unwrap());
        assert!(on(&[("auth.required", "true")], "false", "").unwrap());
        assert!(on(&[], "yes", "").unwrap_err().to_string().contains("is not true or false"));
        assert!(read(&[], &Environment::default(), "[auth]\nrequired = true\n").unwrap().require_auth);
    }

    #[test]
    fn half_of_tls_is_refused_with_what_is_missing() {
        let refusal =
            |flags: &[(&'static str, &str)]| read(flags, &Environment::default(), "").unwrap_err().to_string();
        assert!(refusal(&[("tls.cert", "c")]).contains("--tls-key"));
        assert!(refusal(&[("tls.key", "k")]).contains("--tls-cert"));
        assert!(refusal(&[("tls.cert", "c"), ("tls.key", "k"), ("tls.mutual", "true")]).contains("--tls-ca"));
        assert!(refusal(&[("tls.ca", "a")]).contains("TLS is off without"));
        let whole =
            [("tls.cert", "c"), ("tls.key", "k"), ("tls.ca", "a"), ("tls.mutual", "true"), ("listen", "0.0.0.0:1")];
        let settings = read(&whole, &Environment::default(), "").unwrap();
        let expected =
            TlsFiles { cert: "c".into(), key: "k".into(), ca: Some("a".into()), mutual: true, bind_names: false };
        assert_eq!((settings.tls, settings.listen.len()), (Some(expected), 1));
        let off = read(&whole[..2], &Environment::default(), "[tls]\nenabled = false\n").unwrap();
        assert_eq!(off.tls, None);
    }

    #[test]
    fn a_licence_is_never_shown_and_its_server_speaks_https() {
        let environment = Environment::of([("AGENT_RELAY_LICENSE_KEY", "ar_pro_a1b2c3d4e5f6g7h8_zzzz")]);
        let settings = read(&[], &environment, "[licence]\nserver = \"https://licences.example/\"\n").unwrap();
        assert_eq!(settings.licence.server, "https://licences.example");
        assert!(settings.licence.given.is_some() && !format!("{settings:?}").contains("a1b2"), "{settings:?}");
        for url in [
            "http://licences.example",
            "http://127.0.0.1.evil.example",
            "http://localhost.evil.example",
            "http://127.0.0.1@evil.example",
            "http://10.0.0.1:8443",
            "HTTP://127.0.0.1",
            "https://",
            "ftp://x",
            "https://user@x",
        ] {
            let file = format!("[licence]\nserver = \"{url}\"\n");
            let text = read(&[], &Environment::default(), &file).unwrap_err().to_string();
            assert!(text.contains("a URL that begins with https://"), "{url}: {text}");
        }
        let text = read(&[], &Environment::default(), "[licence]\nkey = \"x\"\n").unwrap_err().to_string();
        assert!(text.contains("relay license activate"), "{text}");
        let key = find(&settings.resolved, "licence.key");
        assert_eq!(key.default, "", "a vendor's build names its server, not a key");
    }

    #[test]
    fn the_licence_servers_authority_is_a_file_seen_from_where_it_is_named() {
        let file = "[licence]\nca = \"own-ca.pem\"\n";
        let settings = read(&[], &Environment::default(), file).unwrap();
        assert_eq!(settings.licence.ca, Some(settings.layout.folder.join("own-ca.pem")));
        let environment = Environment::of([("AGENT_RELAY_LICENSE_CA", "other.pem")]);
        let settings = read(&[], &environment, file).unwrap();
        assert_eq!(settings.licence.ca, Some("other.pem".into()));
        assert_eq!(find(&settings.resolved, "licence.ca").source.to_string(), "AGENT_RELAY_LICENSE_CA");
        assert_eq!(read(&[], &Environment::default(), "").unwrap().licence.ca, None);
    }
}
