//! What the kernel says of the network: listening sockets and default routes. Parsers of text from `/proc`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A socket that waits to be spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Listening {
    pub(super) address: SocketAddr,
    pub(super) inode: u64,
}

/// The state of a listening TCP socket, as the kernel writes it.
const TCP_LISTEN: &str = "0A";
/// The state of a UDP socket without a peer.
const UDP_OPEN: &str = "07";

/// The listening sockets of `/proc/net/tcp` and `/proc/net/tcp6`.
pub(super) fn listening_tcp(table: &str) -> Vec<Listening> {
    sockets(table, TCP_LISTEN)
}

/// The sockets without a peer of `/proc/net/udp` and `/proc/net/udp6`.
pub(super) fn open_udp(table: &str) -> Vec<Listening> {
    sockets(table, UDP_OPEN)
}

fn sockets(table: &str, state: &str) -> Vec<Listening> {
    // The first line is the heading.
    table.lines().skip(1).filter_map(|line| socket(line, state)).collect()
}

/// `sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode …`
fn socket(line: &str, state: &str) -> Option<Listening> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let local = fields.next()?;
    if fields.nth(1)? != state {
        return None;
    }
    let inode = fields.nth(5)?.parse().ok()?;
    let (address, port) = local.split_once(':')?;
    Some(Listening { address: SocketAddr::new(ip(address)?, u16::from_str_radix(port, 16).ok()?), inode })
}

/// An address in hexadecimal, in 32-bit words of the machine's order.
fn ip(text: &str) -> Option<IpAddr> {
    let mut octets = Vec::with_capacity(16);
    let mut rest = text;
    while !rest.is_empty() {
        let (word, after) = rest.split_at_checked(8)?;
        octets.extend(u32::from_str_radix(word, 16).ok()?.to_ne_bytes());
        rest = after;
    }
    match octets.len() {
        4 => <[u8; 4]>::try_from(octets).ok().map(|octets| Ipv4Addr::from(octets).into()),
        16 => <[u8; 16]>::try_from(octets).ok().map(|octets| Ipv6Addr::from(octets).into()),
        _ => None,
    }
}

/// A route that is up, and one that refuses: `linux/route.h`.
const RTF_UP: u32 = 0x1;
const RTF_REJECT: u32 = 0x200;

fn leads_somewhere(flags: &str) -> bool {
    u32::from_str_radix(flags, 16).is_ok_and(|flags| flags & RTF_UP != 0 && flags & RTF_REJECT == 0)
}

/// Whether `/proc/net/route` has a default route.
pub(super) fn has_default_v4(table: &str) -> bool {
    // Iface Destination Gateway Flags RefCnt Use Metric Mask …
    table.lines().skip(1).any(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        fields.get(1) == Some(&"00000000")
            && fields.get(7) == Some(&"00000000")
            && fields.get(3).is_some_and(|flags| leads_somewhere(flags))
    })
}

/// Whether `/proc/net/ipv6_route` has a default route.
pub(super) fn has_default_v6(table: &str) -> bool {
    // destination length source length next-hop metric references use flags device
    table.lines().any(|line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let zero = |text: &&&str| text.bytes().all(|b| b == b'0');
        fields.first().filter(zero).is_some()
            && fields.get(1) == Some(&"00")
            && fields.get(8).is_some_and(|flags| leads_somewhere(flags))
            && fields.get(9).is_some_and(|device| *device != "lo")
    })
}

/// The lower bound of `/proc/sys/net/ipv4/ip_local_port_range`: from there on ports are handed out at random.
pub(super) fn first_ephemeral(text: &str) -> Option<u16> {
    text.split_ascii_whitespace().next()?.parse().ok()
}

