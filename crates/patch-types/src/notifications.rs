//! `notifications:` of `config.yaml`: who is told how a patch run went. The daemon checks it, the root side acts by it.

use std::{
    fmt,
    net::IpAddr,
    path::{Component, PathBuf},
    time::Duration,
};

use serde::{Deserialize, Deserializer, Serialize, de};

use crate::settings::{is_host, is_host_and_port};

/// `notifications:`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Notifications {
    /// Mail; none is sent if absent.
    pub mail: Option<Mail>,
    /// Programs that are told.
    pub webhooks: Vec<Webhook>,
    /// Reports of this many minutes go into one message; each goes by itself, at once, with 0.
    pub digest_minutes: u32,
}

/// `notifications.mail:`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mail {
    /// A provider whose server, port and security are known.
    #[serde(default)]
    pub preset: Option<Preset>,
    /// The mail server's name; the preset's if absent.
    #[serde(default)]
    pub host: Option<String>,
    /// Its port; by the security if absent: 587, 465 or 25.
    #[serde(default)]
    pub port: Option<u16>,
    /// How the connection is secured; `tls` for Gmail and SendGrid and else `starttls` if absent.
    #[serde(default)]
    pub tls: Option<Security>,
    /// The CA of the server, as PEM; the system's own CAs if absent.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// The sender's address.
    pub from: String,
    /// The recipients' addresses.
    pub to: Vec<String>,
    /// The name to log in with; the sender's address if absent and there is a password.
    #[serde(default)]
    pub user: Option<String>,
    /// The file with the password, root's alone.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// The name of the systemd credential with the password.
    #[serde(default)]
    pub password_credential: Option<String>,
    /// Refused, whatever it is.
    #[serde(default, skip_serializing)]
    pub password: Option<NotHere>,
    /// When a report is sent.
    #[serde(default)]
    pub report: ReportMode,
    /// How long the server may take for each step, in seconds; 30 if absent. The whole may take four times as long, and
    /// never more than 300.
    #[serde(default)]
    pub timeout_seconds: Option<u32>,
}

/// A secret that was written where everybody may read it. It cannot be made, and refuses without repeating the value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum NotHere {}

impl<'de> Deserialize<'de> for NotHere {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        de::IgnoredAny::deserialize(deserializer)?;
        Err(de::Error::custom(
            "a password has no place in this file: write it into a file of root's alone (mode 0600) and name that as \
             password_file, or name a systemd credential as password_credential; and change it, as it was readable here",
        ))
    }
}

/// A provider whose settings are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub enum Preset {
    /// Microsoft 365. The password is an app password.
    M365,
    /// Gmail. The password is an app password.
    Gmail,
    /// SendGrid. The password is an API key, the user `apikey`.
    Sendgrid,
}

impl TryFrom<String> for Preset {
    /// What would be understood; what was written may be a secret under the wrong key.
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.as_str() {
            "m365" => Ok(Self::M365),
            "gmail" => Ok(Self::Gmail),
            "sendgrid" => Ok(Self::Sendgrid),
            _ => Err("this is not one of m365, gmail, sendgrid"),
        }
    }
}

impl Preset {
    /// The server.
    #[must_use]
    pub fn host(self) -> &'static str {
        match self {
            Self::M365 => "smtp.office365.com",
            Self::Gmail => "smtp.gmail.com",
            Self::Sendgrid => "smtp.sendgrid.net",
        }
    }

    /// The name that all log in with, if there is one.
    #[must_use]
    pub fn user(self) -> Option<&'static str> {
        (self == Self::Sendgrid).then_some("apikey")
    }
}

/// How a connection to a mail server is secured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub enum Security {
    /// In the clear first, then TLS, without which nothing is sent.
    #[default]
    Starttls,
    /// TLS from the first byte.
    Tls,
    /// Not at all: only to a server on this host.
    None,
}

impl TryFrom<String> for Security {
    /// What would be understood; what was written may be a secret under the wrong key.
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.as_str() {
            "starttls" => Ok(Self::Starttls),
            "tls" => Ok(Self::Tls),
            "none" => Ok(Self::None),
            _ => Err("this is not one of starttls, tls, none"),
        }
    }
}

/// When a report is sent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", try_from = "String")]
pub enum ReportMode {
    /// After every run.
    Always,
    /// If something failed.
    #[default]
    OnlyOnError,
    /// If packages changed or something failed.
    OnChange,
}

