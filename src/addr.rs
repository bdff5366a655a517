//! Where a socket is.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    option,
    path::PathBuf,
};

/// Where a socket is: a peer's, or our own.
///
/// # Examples
///
/// ```
/// use longhaul::{Conn, Handler, Message, Reactor, protocol::Native};
/// # struct Echo;
/// # impl Handler for Echo {
/// #     type Protocol = Native;
/// #     fn on_message(&mut self, _: &mut Conn<'_, Native>, _: Message<'_, Native>) {}
/// # }
///
/// let mut reactor = Reactor::new(Echo)?;
/// let (_, addr) = reactor.listen("127.0.0.1:0")?;
/// assert!(addr.ip().unwrap().is_loopback());
/// assert_ne!(addr.port(), Some(0));
/// # Ok::<(), longhaul::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Addr {
    /// An address of IPv4 or IPv6, and a port.
    Ip(SocketAddr),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl Addr {
    /// The IP address, if it has one.
    pub const fn ip(&self) -> Option<IpAddr> {
        match self {
            Self::Ip(addr) => Some(addr.ip()),
            Self::Unix(_) => None,
        }
    }

    /// The port, if it has one.
    pub const fn port(&self) -> Option<u16> {
        match self {
            Self::Ip(addr) => Some(addr.port()),
            Self::Unix(_) => None,
        }
    }

    /// The IP address and port, if it is that.
    pub const fn socket_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(addr) => Some(*addr),
            Self::Unix(_) => None,
        }
    }
}

impl From<SocketAddr> for Addr {
    fn from(addr: SocketAddr) -> Self {
        Self::Ip(addr)
    }
}

impl PartialEq<SocketAddr> for Addr {
    fn eq(&self, other: &SocketAddr) -> bool {
        self.socket_addr() == Some(*other)
    }
}

/// For what connects or binds by itself. A Unix socket is none of its kind, which is an error.
impl ToSocketAddrs for Addr {
    type Iter = option::IntoIter<SocketAddr>;

    fn to_socket_addrs(&self) -> io::Result<Self::Iter> {
        let not_ip = || io::Error::new(io::ErrorKind::InvalidInput, "a Unix socket has no port");
        Ok(Some(self.socket_addr().ok_or_else(not_ip)?).into_iter())
    }
}

/// As a [`Target`](crate::Target) takes it: `127.0.0.1:7001`, `[::1]:7001`, `unix:/run/hub.sock`.
impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(addr) => addr.fmt(f),
            // Two slashes in front would be taken for those of a URL.
            Self::Unix(path) if path.as_os_str().as_encoded_bytes().starts_with(b"//") => {
                write!(f, "unix://{}", path.display())
            }
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Target;

    #[test]
    fn parts_are_there_where_the_kind_has_them() {
        let addr: SocketAddr = "[::1]:7001".parse().unwrap();
        let ip = Addr::from(addr);
        assert_eq!((ip.ip(), ip.port()), (Some(addr.ip()), Some(7001)));
        assert_eq!(ip, addr);
        assert_eq!(ip.to_socket_addrs().unwrap().collect::<Vec<_>>(), [addr]);
        let unix = Addr::Unix("/run/hub.sock".into());
        assert_eq!((unix.ip(), unix.port(), unix.socket_addr()), (None, None, None));
        assert_ne!(unix, addr);
        assert!(unix.to_socket_addrs().is_err());
    }

    #[test]
    fn what_is_shown_can_be_dialled() {
        let unix = Addr::Unix("/run/hub.sock".into());
        for addr in [Addr::from(SocketAddr::from(([1, 2, 3, 4], 5))), unix] {
            let target: Target = addr.to_string().parse().unwrap();
            assert_eq!(target, Target::from(addr));
        }
    }
}
