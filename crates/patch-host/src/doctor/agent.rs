//! The agent's own door and keys: certificates, modes, allow list, listener, firewall; and other secrets of patching.

use std::{
    fs::Metadata,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use patch_backends::ceiling::{self, FILE as CEILING};
use serde_json::Value;
use x509_parser::pem::Pem;

use super::{
    Fix, Seen, Severity,
    host::{CONFIG, Host, yaml},
};

const CA: &str = "/etc/linux_patch_api/certs/ca.pem";
const CERTIFICATE: &str = "/etc/linux_patch_api/certs/server.pem";
const KEY: &str = "/etc/linux_patch_api/certs/server.key.pem";
const CRL: &str = "/etc/linux_patch_api/certs/crl.pem";
const ALLOW_LIST: &str = "etc/linux_patch_api/whitelist.yaml";

/// How many seconds before its end a certificate is warned of.
const WARNING: i64 = 30 * 86_400;

/// From which length of the prefix on a network of the allow list is narrow enough: IPv4 and IPv6.
const NARROW: (u8, u8) = (16, 32);

/// Whether there is an agent whose configuration can be read; says so if it cannot.
fn is_readable(host: &Host<'_>, id: &'static str, seen: &mut Seen) -> bool {
    if let Err(error) = &host.config
        && host.has_agent
    {
        seen.not_looked_at(id, format!("/{CONFIG}: {error}"));
    }
    host.has_agent && host.config.is_ok()
}

fn relative(path: &str) -> &str {
    path.trim_start_matches('/')
}

/// Reads it as the root side does. Whose file it is, is looked at with the others.
pub(super) fn ceiling(host: &Host<'_>, seen: &mut Seen) {
    const ID: &str = "ceiling_invalid";
    if !host.files.is_there(CEILING) {
        return;
    }
    let text = match host.files.read(CEILING) {
        Ok(text) => text,
        Err(error) => return seen.not_looked_at(ID, format!("/{CEILING}: {error}")),
    };
    let parsed = String::from_utf8(text)
        .map_err(|_| format!("/{CEILING}: it is not UTF-8"))
        .and_then(|text| ceiling::parse(&text));
    if let Err(reason) = parsed {
        seen.critical(
            ID,
            format!("the agent's root side refuses its ceiling: {reason}"),
            "as long as it does nothing at all is changed through the agent, security fixes included",
            "correct the file, or remove it if there is to be no ceiling; docs/configuration.md has its keys",
        );
    }
}

pub(super) fn certificates(host: &Host<'_>, seen: &mut Seen) {
    if !is_readable(host, "certificate_expires", seen) {
        return;
    }
    for (pointer, default) in [("/tls/ca_cert", CA), ("/tls/server_cert", CERTIFICATE)] {
        let path = host.configured(pointer, default);
        let file = match host.files.read(relative(path)) {
            Ok(file) => file,
            Err(error) => {
                seen.not_looked_at("certificate_expires", format!("{path}: {error}"));
                continue;
            }
        };
        match first_end(&file) {
            None => {
                seen.not_looked_at("certificate_expires", format!("{path}: there is no certificate in it"));
            }
            Some(end) => report_end(path, end.saturating_sub(host.now.as_second()), seen),
        }
    }
}

/// When the first of the certificates in a file ends, in seconds since 1970.
fn first_end(file: &[u8]) -> Option<i64> {
    let ends = Pem::iter_from_buffer(file).filter_map(|pem| {
        let pem = pem.ok().filter(|pem| pem.label == "CERTIFICATE")?;
        Some(pem.parse_x509().ok()?.validity().not_after.timestamp())
    });
    ends.min()
}

fn report_end(path: &str, left: i64, seen: &mut Seen) {
    const WHY: &str = "from then on no client can speak to the agent";
    const TODO: &str = "have a new one issued and put it there; the agent takes it without a restart";
    let days = left.div_euclid(86_400);
    if left <= 0 {
        seen.critical("certificate_expired", format!("{path} has expired"), WHY, TODO);
    } else if left < WARNING {
        seen.warning("certificate_expires", format!("{path} expires in {days} days"), WHY, TODO);
    }
}

/// A file at the end of the links that lead to it, and whether any does. Of what is not there nothing is said, of what cannot
/// be judged that it was not looked at.
fn target(host: &Host<'_>, seen: &mut Seen, id: &'static str, path: &str) -> Option<(Metadata, bool)> {
    let here = match host.files.metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => {
            seen.not_looked_at(id, format!("/{path}: {error}"));
            return None;
        }
    };
    let reason = match host.files.target(path) {
        Ok(meta) if meta.is_file() => return Some((meta, here.is_symlink())),
        Ok(_) => "it is not a file".to_owned(),
        Err(error) => format!("the link there leads to nothing that can be looked at: {error}"),
    };
    seen.not_looked_at(id, format!("/{path}: {reason}"));
    None
}