impl TryFrom<String> for ReportMode {
    /// What would be understood; what was written may be a secret under the wrong key.
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match text.as_str() {
            "always" => Ok(Self::Always),
            "only-on-error" => Ok(Self::OnlyOnError),
            "on-change" => Ok(Self::OnChange),
            _ => Err("this is not one of always, only-on-error, on-change"),
        }
    }
}

/// One of `notifications.webhooks:`, as a URL or as an object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Webhook {
    /// `https://HOST[:PORT]/PATH`; `http` only to this host.
    pub url: String,
    /// The file with the secret that requests are signed with, root's alone.
    pub secret_file: Option<PathBuf>,
    /// The name of the systemd credential with it.
    pub secret_credential: Option<String>,
    /// The CA of the server, as PEM; the system's own CAs if absent.
    pub ca_file: Option<PathBuf>,
    /// When a report is sent.
    pub report: ReportMode,
    /// How long the whole may take, in seconds; 30 if absent.
    pub timeout_seconds: Option<u32>,
}

impl Webhook {
    /// A webhook without a secret, told after every run.
    #[must_use]
    pub fn at(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            secret_file: None,
            secret_credential: None,
            ca_file: None,
            report: ReportMode::Always,
            timeout_seconds: None,
        }
    }

    /// How long a request may take.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        seconds(self.timeout_seconds)
    }
}

impl<'de> Deserialize<'de> for Webhook {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Whole {
            url: String,
            secret_file: Option<PathBuf>,
            secret_credential: Option<String>,
            #[serde(rename = "secret")]
            _secret: Option<NotHere>,
            ca_file: Option<PathBuf>,
            report: Option<ReportMode>,
            timeout_seconds: Option<u32>,
        }

        struct Either;

        impl<'de> de::Visitor<'de> for Either {
            type Value = Webhook;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a URL, or an object with a url")
            }

            fn visit_str<E: de::Error>(self, url: &str) -> Result<Webhook, E> {
                Ok(Webhook::at(url))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Webhook, A::Error> {
                let whole = Whole::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(Webhook {
                    url: whole.url,
                    secret_file: whole.secret_file,
                    secret_credential: whole.secret_credential,
                    ca_file: whole.ca_file,
                    report: whole.report.unwrap_or(ReportMode::Always),
                    timeout_seconds: whole.timeout_seconds,
                })
            }
        }

        deserializer.deserialize_any(Either)
    }
}

fn seconds(given: Option<u32>) -> Duration {
    Duration::from_secs(given.unwrap_or(30).into())
}

impl Mail {
    /// The server.
    #[must_use]
    pub fn server(&self) -> &str {
        self.host.as_deref().or(self.preset.map(Preset::host)).unwrap_or_default()
    }

    /// How the connection is secured.
    #[must_use]
    pub fn security(&self) -> Security {
        // Whoever names another port knows what is spoken there, and usually it is what 587 is for.
        let is_tls = matches!(self.preset, Some(Preset::Gmail | Preset::Sendgrid))
            && matches!(self.port, None | Some(465));
        self.tls.unwrap_or(if is_tls { Security::Tls } else { Security::Starttls })
    }

    /// The server's port.
    #[must_use]
    pub fn server_port(&self) -> u16 {
        self.port.unwrap_or(match self.security() {
            Security::Starttls => 587,
            Security::Tls => 465,
            Security::None => 25,
        })
    }

    /// Whom to log in as, if there is a password at all.
    #[must_use]
    pub fn login(&self) -> Option<&str> {
        let has_password = self.password_file.is_some() || self.password_credential.is_some();
        has_password.then(|| {
            self.user.as_deref().or(self.preset.and_then(Preset::user)).unwrap_or(self.from.as_str())
        })
    }

    /// How long the server may take for each step.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        seconds(self.timeout_seconds)
    }
}

