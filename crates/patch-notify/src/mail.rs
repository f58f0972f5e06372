//! Mail: composing one, and the conversation with the server.

use std::time::{Duration, SystemTime};

use lettre::{
    Address, SmtpTransport, Transport,
    message::{
        Mailbox,
        header::{ContentType, Header, HeaderName, HeaderValue},
    },
    transport::smtp::{
        authentication::Credentials,
        client::{Certificate, CertificateStore, Tls, TlsParameters},
        extension::ClientId,
    },
};
use patch_types::{
    notifications::{Mail, Security, is_address},
    settings::is_host,
};

use crate::{
    error::{NotifyError, Reason, explain},
    limit,
    report::Message,
    secret::Secrets,
    tls,
};

/// The longest that a mail may take in all.
const LONGEST: Duration = Duration::from_secs(300);

pub(crate) fn send(mail: &Mail, secrets: &Secrets, message: &Message) -> Result<(), NotifyError> {
    let letter = compose(mail, message)?;
    let transport = transport(mail, secrets, message.host())?;
    let whom = format!("{}:{}", mail.server(), mail.server_port());
    // The library's limit is for each step and begins anew with each byte.
    limit::within(whole(mail), move || transport.send(&letter).map(drop))
        .map_err(|error| NotifyError::of_io(&whom, &error))?
        .map_err(|error| explain(mail, &error))
}

/// How long it may take in all.
fn whole(mail: &Mail) -> Duration {
    mail.timeout().saturating_mul(4).min(LONGEST)
}

/// Tells other programs that answer mail by themselves not to answer this one.
#[derive(Clone)]
struct AutoSubmitted;

impl Header for AutoSubmitted {
    fn name() -> HeaderName {
        HeaderName::new_from_ascii_str("Auto-Submitted")
    }

    fn parse(_: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Self)
    }

    fn display(&self) -> HeaderValue {
        HeaderValue::new(Self::name(), "auto-generated".to_owned())
    }
}

fn compose(mail: &Mail, message: &Message) -> Result<lettre::Message, NotifyError> {
    let mut letter = lettre::Message::builder()
        .from(mailbox(&mail.from)?)
        .subject(message.subject())
        .message_id(Some(format!("<{}@{}>", message.id(), message.host())))
        .date(SystemTime::from(message.at()))
        .header(AutoSubmitted)
        .header(ContentType::TEXT_PLAIN);
    for address in &mail.to {
        letter = letter.to(mailbox(address)?);
    }
    letter.body(message.text()).map_err(|error| {
        NotifyError::new(
            Reason::Settings,
            format!("the mail cannot be composed: {error}"),
            "check `from` and `to`",
        )
    })
}

fn mailbox(address: &str) -> Result<Mailbox, NotifyError> {
    let parsed = if is_address(address) { address.parse::<Address>().ok() } else { None };
    parsed.map(|address| Mailbox::new(None, address)).ok_or_else(|| {
        NotifyError::new(
            Reason::Settings,
            "an address in `from` or `to` is not a mail address",
            "write plain addresses such as ops@example.org into `from` and `to`",
        )
    })
}

fn transport(mail: &Mail, secrets: &Secrets, host: &str) -> Result<SmtpTransport, NotifyError> {
    let server = mail.server().to_owned();
    let mut transport = SmtpTransport::builder_dangerous(server.as_str())
        .port(mail.server_port())
        .timeout(Some(mail.timeout()))
        .tls(match mail.security() {
            Security::Starttls => Tls::Required(trust(mail, server)?),
            Security::Tls => Tls::Wrapper(trust(mail, server)?),
            Security::None if patch_types::notifications::is_this_host(&server) => Tls::None,
            Security::None => {
                return Err(NotifyError::new(
                    Reason::NoEncryption,
                    format!("nothing is sent to {server} in the clear"),
                    "write `tls: starttls` or `tls: tls`",
                ));
            }
        });
    if is_host(host) {
        transport = transport.hello_name(ClientId::Domain(host.to_owned()));
    }
    let password =
        secrets.read("password", mail.password_file.as_deref(), mail.password_credential.as_deref())?;
    if let (Some(password), Some(user)) = (password, mail.login()) {
        transport = transport.credentials(Credentials::new(user.to_owned(), password.to_string()));
    }
    Ok(transport.build())
}

