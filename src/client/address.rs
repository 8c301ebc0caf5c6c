//! Where a daemon listens, in the forms people write it.

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// Where a daemon listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Address {
    /// A Unix socket.
    Unix(PathBuf),
    /// A TCP port. The name is looked up at each connection, and is what a certificate has to speak for.
    Tcp {
        /// A name or an address, without brackets.
        host: String,
        /// The port.
        port: u16,
    },
}

impl Address {
    /// Whether it is a port, here or elsewhere.
    pub fn is_tcp(&self) -> bool {
        matches!(self, Address::Tcp { .. })
    }

    /// Whether it is on this machine: only then may a connection go without TLS unless somebody said so.
    pub fn is_here(&self) -> bool {
        match self {
            Address::Unix(_) => true,
            Address::Tcp { host, .. } => {
                host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
            }
        }
    }
}

impl FromStr for Address {
    type Err = String;

    /// `unix:PATH` and `tcp://HOST:PORT` say which; otherwise what has a `/` is a path, unless it is another kind of URL.
    fn from_str(text: &str) -> Result<Address, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            return path_of(path.strip_prefix("//").unwrap_or(path));
        }
        if let Some(host) = text.strip_prefix("tcp://") {
            return host_of(host);
        }
        let is_path = text.contains('/') && !text.contains("://");
        if is_path { path_of(text) } else { host_of(text) }
    }
}

const NOTHING: &str = "an address is host:port, or the path of a socket";

fn path_of(path: &str) -> Result<Address, String> {
    if path.is_empty() {
        return Err(NOTHING.to_owned());
    }
    Ok(Address::Unix(PathBuf::from(path)))
}

fn host_of(text: &str) -> Result<Address, String> {
    let wrong = || match text {
        "" => NOTHING.to_owned(),
        _ => format!("{text} is not host:port (and the path of a socket has a /)"),
    };
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port: u16 = port.parse().map_err(|_| wrong())?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host = match bare {
        // Brackets are for addresses with colons, and those need them.
        Some(bare) if bare.parse::<std::net::Ipv6Addr>().is_ok() => bare,
        None if !host.is_empty() && !host.contains([':', '[', ']', '/', ' ']) => host,
        _ => return Err(wrong()),
    };
    Ok(Address::Tcp { host: host.to_owned(), port })
}

impl fmt::Display for Address {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Unix(path) => path.display().fmt(out),
            Address::Tcp { host, port } if host.contains(':') => write!(out, "[{host}]:{port}"),
            Address::Tcp { host, port } => write!(out, "{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_as_people_write_them() {
        let unix = |path: &str| Ok(Address::Unix(PathBuf::from(path)));
        let tcp = |host: &str| Ok(Address::Tcp { host: host.to_owned(), port: 4000 });
        assert_eq!("/run/relay.sock".parse(), unix("/run/relay.sock"));
        assert_eq!("unix:relay.sock".parse(), unix("relay.sock"));
        assert_eq!("unix:///run/x:1".parse(), unix("/run/x:1"));
        assert_eq!("./a:7".parse(), unix("./a:7"));
        assert_eq!("127.0.0.1:4000".parse(), tcp("127.0.0.1"));
        assert_eq!("relay.example:4000".parse(), tcp("relay.example"));
        assert_eq!("tcp://[::1]:4000".parse(), tcp("::1"));
        assert_eq!("".parse::<Address>().unwrap_err(), NOTHING);
        let wrong = ["tcp://nowhere", "tcp://:4000", "tcp://::1:4000", "tcp://[a]:4000", "tcp://a:70000"];
        for wrong in wrong.into_iter().chain(["127.0.0.1", "host:99999", "https://relay.example:4000", "relay.sock"]) {
            let said = wrong.parse::<Address>().unwrap_err();
            assert!(said.contains(" is not host:port"), "{wrong}: {said}");
        }
        for text in ["127.0.0.1:4000", "[::1]:4000", "/run/relay.sock"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn only_sockets_and_loopback_are_here() {
        for (text, here) in [
            ("/run/relay.sock", true),
            ("localhost:1", true),
            ("127.9.9.9:1", true),
            ("[::1]:1", true),
            ("10.0.0.1:1", false),
            ("localhost.example:1", false),
        ] {
            assert_eq!(text.parse::<Address>().unwrap().is_here(), here, "{text}");
        }
    }
}
