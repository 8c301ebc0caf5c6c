//! Where a daemon listens, in the forms people write it.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;

/// Where a daemon listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// A TCP port.
    Tcp(SocketAddr),
}

impl FromStr for Address {
    type Err = String;

    /// `unix:PATH` and `tcp://HOST:PORT` say which; otherwise what ends in `:PORT` and has no `/` is TCP.
    fn from_str(text: &str) -> Result<Address, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return path_of(path.strip_prefix("//").unwrap_or(path));
        }
        if let Some(host) = text.strip_prefix("tcp://") {
            return host_of(host);
        }
        let has_port = text.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        if has_port && !text.contains('/') { host_of(text) } else { path_of(text) }
    }
}

fn path_of(path: &str) -> Result<Address, String> {
    if path.is_empty() {
        return Err("an address is the path of a socket, or host:port".into());
    }
    Ok(Address::Unix(PathBuf::from(path)))
}

fn host_of(text: &str) -> Result<Address, String> {
    let mut found = text.to_socket_addrs().map_err(|problem| format!("{text} is not host:port: {problem}"))?;
    found.next().map(Address::Tcp).ok_or_else(|| format!("{text} has no address"))
}

impl fmt::Display for Address {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => path.display().fmt(out),
            Address::Tcp(address) => address.fmt(out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_people_write_them() {
        let unix = |path: &str| Ok(Address::Unix(PathBuf::from(path)));
        let tcp = |text: &str| Ok(Address::Tcp(text.parse().unwrap()));
        assert_eq!("/run/relay.sock".parse(), unix("/run/relay.sock"));
        assert_eq!("unix:relay.sock".parse(), unix("relay.sock"));
        assert_eq!("unix:///run/x:1".parse(), unix("/run/x:1"));
        assert_eq!("./a:7".parse(), unix("./a:7"));
        assert_eq!("127.0.0.1:4000".parse(), tcp("127.0.0.1:4000"));
        assert_eq!("tcp://[::1]:4000".parse(), tcp("[::1]:4000"));
        assert!("".parse::<Address>().is_err());
        assert!("tcp://nowhere".parse::<Address>().is_err());
        assert_eq!("127.0.0.1:4000".parse::<Address>().unwrap().to_string(), "127.0.0.1:4000");
    }
}