/// A finding about a file's permissions if it has some that it should not have. What is not there is well.
fn mode(
    host: &Host<'_>,
    seen: &mut Seen,
    path: &str,
    forbidden: u32,
    finding: (&'static str, Severity, &'static str, &'static str),
) {
    let (id, severity, what, why) = finding;
    let Some((meta, is_link)) = target(host, seen, id, path) else { return };
    if meta.mode() & forbidden != 0 {
        let (now, then) = (meta.mode() & 0o7777, meta.mode() & 0o7777 & !forbidden);
        // What a link leads to may be somebody else's file: that is for people to decide.
        let fix = (!is_link).then(|| Fix::Mode { path: PathBuf::from(path), mode: then });
        let todo = format!("chmod {then:o} /{path}");
        let led = if is_link { ", where a link leads," } else { "" };
        seen.add(id, severity, format!("/{path}{led} has the mode {now:o}: {what}"), why, todo, fix);
    }
}

/// A finding about a file that is not root's.
fn owner(host: &Host<'_>, seen: &mut Seen, path: &str) {
    const ID: &str = "not_roots";
    let Some((meta, is_link)) = target(host, seen, ID, path) else { return };
    // A system below a directory may be whoever's who works on it.
    let is_mine = host.files.root() != Path::new("/") && meta.uid() == rustix::process::geteuid().as_raw();
    if meta.uid() != 0 && !is_mine {
        let led = if is_link { ", where a link leads," } else { "" };
        seen.critical(
            ID,
            format!("/{path}{led} belongs to the user {}", meta.uid()),
            "its owner can change it, and so decides who may patch this host, or who it seems to be",
            format!("chown root:root /{path}, once it says what it should"),
        );
    }
}

pub(super) fn secrets(host: &Host<'_>, seen: &mut Seen) {
    let mut paths: Vec<String> =
        ["etc/msmtp-password", "etc/msmtprc", "etc/apt/auth.conf"].into_iter().map(str::to_owned).collect();
    const PARTS: &str = "etc/apt/auth.conf.d";
    match host.files.names(PARTS) {
        Ok(names) => {
            for name in names.into_iter().filter(|name| name != "." && name != "..") {
                match name.into_string() {
                    Ok(name) => paths.push(format!("{PARTS}/{name}")),
                    Err(name) => {
                        seen.not_looked_at("secret_readable", format!("/{PARTS}/{}", name.display()));
                    }
                }
            }
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => seen.not_looked_at("secret_readable", format!("/{PARTS}: {error}")),
    }
    if is_readable(host, "secret_readable", seen) {
        let password = host.configured("/notifications/mail/password_file", "");
        paths.extend((!password.is_empty()).then(|| relative(password).to_owned()));
        paths.push("var/lib/linux_patch_executor/checkpoint.key".to_owned());
    }
    const READABLE: (&str, Severity, &str, &str) = (
        "secret_readable",
        Severity::Critical,
        "every user of this host can read the secret in it",
        "whoever has it can pretend to be this host, or use its accounts",
    );
    for path in paths {
        mode(host, seen, &path, 0o007, READABLE);
    }
    if host.has_agent && host.config.is_ok() {
        // The root side hands it over, so that its owner alone need read it.
        let key = relative(host.configured("/tls/server_key", KEY));
        let is_open = host.files.target(key).is_ok_and(|meta| meta.mode() & 0o007 != 0);
        let finding = if is_open {
            READABLE
        } else {
            let why = "the root side hands the key over; nobody else needs to read it";
            ("key_mode", Severity::Warning, "more than its owner can read the key", why)
        };
        mode(host, seen, key, 0o077, finding);
        owner(host, seen, key);
    }
}

pub(super) fn modes(host: &Host<'_>, seen: &mut Seen) {
    let mut paths = vec![CEILING, ALLOW_LIST, CONFIG];
    let mut signed = Vec::new();
    if is_readable(host, "writable", seen) {
        paths.push(relative(host.configured("/tls/ca_cert", CA)));
        // Whoever fetches these need not be root: the CA has signed what is in them.
        signed.push(relative(host.configured("/tls/server_cert", CERTIFICATE)));
        signed.push(relative(host.configured("/tls/crl", CRL)));
    }
    for path in &paths {
        owner(host, seen, path);
    }
    for path in paths.into_iter().chain(signed) {
        let finding = (
            "writable",
            Severity::Critical,
            "others than its owner can change it",
            "whoever can change it decides who may patch this host",
        );
        mode(host, seen, path, 0o022, finding);
    }
}

/// The networks of an allow list that are wide, and the entries of which that cannot be said.
fn wide(list: &Value) -> (Vec<String>, Vec<String>) {
    let (mut wide, mut odd) = (Vec::new(), Vec::new());
    let entries = match list.get("allowed_ips") {
        None | Some(Value::Null) if list.is_object() || list.is_null() => &[][..],
        Some(Value::Array(entries)) => entries.as_slice(),
        _ => std::slice::from_ref(list),
    };
    let is_wide = |entry: &str| {
        // One address, or a name, which stands for those of one host.
        let Some((address, length)) = entry.split_once('/') else { return Some(false) };
        let length = length.trim().parse::<u8>().ok()?;
        Some(match address.trim().parse().ok()? {
            IpAddr::V4(_) => length < NARROW.0,
            IpAddr::V6(_) => length < NARROW.1,
        })
    };
    for entry in entries {
        match entry.as_str().and_then(|text| Some((text, is_wide(text)?))) {
            Some((text, true)) => wide.push(text.to_owned()),
            Some((_, false)) => {}
            None => odd.push(entry.to_string()),
        }
    }
    (wide, odd)
}

pub(super) fn allow_list(host: &Host<'_>, seen: &mut Seen) {
    if !host.has_agent {
        return;
    }
    let list = match host.files.read(ALLOW_LIST) {
        Ok(text) => yaml(&text),
        // Without it nobody is let in.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return,
        Err(error) => Err(error.to_string()),
    };
    match list {
        Ok(list) => {
            let (wide, odd) = wide(&list);
            if !odd.is_empty() {
                let what = format!("/{ALLOW_LIST}: {} is no address, network or name", odd.join(", "));
                seen.not_looked_at("allow_list_wide", what);
            }
            if !wide.is_empty() {
                seen.warning(
                    "allow_list_wide",
                    format!("/{ALLOW_LIST} lets in {}", wide.join(", ")),
                    "so many addresses can begin a handshake; the list is there to keep that to a few",
                    "name the hosts that manage this one",
                );
            }
        }
        Err(error) => seen.not_looked_at("allow_list_wide", format!("/{ALLOW_LIST}: {error}")),
    }
}

/// Whether everybody in the Internet may reach an address.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [first, second, ..] = address.octets();
            let is_shared = first == 100 && second & 0xc0 == 64;
            let is_kept = address.is_private()
                || address.is_loopback()
                || address.is_link_local()
                || address.is_unspecified()
                || address.is_multicast()
                || address.is_documentation()
                || address.is_broadcast();
            !is_kept && !is_shared
        }
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            Some(address) => is_public(IpAddr::V4(address)),
            // What is assigned for general use.
            None => address.segments().first().is_some_and(|first| first & 0xe000 == 0x2000),
        },
    }
}