impl Notifications {
    /// Whether nobody is told.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.mail.is_none() && self.webhooks.is_empty()
    }

    /// What is not acceptable: each key, and one sentence. No value that was written stands in them but numbers: any may be
    /// a secret under the wrong key, and URLs of webhooks often are.
    #[must_use]
    pub fn problems(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        if self.digest_minutes > 1440 {
            let problem = format!("{} is not between 0 and 1440", self.digest_minutes);
            found.push(("notifications.digest_minutes".to_owned(), problem));
        }
        if let Some(mail) = &self.mail {
            mail.problems(&mut |key, problem| found.push((format!("notifications.mail.{key}"), problem)));
        }
        for (i, webhook) in self.webhooks.iter().enumerate() {
            let mut problem = |problem: String| found.push((format!("notifications.webhooks[{i}]"), problem));
            if WebhookUrl::parse(&webhook.url).is_none() {
                problem(
                    "this is not a URL of the form https://HOST[:PORT]/PATH; http is only for this host itself".to_owned(),
                );
            }
            let paths = [("secret_file", &webhook.secret_file), ("ca_file", &webhook.ca_file)];
            paths
                .into_iter()
                .filter_map(|(key, path)| path_problem(key, path.as_ref()))
                .for_each(&mut problem);
            secret_problems("secret", &webhook.secret_file, &webhook.secret_credential)
                .for_each(&mut problem);
            timeout_problem(webhook.timeout_seconds).into_iter().for_each(&mut problem);
        }
        found
    }
}

impl Mail {
    fn problems(&self, found: &mut dyn FnMut(&str, String)) {
        let server = self.server();
        if server.is_empty() {
            found("host", "name the mail server, or a preset: m365, gmail, sendgrid".to_owned());
        } else if !is_host(server) && server.parse::<IpAddr>().is_err() {
            found("host", "this is not the name of a server".to_owned());
        }
        if self.port == Some(0) {
            found("port", "0 is not between 1 and 65535".to_owned());
        }
        if self.security() == Security::None && !is_this_host(server) {
            found(
                "tls",
                "none is only for a server on this host, and host does not name one; write starttls or tls"
                    .to_owned(),
            );
        }
        for (key, path) in [("ca_file", &self.ca_file), ("password_file", &self.password_file)] {
            path_problem(key, path.as_ref()).into_iter().for_each(|problem| found(key, problem));
        }
        let user_without = self.user.is_some() && self.login().is_none();
        if user_without {
            found(
                "user",
                "there is no password for it; name its file as password_file, such as \
                /etc/linux_patch_api/mail.password, or a systemd credential as password_credential"
                    .to_owned(),
            );
        }
        if self.user.as_ref().is_some_and(|user| user.is_empty() || user.chars().any(char::is_control)) {
            found("user", "it is empty, or has characters that no name has".to_owned());
        }
        secret_problems("password", &self.password_file, &self.password_credential)
            .for_each(|problem| found("password_file", problem));
        if !is_address(&self.from) {
            found("from", "this is not a mail address, such as patching@example.org".to_owned());
        }
        if self.to.is_empty() || self.to.len() > 100 {
            found("to", "name 1 to 100 recipients".to_owned());
        }
        for (i, _) in self.to.iter().enumerate().filter(|(_, address)| !is_address(address)) {
            found("to", format!("number {} is not a mail address, such as ops@example.org", i + 1));
        }
        timeout_problem(self.timeout_seconds)
            .into_iter()
            .for_each(|problem| found("timeout_seconds", problem));
    }
}

fn timeout_problem(given: Option<u32>) -> Option<String> {
    given
        .filter(|seconds| !(1..=300).contains(seconds))
        .map(|seconds| format!("{seconds} is not between 1 and 300"))
}

fn path_problem(key: &str, path: Option<&PathBuf>) -> Option<String> {
    let path = path?;
    let fits = path.is_absolute() && !path.components().any(|part| part == Component::ParentDir);
    (!fits).then(|| format!("{key}: this is not an absolute path without \"..\""))
}

fn secret_problems<'a>(
    what: &'a str,
    file: &Option<PathBuf>,
    credential: &'a Option<String>,
) -> impl Iterator<Item = String> + 'a {
    let both = (file.is_some() && credential.is_some())
        .then(|| format!("both {what}_file and {what}_credential say where the {what} is; remove one"));
    let name = credential.as_ref().filter(|name| !is_credential(name)).map(|_| {
        format!(
            "{what}_credential: this is not the name of a credential: letters, digits, \".\", \"-\" and \"_\""
        )
    });
    both.into_iter().chain(name)
}

/// Whether a text is the name of a credential, and no path.
#[must_use]
pub fn is_credential(text: &str) -> bool {
    (1..=255).contains(&text.len())
        && !text.starts_with('.')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
}