/// The inode in the target of a link in `/proc/PID/fd`.
pub(super) fn socket_inode(link: &str) -> Option<u64> {
    link.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// The hosts that a file of apt's sources names, in their order, in either format.
pub(super) fn source_hosts(text: &str) -> Vec<String> {
    let mut hosts = Vec::new();
    for word in
        text.lines().filter(|line| !line.trim_start().starts_with('#')).flat_map(str::split_ascii_whitespace)
    {
        let Some(rest) = ["http://", "https://"].iter().find_map(|scheme| word.strip_prefix(scheme)) else {
            continue;
        };
        let authority = rest.split('/').next().unwrap_or_default();
        let host = authority.rsplit('@').next().unwrap_or_default().split(':').next().unwrap_or_default();
        let is_name = patch_types::settings::is_host(host) && host.parse::<Ipv4Addr>().is_err();
        if is_name && !hosts.iter().any(|known| known == host) {
            hosts.push(host.to_owned());
        }
    }
    hosts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEADING: &str =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode";

    fn hex(ip: IpAddr) -> String {
        let octets = match ip {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        octets.chunks(4).map(|word| format!("{:08X}", u32::from_ne_bytes(word.try_into().unwrap()))).collect()
    }

    proptest! {
        #[test]
        fn every_listener_is_read_back(
            rows in prop::collection::vec((any::<IpAddr>(), any::<u16>(), any::<u32>(), any::<bool>()), 0..20)
        ) {
            let mut table = format!("{HEADING}\n");
            for (i, (ip, port, inode, listens)) in rows.iter().enumerate() {
                let state = if *listens { "0A" } else { "01" };
                table += &format!(
                    "{i:4}: {}:{port:04X} {}:0000 {state} 00000000:00000000 00:00000000 00000000     0        0 {inode} 1 0 100 0 0 10 0\n",
                    hex(*ip), "0".repeat(hex(*ip).len())
                );
            }
            let wanted: Vec<_> = rows.iter().filter(|row| row.3).map(|row| Listening {
                address: SocketAddr::new(row.0, row.1),
                inode: row.2.into(),
            }).collect();
            prop_assert_eq!(listening_tcp(&table), wanted);
        }

        #[test]
        fn nothing_makes_a_parser_panic(text in "\\PC*|[0-9A-F: \n]{0,200}") {
            listening_tcp(&text);
            open_udp(&text);
            has_default_v4(&text);
            has_default_v6(&text);
            first_ephemeral(&text);
            socket_inode(&text);
            for host in source_hosts(&format!("deb http://{text}")) {
                prop_assert!(!host.starts_with('-'));
            }
        }
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn the_kernels_own_lines_are_understood() {
        let tcp = format!(
            "{HEADING}\n   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 41 1 x\n"
        );
        assert_eq!(
            listening_tcp(&tcp),
            [Listening { address: "127.0.0.1:8080".parse().unwrap(), inode: 41 }]
        );
        let udp6 = format!(
            "{HEADING}\n  9: 00000000000000000000000001000000:0035 00000000000000000000000000000000:0000 07 0:0 0:0 0 0 0 7 2 x\n"
        );
        assert_eq!(open_udp(&udp6), [Listening { address: "[::1]:53".parse().unwrap(), inode: 7 }]);
    }

    #[test]
    fn a_default_route_leads_somewhere() {
        let v4 = |flags: &str, mask: &str| {
            has_default_v4(&format!(
                "Iface\tDestination\nlo\t0000007F\t0\t0001\t0\t0\t0\t000000FF\neth0\t00000000\t0100A8C0\t{flags}\t0\t0\t0\t{mask}\t0\n"
            ))
        };
        assert!(v4("0003", "00000000"));
        assert!(!v4("0203", "00000000"), "a reject route");
        assert!(!v4("0002", "00000000"), "down");
        assert!(!v4("0003", "00000080"), "0.0.0.0/1");
        let zeros = "0".repeat(32);
        let v6 = |flags: &str, device: &str| {
            has_default_v6(&format!("{zeros} 00 {zeros} 00 {zeros} 00000400 1 0 {flags} {device}\n"))
        };
        assert!(v6("00450003", "eth0"));
        assert!(!v6("00200200", "lo"));
        assert!(!has_default_v6(""));
    }

    #[test]
    fn the_hosts_of_sources_are_found_in_both_formats() {
        let text = "\
# deb http://old.example.org/ x
deb [signed-by=/k] https://user:word@deb.example.org:8443/debian bookworm main
deb http://192.0.2.1/debian x y
deb http://-oops/x y z
URIs: http://mirror.example.net/debian http://deb.example.org/again
deb file:/srv/repo x y";
        assert_eq!(source_hosts(text), ["deb.example.org", "mirror.example.net"]);
        assert_eq!(socket_inode("socket:[41]"), Some(41));
        assert_eq!(socket_inode("pipe:[41]"), None);
        assert_eq!(first_ephemeral("32768\t60999\n"), Some(32768));
    }
}