pub(super) fn listener(host: &Host<'_>, seen: &mut Seen) {
    if !is_readable(host, "listener_public", seen) {
        return;
    }
    let configured = host.configured("/server/bind_address", "0.0.0.0");
    let Ok(address) = configured.parse::<IpAddr>() else {
        return seen.not_looked_at(
            "listener_public",
            format!("server.bind_address in /{CONFIG} is {configured:?}, which is no address"),
        );
    };
    let public: Vec<String> = if address == Ipv4Addr::UNSPECIFIED || address == Ipv6Addr::UNSPECIFIED {
        let shown = host.tools.ask("ip", &["-json", "address", "show"]).map_err(|error| error.to_string());
        let own = match shown.and_then(|shown| addresses(&shown)) {
            Ok(own) => own,
            Err(error) => {
                return seen.not_looked_at(
                    "listener_public",
                    format!(
                        "the agent listens on all addresses, and which those are cannot be told: {error}"
                    ),
                );
            }
        };
        own.into_iter()
            .filter(|own| is_public(*own) && (own.is_ipv4() || address.is_ipv6()))
            .map(|own| own.to_string())
            .collect()
    } else {
        Some(address)
            .filter(|address| is_public(*address))
            .map(|address| address.to_string())
            .into_iter()
            .collect()
    };
    if !public.is_empty() {
        seen.warning(
            "listener_public",
            format!("the agent listens on the public address {}", public.join(", ")),
            "the whole Internet can knock; the agent is made for an internal network",
            format!("set server.bind_address in /{CONFIG} to the address of the internal network"),
        );
    }
}

