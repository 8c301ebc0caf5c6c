//! What a load needs to be let in: whom to believe, and what to show.
#![forbid(unsafe_code)]

use agent_relay::tls::{ClientFiles, ClientLink, Connector};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

/// TLS and credentials of a run; by default neither.
#[derive(Clone, Default)]
pub struct Access {
    tls: Option<(Connector, String)>,
    keys: Vec<&'static str>,
}

impl fmt::Debug for Access {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "Access(tls: {}, {} keys)", self.tls.is_some(), self.keys.len())
    }
}

impl Access {
    /// Reads what the flags name. The authority turns TLS on.
    pub fn read(
        ca: Option<&Path>,
        server_name: &str,
        key: Option<&str>,
        keys_file: Option<&Path>,
    ) -> Result<Access, String> {
        let tls = ca.map(|ca| connector(ca).map(|connector| (connector, server_name.to_owned()))).transpose()?;
        let text = match keys_file {
            Some(file) => fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?,
            None => key.unwrap_or_default().to_owned(),
        };
        // They live as long as the program: an agent's part is small and copied.
        let keys = text.leak().lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        Ok(Access { tls, keys })
    }

    /// The key of agent `number`; there may be fewer keys than agents.
    pub fn key(&self, number: u32) -> Option<&'static str> {
        self.keys.get(number as usize % self.keys.len().max(1)).copied()
    }

    /// This end of a new connection, where TLS is spoken.
    pub fn link(&self) -> Result<Option<ClientLink>, String> {
        let Some((connector, name)) = &self.tls else { return Ok(None) };
        connector.link(name).map(Some).map_err(|error| error.to_string())
    }
}

/// What believes the authority in this file.
pub fn connector(ca: &Path) -> Result<Connector, String> {
    let files = ClientFiles { ca: Some(PathBuf::from(ca)), ..ClientFiles::default() };
    Connector::new(&files).map_err(|error| error.to_string())
}