fn trust(mail: &Mail, server: String) -> Result<TlsParameters, NotifyError> {
    let unusable = |error: lettre::transport::smtp::Error| {
        NotifyError::new(Reason::Settings, format!("TLS cannot be set up: {error}"), "check host and ca_file")
    };
    let mut parameters = TlsParameters::builder(server);
    if let Some(path) = &mail.ca_file {
        parameters = parameters.certificate_store(CertificateStore::None);
        let pem = tls::ca_file(path)?;
        parameters = parameters.add_root_certificate(Certificate::from_pem(&pem).map_err(unusable)?);
    }
    parameters.build_rustls().map_err(unusable)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::report::{Report, RunResult, tests::report};

    fn settings() -> Mail {
        serde_json::from_str(
            r#"{"host": "localhost", "from": "host@example.org", "to": ["ops@example.org", "boss@example.org"]}"#,
        )
        .unwrap()
    }

    fn formatted(one: Report) -> String {
        let letter = compose(&settings(), &Message::of(vec![one]).unwrap()).unwrap();
        String::from_utf8(letter.formatted()).unwrap()
    }

    #[test]
    fn a_mail_has_what_mail_programs_sort_by() {
        let mail = formatted(report(7, RunResult::Failed, "lp-app: Fehler über alles"));
        let (head, body) = mail.split_once("\r\n\r\n").unwrap();
        for line in [
            "From: host@example.org",
            "To: ops@example.org, boss@example.org",
            "Message-ID: <00000000-0000-0000-0000-000000000007@web1.example.org>",
            "Auto-Submitted: auto-generated",
            "Content-Type: text/plain; charset=utf-8",
        ] {
            assert!(head.lines().any(|found| found == line), "{line}: {head}");
        }
        assert!(
            head.contains("\r\nSubject: [web1.example.org] failed: ") && head.contains("\r\nDate: "),
            "{head}"
        );
        assert!(body.contains("Result:  failed"), "{body}");
        assert_eq!(
            mail,
            formatted(report(7, RunResult::Failed, "lp-app: Fehler über alles")),
            "again the same"
        );
    }

    #[test]
    fn an_address_that_was_not_checked_is_refused() {
        let mut mail = settings();
        mail.to = vec!["a@b.example>\r\nBcc: <c@d.example".into()];
        let message = Message::of(vec![report(1, RunResult::Changed, "x")]).unwrap();
        assert_eq!(compose(&mail, &message).unwrap_err().reason, Reason::Settings);
        mail.host = Some("mx.example.org".into());
        mail.tls = Some(Security::None);
        let error = send(&mail, &Secrets::default(), &message);
        assert!(error.is_err());
    }

    proptest! {
        #[test]
        fn nothing_becomes_a_header(
            summary in ".*|([\r\n]|Bcc: x@y.example|\\.|a|: |\u{2028}){0,30}",
            host in ".*|[a-z\r\n<>@ ]{0,30}",
            lines in proptest::collection::vec(".*|[\r\n.]{0,6}", 0..4),
        ) {
            let mut one = report(1, RunResult::Changed, &summary);
            one.host = host;
            one.lines = lines;
            let mail = formatted(one);
            let (head, _) = mail.split_once("\r\n\r\n").unwrap();
            let known = [
                "From", "To", "Subject", "Message-ID", "Date", "Auto-Submitted", "Content-Type",
                "Content-Transfer-Encoding", "MIME-Version",
            ];
            let mut names = Vec::new();
            for line in head.split("\r\n") {
                prop_assert!(!line.contains(['\r', '\n']), "{:?}", line);
                // A continuation of the line before.
                if line.starts_with(' ') {
                    continue;
                }
                let (name, _) = line.split_once(':').unwrap();
                prop_assert!(known.contains(&name), "{:?}", line);
                prop_assert!(!names.contains(&name), "{:?}", line);
                names.push(name);
            }
        }
    }
}