/// The addresses that `ip -json address show` shows; why not, if it shows something else.
fn addresses(shown: &str) -> Result<Vec<IpAddr>, String> {
    let odd = |what: &str| format!("`ip -json address show` shows {what}");
    let links: Vec<Value> = serde_json::from_str(shown).map_err(|error| odd(&format!("no JSON: {error}")))?;
    let mut found = Vec::new();
    for link in &links {
        // Some versions show an empty object for what they leave out.
        let Some(infos) = link.get("addr_info") else { continue };
        for info in infos.as_array().ok_or_else(|| odd("an interface without a list of addresses"))? {
            let Some(local) = info.get("local") else { continue };
            let address = local.as_str().and_then(|local| local.parse().ok());
            found.push(address.ok_or_else(|| odd(&format!("{local}, which is no address")))?);
        }
    }
    if found.is_empty() { Err(odd("no address at all")) } else { Ok(found) }
}

/// Whether rules of nftables or iptables say anything about a port, or drop what no rule lets in.
fn is_covered(rules: &str, port: u64) -> bool {
    let port = port.to_string();
    rules.lines().any(|line| {
        let names_port = line.split(|c: char| !c.is_ascii_digit()).any(|number| number == port);
        let is_closed =
            (line.contains("hook input") && line.contains("policy drop")) || line.trim() == "-P INPUT DROP";
        is_closed || (names_port && line.contains("dport"))
    })
}

