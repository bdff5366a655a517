//! Targets: addresses to dial, or to listen on.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs},
    path::PathBuf,
    str::FromStr,
};

use crate::{Addr, Error, error::named};

/// Whom to dial, or where to listen: an address, or a name with a port.
///
/// As text it is `ip:port`, `[ipv6]:port` or `host:port`, with `tcp://` before it or not, or `unix:` and the
/// path of a Unix socket. `tls://`, `ws://`, `wss://` and Unix sockets are known and refused as
/// [`Unsupported`](Error::Unsupported): this version has none of them yet.
///
/// Dialled, a name is looked up anew for each round of attempts, on a thread of its own. Listened on, it is
/// looked up once, where the call is made.
///
/// # Examples
///
/// ```
/// use std::net::Ipv6Addr;
///
/// use longhaul::Target;
///
/// let target: Target = "tcp://hub.example:7001".parse()?;
/// assert_eq!(target.to_string(), "hub.example:7001");
/// assert_eq!(Target::from((Ipv6Addr::LOCALHOST, 7001)).to_string(), "[::1]:7001");
/// # Ok::<(), longhaul::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    host: Host,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Host {
    Ip(SocketAddr),
    Name(String, u16),
    Unix(PathBuf),
}

impl Target {
    /// The host, if this version can reach it.
    ///
    /// # Errors
    ///
    /// It is a Unix socket.
    pub(crate) fn host(&self) -> Result<&Host, Error> {
        match &self.host {
            Host::Unix(_) => Err(Error::Unsupported(self.to_string())),
            host => Ok(host),
        }
    }

    /// The addresses to listen on; a name is looked up here, and blocks for as long.
    ///
    /// # Errors
    ///
    /// It is a Unix socket, or the name is not found.
    pub(crate) fn to_addrs(&self) -> Result<Vec<SocketAddr>, Error> {
        match self.host()? {
            Host::Ip(addr) => Ok(vec![*addr]),
            Host::Name(name, port) => {
                let found = (&**name, *port).to_socket_addrs();
                Ok(found.map_err(|error| named(self, &error))?.collect())
            }
            Host::Unix(_) => Err(io::Error::from(io::ErrorKind::Unsupported).into()),
        }
    }
}

/// The schemes that may stand before an address, and whether this version has them.
const SCHEMES: [(&str, bool); 4] =
    [("tcp://", true), ("tls://", false), ("ws://", false), ("wss://", false)];

/// Whether it can be the name of a host: nothing that only stands in URLs, and nothing unseen.
fn is_host(text: &str) -> bool {
    let is_odd =
        |char: char| char.is_whitespace() || char.is_control() || ":[]/\\@?#".contains(char);
    !text.is_empty() && !text.contains(is_odd)
}

/// Takes what the [type](Target) says.
impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = || Error::Address(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() { Err(wrong()) } else { Ok(Addr::Unix(path.into()).into()) };
        }
        let mut addr = text;
        for (scheme, is_supported) in SCHEMES {
            if let Some(rest) = text.strip_prefix(scheme) {
                if !is_supported {
                    return Err(Error::Unsupported(text.to_owned()));
                }
                addr = rest;
            }
        }
        if let Ok(addr) = addr.parse::<SocketAddr>() {
            return Ok(addr.into());
        }
        let (host, port) = addr.rsplit_once(':').ok_or_else(wrong)?;
        if !port.bytes().all(|byte| byte.is_ascii_digit()) || !is_host(host) {
            return Err(wrong());
        }
        let port = port.parse().map_err(|_| wrong())?;
        Ok(Self { host: Host::Name(host.to_owned(), port) })
    }
}

impl From<SocketAddr> for Target {
    fn from(addr: SocketAddr) -> Self {
        Self { host: Host::Ip(addr) }
    }
}

impl From<Addr> for Target {
    fn from(addr: Addr) -> Self {
        Self {
            host: match addr {
                Addr::Ip(addr) => Host::Ip(addr),
                Addr::Unix(path) => Host::Unix(path),
            },
        }
    }
}

