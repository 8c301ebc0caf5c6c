//! The client: one POST at a time, on the caller's thread. Every step has an end: no redirects, no answer longer than
//! 64 KiB, and none that takes longer than the caller allows, a byte a second included.

use crate::tls::{Authorities, LinkError, TlsError};
use std::time::Duration;
use ureq::config::Config;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};
use ureq::{Agent, Error};

/// Longest answer that is read.
pub const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// Longest head of an answer.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// What came back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body, as text.
    pub body: String,
}

/// Why nothing came back.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody was reached, or it took too long.
    #[error("{0}")]
    Unreachable(String),
    /// Whoever is there has no certificate that is believed, or no TLS at all.
    #[error("{0}")]
    Tls(LinkError),
    /// More than anybody asked for.
    #[error("the answer is longer than {ANSWER_BYTES_MAX} bytes")]
    TooLong,
    /// Not text.
    #[error("the answer is not text")]
    NotText,
}

impl From<TlsError> for ClientError {
    /// Nobody is asked where it is not known whom to believe.
    fn from(error: TlsError) -> ClientError {
        ClientError::Unreachable(error.to_string())
    }
}

/// By whom a server's certificate is believed to be what it says.
pub enum Believed {
    /// The authorities that browsers believe.
    Public,
    /// These, and no others.
    These(Authorities),
}

/// A client.
pub struct Client {
    agent: Agent,
}

impl Client {
    /// A client that calls itself so.
    pub fn new(user_agent: &str, believed: Believed) -> Client {
        let roots = match believed {
            Believed::Public => RootCerts::WebPki,
            Believed::These(these) => these.ders().map(|der| Certificate::from_der(der).to_owned()).into(),
        };
        let tls = TlsConfig::builder().provider(TlsProvider::Rustls).root_certs(roots).build();
        let config = Config::builder()
            .tls_config(tls)
            .user_agent(user_agent)
            // A status is the caller's business, and whoever sends us elsewhere is not whom we asked.
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .max_response_header_size(HEAD_BYTES_MAX)
            // It asks once a day: no connection is worth keeping.
            .max_idle_connections(0)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .build();
        Client { agent: Agent::new_with_config(config) }
    }

    /// Posts JSON and waits for the answer, no longer than `patience` in all.
    pub fn post(&self, url: &str, json: &str, patience: Duration) -> Result<Answer, ClientError> {
        let request = self.agent.post(url).header("content-type", "application/json");
        let request = request.config().timeout_global(Some(patience)).build();
        let mut response = request.send(json).map_err(unreachable)?;
        let status = response.status().as_u16();
        let limit = ANSWER_BYTES_MAX as u64;
        let bytes = response.body_mut().with_config().limit(limit).read_to_vec().map_err(|error| match error {
            Error::BodyExceedsLimit(_) => ClientError::TooLong,
            other => unreachable(other),
        })?;
        let body = String::from_utf8(bytes).map_err(|_| ClientError::NotText)?;
        Ok(Answer { status, body })
    }
}

fn unreachable(error: Error) -> ClientError {
    if let Error::Io(error) = &error
        && let Some(problem) = LinkError::within(error)
    {
        return ClientError::Tls(problem);
    }
    ClientError::Unreachable(match error {
        Error::Timeout(_) => "it does not answer in time".to_owned(),
        Error::HostNotFound => "there is no host of that name".to_owned(),
        Error::Io(error) => error.to_string(),
        other => other.to_string(),
    })
}