pub(super) fn firewall(host: &Host<'_>, seen: &mut Seen) {
    if !is_readable(host, "firewall_open", seen) {
        return;
    }
    let config = host.config.as_ref().ok();
    let port = match config.and_then(|config| config.pointer("/server/port")) {
        None | Some(Value::Null) => 12443,
        Some(written) => match written.as_u64() {
            Some(port) => port,
            None => {
                let what = format!("server.port in /{CONFIG} is {written}, which is no port");
                return seen.not_looked_at("firewall_open", what);
            }
        },
    };
    let asked = [("nft", &["list", "ruleset"][..]), ("iptables", &["-S"][..])]
        .map(|(tool, args)| host.tools.ask(tool, args));
    if asked.iter().flatten().any(|rules| is_covered(rules, port)) {
        return;
    }
    match asked {
        [Err(nft), Err(iptables)] => seen.not_looked_at("firewall_open", format!("{nft}; {iptables}")),
        _ => seen.warning(
            "firewall_open",
            format!("no rule of the firewall is about the agent's port {port}"),
            "the allow list is then the only thing between the network and the agent",
            format!("let only the hosts that manage this one reach port {port}"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wide_networks_are_told_from_narrow_ones() {
        let list = yaml(b"allowed_ips:\n  - 10.0.0.5\n  - 10.0.0.0/16\n  - 10.0.0.0/8\n  - 0.0.0.0/0\n  - 2001:db8::/32\n  - ::/0\n  - name\n").unwrap();
        assert_eq!(wide(&list).0, ["10.0.0.0/8", "0.0.0.0/0", "::/0"]);
        assert!(wide(&list).1.is_empty());
        assert_eq!(wide(&Value::Null), (Vec::new(), Vec::new()));
        for odd in [
            "allowed_ips: 10.0.0.0/8\n",
            "allowed_ips: [[]]\n",
            "allowed_ips: [10.0.0.0/255.0.0.0]\n",
            "- x\n",
        ] {
            assert_eq!(wide(&yaml(odd.as_bytes()).unwrap()).1.len(), 1, "{odd}");
        }
    }

    #[test]
    fn public_addresses_are_told_from_others() {
        for (address, public) in [
            ("8.8.8.8", true),
            ("10.1.2.3", false),
            ("100.64.0.1", false),
            ("100.128.0.1", true),
            ("127.0.0.1", false),
            ("2a00:1450::1", true),
            ("fd00::1", false),
            ("fe80::1", false),
            ("::1", false),
            ("::ffff:8.8.8.8", true),
        ] {
            assert_eq!(is_public(address.parse().unwrap()), public, "{address}");
        }
        let shown = r#"[{"ifname":"lo","addr_info":[{"local":"127.0.0.1"}]},{"addr_info":[{"local":"8.8.8.8"},{"x":1}]},{}]"#;
        assert_eq!(addresses(shown).unwrap().len(), 2);
        for odd in
            ["no json", "{}", "[]", "[{}]", r#"[{"addr_info":1}]"#, r#"[{"addr_info":[{"local":"x"}]}]"#]
        {
            assert!(addresses(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn rules_about_the_port_are_found() {
        assert!(is_covered("  tcp dport 12443 ip saddr 10.0.0.5 accept", 12443));
        assert!(is_covered("-A INPUT -p tcp -m tcp --dport 12443 -j DROP", 12443));
        assert!(is_covered("type filter hook input priority 0; policy drop;", 12443));
        assert!(is_covered("-P INPUT DROP", 12443));
        assert!(!is_covered("-P INPUT ACCEPT\ntcp dport 112443 accept", 12443));
    }

    #[test]
    fn ends_of_certificates() {
        let mut seen = Seen::default();
        report_end("/a", WARNING, &mut seen);
        assert!(seen.findings.is_empty());
        report_end("/a", 86_400 * 3 + 5, &mut seen);
        report_end("/a", 0, &mut seen);
        let found: Vec<_> = seen.findings.iter().map(|f| (f.id, f.severity)).collect();
        assert_eq!(
            found,
            [("certificate_expires", Severity::Warning), ("certificate_expired", Severity::Critical)]
        );
        assert_eq!(first_end(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), None);
    }
}
