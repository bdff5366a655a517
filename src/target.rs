//! What can be dialled.

use std::{fmt, net::SocketAddr, str::FromStr};

use crate::Error;

/// What to dial: an address, or a name that is resolved anew for each round of attempts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub(crate) host: Host,
    pub(crate) port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Host {
    Ip(SocketAddr),
    Name(String),
}

impl From<SocketAddr> for Target {
    fn from(addr: SocketAddr) -> Self {
        Self { host: Host::Ip(addr), port: addr.port() }
    }
}

/// Takes `ip:port`, `[ipv6]:port` and `host:port`.
impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if let Ok(addr) = text.parse::<SocketAddr>() {
            return Ok(addr.into());
        }
        let wrong = || Error::Address(text.to_owned());
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().map_err(|_| wrong())?;
        if host.is_empty() || host.contains([':', '[', ']', ' ', '/']) {
            return Err(wrong());
        }
        Ok(Self { host: Host::Name(host.to_owned()), port })
    }
}

impl TryFrom<&str> for Target {
    type Error = Error;

    fn try_from(text: &str) -> Result<Self, Error> {
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
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_addresses_or_names_with_a_port() {
        for text in ["127.0.0.1:80", "[::1]:80", "localhost:7001", "a.example:1"] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
        for text in
            ["", "localhost", ":80", "host:", "host:99999", "::1:80", "http://a:80", "a b:1"]
        {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }
}
