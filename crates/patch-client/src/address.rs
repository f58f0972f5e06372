//! Where an agent is: a host and a port.

use std::{fmt, str::FromStr};

use crate::error::Error;

/// The port on which agents listen.
pub const DEFAULT_PORT: u16 = 12443;

/// An agent's address, read from `HOST`, `HOST:PORT`, `[IPV6]:PORT` or `https://HOST:PORT/`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Address {
    host: String,
    port: u16,
}

impl Address {
    /// The host: a name or an IP address, IPv6 without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |reason| Error::Address { text: text.to_owned(), reason };
        if text.starts_with("http://") {
            return Err(wrong("agents speak https only"));
        }
        let authority = text.strip_prefix("https://").unwrap_or(text);
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
            let (host, rest) = rest.split_once(']').ok_or_else(|| wrong("a ']' is missing"))?;
            if host.parse::<std::net::Ipv6Addr>().is_err() {
                return Err(wrong("what stands in brackets is not an IPv6 address"));
            }
            match rest {
                "" => (host, None),
                _ => {
                    (host, Some(rest.strip_prefix(':').ok_or_else(|| wrong("only ':PORT' may follow ']'"))?))
                }
            }
        } else if authority.parse::<std::net::Ipv6Addr>().is_ok() {
            (authority, None)
        } else {
            match authority.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            }
        };
        let port = match port {
            None => DEFAULT_PORT,
            Some(port) => match port.parse() {
                Ok(0) | Err(_) => return Err(wrong("the port must be a number from 1 to 65535")),
                Ok(port) => port,
            },
        };
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._:".contains(&b);
        if host.is_empty() || host.starts_with('-') || !host.bytes().all(plain) {
            return Err(wrong("a host is a name such as web1.internal or an IP address"));
        }
        Ok(Self { host: host.to_owned(), port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_ports_and_urls_are_read() {
        for (text, host, port, shown) in [
            ("web1", "web1", 12443, "web1:12443"),
            ("web1.internal:443", "web1.internal", 443, "web1.internal:443"),
            ("10.0.0.7", "10.0.0.7", 12443, "10.0.0.7:12443"),
            ("https://10.0.0.7:12444/", "10.0.0.7", 12444, "10.0.0.7:12444"),
            ("::1", "::1", 12443, "[::1]:12443"),
            ("[::1]:1", "::1", 1, "[::1]:1"),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!((address.host(), address.port()), (host, port), "{text}");
            assert_eq!(address.to_string(), shown);
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for text in [
            "", ":1", "a:", "a:0", "a:65536", "a:b", "http://a", "a/b", "a b", "u@a", "[::1", "[x]:1",
            "[::1]1", "-a", "ä",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text:?} was accepted");
        }
    }
}