impl From<&Addr> for Target {
    fn from(addr: &Addr) -> Self {
        addr.clone().into()
    }
}

impl From<(IpAddr, u16)> for Target {
    fn from(addr: (IpAddr, u16)) -> Self {
        SocketAddr::from(addr).into()
    }
}

impl From<(Ipv4Addr, u16)> for Target {
    fn from(addr: (Ipv4Addr, u16)) -> Self {
        SocketAddr::from(addr).into()
    }
}

impl From<(Ipv6Addr, u16)> for Target {
    fn from(addr: (Ipv6Addr, u16)) -> Self {
        SocketAddr::from(addr).into()
    }
}

/// A name or an IP address, and a port.
impl TryFrom<(&str, u16)> for Target {
    type Error = Error;

    fn try_from((host, port): (&str, u16)) -> Result<Self, Error> {
        // In brackets it may be IPv6 with a scope.
        match (host.parse::<IpAddr>(), format!("[{host}]:{port}").parse::<SocketAddr>()) {
            (Ok(ip), _) => Ok((ip, port).into()),
            (_, Ok(addr)) => Ok(addr.into()),
            _ => format!("{host}:{port}").parse(),
        }
    }
}

impl TryFrom<&str> for Target {
    type Error = Error;

    fn try_from(text: &str) -> Result<Self, Error> {
        text.parse()
    }
}

impl TryFrom<&String> for Target {
    type Error = Error;

    fn try_from(text: &String) -> Result<Self, Error> {
        text.parse()
    }
}

impl TryFrom<String> for Target {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(addr) => addr.fmt(f),
            Host::Name(name, port) => write!(f, "{name}:{port}"),
            Host::Unix(path) => Addr::Unix(path.clone()).fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_addresses_or_names_with_a_port() {
        for text in ["127.0.0.1:80", "[::1]:80", "localhost:7001", "a.example:1", "unix:/a/b"] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "localhost",
            ":80",
            "host:",
            "host:99999",
            "::1:80",
            "http://a:80",
            "a b:1",
            "tcp://",
            "tcp://a",
            "tcp:a:1",
            "unix:",
            "unix://",
            "TCP://a:1",
        ] {
            let wrong = text.parse::<Target>();
            assert!(matches!(&wrong, Err(Error::Address(shown)) if shown == text), "{wrong:?}");
        }
    }

    #[test]
    fn scheme_of_tcp_changes_nothing() {
        for text in ["127.0.0.1:80", "[::1]:80", "localhost:7001"] {
            let with: Target = format!("tcp://{text}").parse().unwrap();
            assert_eq!(with, text.parse().unwrap());
        }
        assert_eq!("unix:///a".parse::<Target>().unwrap(), "unix:/a".parse().unwrap());
    }

    #[test]
    fn what_is_not_there_yet_is_refused_by_its_name() {
        for text in ["tls://a:1", "ws://a:1", "wss://a:1/path"] {
            let refused = text.parse::<Target>().unwrap_err();
            assert!(refused.to_string().contains(text), "{refused}");
            assert!(matches!(refused, Error::Unsupported(_)), "{refused:?}");
        }
        let unix: Target = "unix:/a".parse().unwrap();
        assert!(matches!(unix.host(), Err(Error::Unsupported(text)) if text == "unix:/a"));
        assert!(matches!(unix.to_addrs(), Err(Error::Unsupported(_))));
    }

    #[test]
    fn pair_of_a_host_and_a_port_is_a_target() {
        let parse = |text: &str| text.parse::<Target>().unwrap();
        assert_eq!(Target::try_from(("::1", 7001)).unwrap(), parse("[::1]:7001"));
        assert_eq!(Target::try_from(("localhost", 7001)).unwrap(), parse("localhost:7001"));
        assert!(Target::try_from(("a b", 1)).is_err());
    }
}