/// Whether a text is a plain mail address, `local@domain`, with nothing in it that a header or a mail server would take
/// for something else.
#[must_use]
pub fn is_address(text: &str) -> bool {
    let Some((local, domain)) = text.rsplit_once('@') else { return false };
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+/=?^_`{|}~.-".contains(&b);
    (1..=64).contains(&local.len())
        && local.bytes().all(plain)
        && !local.starts_with(['.', '-'])
        && !local.ends_with('.')
        && !local.contains("..")
        && is_host(domain)
        && !domain.ends_with(['.', '-'])
        && !domain.contains("..")
        && !domain.contains('_')
}

/// Whether a server's name means this host whatever a name server says.
#[must_use]
pub fn is_this_host(server: &str) -> bool {
    let address = server.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(server);
    server == "localhost" || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// A webhook's URL in its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookUrl {
    /// Whether it is `https`.
    pub tls: bool,
    /// The host's name or address, IPv6 without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// `HOST[:PORT]` as it was written, for the request.
    pub authority: String,
    /// Path and query, from the `/` on.
    pub path: String,
}

impl WebhookUrl {
    /// Takes a URL apart; none if it is not one that a report may be sent to.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (tls, rest) = match text.strip_prefix("https://") {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix("http://")?),
        };
        let plain = |b: u8| b.is_ascii_graphic() && !b"\"<>\\^`{|}#".contains(&b);
        if text.len() > 2048 || !rest.bytes().all(plain) {
            return None;
        }
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let has_port = is_host_and_port(authority);
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if has_port => (host, port.parse().ok()?),
            _ => (authority, if tls { 443 } else { 80 }),
        };
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let known = match bare {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => is_host(host),
        };
        let slash = if path.starts_with('/') { "" } else { "/" };
        (known && (tls || is_this_host(host))).then(|| Self {
            tls,
            host: bare.unwrap_or(host).to_owned(),
            port,
            authority: authority.to_owned(),
            path: format!("{slash}{path}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Notifications, String> {
        serde_json::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn presets_know_their_servers() {
        let mail = |preset: &str, rest: &str| {
            let text = format!(
                r#"{{"mail": {{"preset": "{preset}", "from": "a@b.example", "to": ["c@d.example"]{rest}}}}}"#
            );
            let notifications = parse(&text).unwrap();
            assert_eq!(notifications.problems(), []);
            notifications.mail.unwrap()
        };
        let m365 = mail("m365", r#", "password_file": "/etc/p""#);
        assert_eq!(
            (m365.server(), m365.server_port(), m365.login()),
            ("smtp.office365.com", 587, Some("a@b.example"))
        );
        assert_eq!(m365.security(), Security::Starttls);
        let sendgrid = mail("sendgrid", r#", "password_credential": "smtp""#);
        assert_eq!((sendgrid.server(), sendgrid.login()), ("smtp.sendgrid.net", Some("apikey")));
        assert_eq!(sendgrid.server_port(), 465);
        let gmail = mail("gmail", "");
        assert_eq!((gmail.server(), gmail.server_port(), gmail.login()), ("smtp.gmail.com", 465, None));
        for preset in ["gmail", "sendgrid"] {
            assert_eq!(mail(preset, "").security(), Security::Tls);
            assert_eq!(mail(preset, r#", "port": 587"#).security(), Security::Starttls);
            let chosen = mail(preset, r#", "tls": "starttls""#);
            assert_eq!((chosen.security(), chosen.server_port()), (Security::Starttls, 587));
        }
        assert_eq!(gmail.report, ReportMode::OnlyOnError);
    }

    #[test]
    fn what_is_not_written_has_a_value_that_works() {
        let of = |timeout: &str| {
            let text = format!(
                r#"{{"mail": {{"host": "localhost", "tls": "none", "from": "a@b.example", "to": ["c@d.example"]{timeout}}},
                    "webhooks": [{{"url": "https://h/"{timeout}}}]}}"#
            );
            let notifications = parse(&text).unwrap();
            assert_eq!(notifications.problems(), []);
            (notifications.mail.unwrap(), notifications.webhooks.into_iter().next().unwrap())
        };
        let (mail, webhook) = of("");
        assert_eq!(mail.server_port(), 25, "a server on this host without TLS");
        assert_eq!((mail.timeout(), webhook.timeout()), (Duration::from_secs(30), Duration::from_secs(30)));
        assert_eq!((mail.report, webhook.report), (ReportMode::OnlyOnError, ReportMode::Always));
        let (mail, webhook) = of(r#", "timeout_seconds": 7"#);
        assert_eq!((mail.timeout(), webhook.timeout()), (Duration::from_secs(7), Duration::from_secs(7)));
        // A bare URL is the same as an object with nothing else in it.
        let bare = parse(r#"{"webhooks": ["https://h/"]}"#).unwrap();
        let whole = parse(r#"{"webhooks": [{"url": "https://h/"}]}"#).unwrap();
        assert_eq!(bare, whole);
    }

    #[test]
    fn nobody_is_told_only_where_there_is_nobody() {
        let mail = r#"{"mail": {"preset": "m365", "from": "a@b.example", "to": ["c@d.example"]}}"#;
        assert!(!parse(mail).unwrap().is_empty());
        assert!(!parse(r#"{"webhooks": ["https://h/"]}"#).unwrap().is_empty());
        assert!(parse(r#"{"digest_minutes": 60}"#).unwrap().is_empty());
    }

    #[test]
    fn a_password_is_refused_without_being_repeated() {
        for text in [
            r#"{"mail": {"preset": "m365", "from": "a@b", "to": ["c@d"], "password": "s3cret"}}"#,
            r#"{"webhooks": [{"url": "https://h/", "secret": "s3cret"}]}"#,
            r#"{"mail": {"preset": "m365", "from": "a@b", "to": ["c@d"], "password": 3}}"#,
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains("password_file") && !error.contains("s3cret"), "{error}");
        }
    }

    #[test]
    fn what_is_not_acceptable_is_said_without_secrets() {
        let mail =
            |rest: &str| format!(r#"{{"mail": {{"from": "a@b.example", "to": ["c@d.example"]{rest}}}}}"#);
        for (text, key, word) in [
            (mail(""), "mail.host", "preset"),
            (mail(r#", "host": "a b""#), "mail.host", "name of a server"),
            (mail(r#", "host": "-x""#), "mail.host", "name of a server"),
            (mail(r#", "host": "mx.example", "tls": "none""#), "mail.tls", "on this host"),
            (mail(r#", "host": "mx.example", "port": 0"#), "mail.port", "65535"),
            (mail(r#", "host": "mx.example", "user": "u""#), "mail.user", "password_file"),
            (
                mail(r#", "host": "mx.example", "user": "", "password_file": "/p""#),
                "mail.user",
                "it is empty",
            ),
            (
                mail(r#", "host": "mx.example", "user": "u\r\nRSET", "password_file": "/p""#),
                "mail.user",
                "characters",
            ),
            (mail(r#", "host": "mx.example", "password_file": "p""#), "mail.password_file", "absolute"),
            (
                mail(r#", "host": "mx.example", "password_file": "/p", "password_credential": "c""#),
                "mail.password_file",
                "both",
            ),
            (
                mail(r#", "host": "mx.example", "password_credential": "../c""#),
                "mail.password_file",
                "credential",
            ),
            (mail(r#", "host": "mx.example", "timeout_seconds": 0"#), "mail.timeout_seconds", "300"),
            (
                r#"{"mail": {"host": "h", "from": "a", "to": ["b@c"]}}"#.to_owned(),
                "mail.from",
                "mail address",
            ),
            (r#"{"mail": {"host": "h", "from": "a@b", "to": []}}"#.to_owned(), "mail.to", "recipients"),
            (
                r#"{"mail": {"host": "h", "from": "a@b", "to": ["a@b\nBcc: c@d"]}}"#.to_owned(),
                "mail.to",
                "mail address",
            ),
            (r#"{"webhooks": ["ftp://h/s3cret"]}"#.to_owned(), "webhooks[0]", "https://"),
            (r#"{"webhooks": ["http://far.example/s3cret"]}"#.to_owned(), "webhooks[0]", "this host"),
            (
                r#"{"webhooks": [{"url": "https://h/s3cret", "secret_file": "x"}]}"#.to_owned(),
                "webhooks[0]",
                "secret_file",
            ),
            (r#"{"digest_minutes": 1441}"#.to_owned(), "digest_minutes", "1440"),
        ] {
            let problems = parse(&text).unwrap().problems();
            let found = problems.iter().any(|(at, problem)| at.ends_with(key) && problem.contains(word));
            assert!(found && !format!("{problems:?}").contains("s3cret"), "{text}: {problems:?}");
        }
        for good in [
            mail(r#", "host": "localhost", "tls": "none""#),
            mail(r#", "host": "127.0.0.1", "tls": "none", "port": 2525"#),
            r#"{"webhooks": ["https://h.example:8443/a?b=c", "http://127.0.0.1:80/", "http://[::1]/"]}"#
                .to_owned(),
            r#"{"webhooks": [{"url": "https://h", "secret_credential": "hook", "report": "on-change"}]}"#
                .to_owned(),
            "{}".to_owned(),
        ] {
            assert_eq!(parse(&good).unwrap().problems(), [], "{good}");
        }
        assert!(parse(r#"{"webhooks": [5]}"#).unwrap_err().contains("a URL, or an object with a url"));
        assert!(parse(r#"{"mails": {}}"#).is_err());
    }

    #[test]
    fn a_secret_under_the_wrong_key_is_not_repeated() {
        let mail = |rest: &str| {
            format!(
                r#"{{"mail": {{"host": "mx.example", "from": "a@b.example", "to": ["c@d.example"]{rest}}}}}"#
            )
        };
        for (text, key) in [
            (r#"{"mail": {"host": "s3cret!", "from": "s3cret", "to": ["s3cret"]}}"#.to_owned(), "mail.to"),
            (
                r#"{"mail": {"host": "s3cret", "tls": "none", "from": "a@b", "to": ["a@b"]}}"#.to_owned(),
                "mail.tls",
            ),
            (mail(r#", "password_file": "s3cret""#), "password_file"),
            (mail(r#", "password_credential": "s3cret!""#), "password_file"),
            (mail(r#", "ca_file": "s3cret""#), "ca_file"),
            (mail(r#", "user": "s3cret""#), "user"),
            (r#"{"webhooks": [{"url": "s3cret", "secret_file": "s3cret"}]}"#.to_owned(), "webhooks[0]"),
            (
                r#"{"webhooks": [{"url": "https://h/", "secret_credential": "s3cret!"}]}"#.to_owned(),
                "webhooks[0]",
            ),
        ] {
            let problems = parse(&text).unwrap().problems();
            assert!(problems.iter().any(|(at, _)| at.ends_with(key)), "{problems:?}");
            assert!(!format!("{problems:?}").contains("s3cret"), "{problems:?}");
        }
        for key in ["preset", "tls", "report"] {
            let error = parse(&mail(&format!(r#", "{key}": "s3cret""#))).unwrap_err();
            assert!(error.contains("not one of") && !error.contains("s3cret"), "{error}");
            assert!(parse(&mail(&format!(r#", "{key}": 5"#))).is_err());
        }
    }

    #[test]
    fn urls_are_taken_apart() {
        let url = WebhookUrl::parse("https://h.example:8443?x=1").unwrap();
        assert_eq!(
            (url.host.as_str(), url.port, url.path.as_str(), url.tls),
            ("h.example", 8443, "/?x=1", true)
        );
        let url = WebhookUrl::parse("http://[::1]/a").unwrap();
        assert_eq!((url.host.as_str(), url.port, url.authority.as_str()), ("::1", 80, "[::1]"));
        for bad in [
            "https://",
            "https://u@h/",
            "https://h/\r\nX: y",
            "https://h/ x",
            "https://h:0/",
            "https://[x]/",
            "h",
        ] {
            assert_eq!(WebhookUrl::parse(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn an_address_holds_nothing_but_one(text in "[a-z.@\"<>, \r\n:-]{0,20}|.*@.*") {
            if is_address(&text) {
                prop_assert!(text.bytes().all(|b| b.is_ascii_graphic() && !b"<>,;:\"()[]\\".contains(&b)));
                prop_assert_eq!(text.matches('@').count(), 1);
            }
        }

        #[test]
        fn a_url_holds_nothing_but_one(text in "https?://.*") {
            if let Some(url) = WebhookUrl::parse(&text) {
                prop_assert!(!url.path.contains(['\r', '\n', ' ']) && !url.authority.contains(['\r', '\n', ' ', '/', '@']));
            }
        }
    }
}
