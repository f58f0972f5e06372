//! Real conversations: SMTP with STARTTLS and TLS, and HTTPS, with servers that a test plays.
#![expect(clippy::unwrap_used, reason = "a test ends by panicking")]

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::{
        Arc,
        mpsc::{Receiver, channel},
    },
};

use jiff::Timestamp;
use patch_notify::{Mail, Message, Notifications, Outbox, Reason, Report, RunResult, Secrets, Webhook};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::{PrivateKeyDer, pem::PemObject};
use uuid::Uuid;

/// Name and password, and the same as SMTP has them.
const USER: &str = "host@example.org";
const PASSWORD: &str = "s3cret pässword";

/// A mail as the server took it.
#[derive(Debug, PartialEq, Eq)]
struct Taken {
    hello: String,
    from: String,
    to: Vec<String>,
    tls: bool,
    user: Option<String>,
    text: String,
}

/// How the server is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Starttls,
    Tls,
    Plain,
}

/// A CA and a mail server with a certificate of it.
struct Server {
    dir: tempfile::TempDir,
    port: u16,
    mails: Receiver<Taken>,
}

fn certificates(dir: &std::path::Path, name: &str) -> Arc<ServerConfig> {
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.distinguished_name.push(DnType::CommonName, "test CA");
    let ca_key = KeyPair::generate().unwrap();
    fs::write(dir.join("ca.pem"), ca.self_signed(&ca_key).unwrap().pem()).unwrap();
    let leaf = CertificateParams::new(vec![name.to_owned()]).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = leaf.signed_by(&key, &Issuer::from_params(&ca, &ca_key)).unwrap();
    let key = PrivateKeyDer::from_pem_slice(key.serialize_pem().as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .unwrap();
    Arc::new(config)
}

impl Server {
    fn start(kind: Kind) -> Self {
        Self::named(kind, "localhost")
    }

    fn named(kind: Kind, name: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = certificates(dir.path(), name);
        fs::write(dir.path().join("password"), PASSWORD).unwrap();
        fs::set_permissions(dir.path().join("password"), fs::Permissions::from_mode(0o600)).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (sender, mails) = channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(stream), config, sender) = (stream, Arc::clone(&config), sender.clone()) else {
                    break;
                };
                // Whoever hangs up in the middle is no concern of the others.
                std::thread::spawn(move || {
                    if let Some(taken) = serve(stream, kind, config) {
                        let _ = sender.send(taken);
                    }
                });
            }
        });
        Self { dir, port, mails }
    }

    fn mail(&self) -> Mail {
        let mut mail: Mail = serde_json::from_str(&format!(
            r#"{{"host": "localhost", "port": {}, "from": "{USER}", "to": ["ops@example.org", "boss@example.org"],
                 "timeout_seconds": 10}}"#,
            self.port
        ))
        .unwrap();
        mail.ca_file = Some(self.dir.path().join("ca.pem"));
        mail.password_file = Some(self.dir.path().join("password"));
        mail
    }

    fn taken(&self) -> Option<Taken> {
        self.mails.recv_timeout(std::time::Duration::from_secs(10)).ok()
    }
}

/// A stream in the clear or not.
trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

fn serve(tcp: TcpStream, kind: Kind, config: Arc<ServerConfig>) -> Option<Taken> {
    let secured = |tcp: TcpStream, config| -> Box<dyn Stream> {
        Box::new(StreamOwned::new(ServerConnection::new(config).unwrap(), tcp))
    };
    let mut session = Session::default();
    let mut stream: Box<dyn Stream> = match kind {
        Kind::Tls => {
            session.tls = true;
            secured(tcp.try_clone().ok()?, Arc::clone(&config))
        }
        Kind::Starttls | Kind::Plain => Box::new(tcp.try_clone().ok()?),
    };
    write!(stream, "220 mail.test ESMTP\r\n").ok()?;
    if session.talk(&mut stream, kind)? == Next::Secure {
        drop(stream);
        session = Session { tls: true, ..Session::default() };
        let mut stream = secured(tcp, config);
        session.talk(&mut stream, kind)?;
    }
    session.taken
}

#[derive(PartialEq, Eq)]
enum Next {
    Secure,
    Over,
}

#[derive(Default)]
struct Session {
    tls: bool,
    hello: String,
    user: Option<String>,
    from: String,
    to: Vec<String>,
    taken: Option<Taken>,
}

impl Session {
    fn talk(&mut self, stream: &mut Box<dyn Stream>, kind: Kind) -> Option<Next> {
        loop {
            let line = line(stream)?;
            let (verb, rest) = line.split_once(' ').unwrap_or((&line, ""));
            let answer = match verb.to_ascii_uppercase().as_str() {
                "EHLO" => {
                    self.hello = rest.to_owned();
                    let starttls = if kind == Kind::Starttls && !self.tls { "250-STARTTLS\r\n" } else { "" };
                    let auth = if self.tls { "250-AUTH PLAIN LOGIN\r\n" } else { "" };
                    format!("250-mail.test\r\n{starttls}{auth}250 8BITMIME")
                }
                "STARTTLS" => {
                    write!(stream, "220 go on\r\n").ok()?;
                    return Some(Next::Secure);
                }
                "AUTH" => {
                    let given = rest.strip_prefix("PLAIN ")?;
                    let wanted = format!("\0{USER}\0{PASSWORD}");
                    if base64::Engine::decode(&base64::engine::general_purpose::STANDARD, given).ok()?
                        == wanted.as_bytes()
                    {
                        self.user = Some(USER.to_owned());
                        "235 2.7.0 ok".to_owned()
                    } else {
                        "535 5.7.8 authentication failed".to_owned()
                    }
                }
                "MAIL" if self.user.is_none() && kind != Kind::Plain => {
                    "530 5.7.0 authentication required".to_owned()
                }
                "MAIL" => {
                    self.from = rest.to_owned();
                    "250 ok".to_owned()
                }
                "RCPT" if rest.contains("deny@") => "550 5.1.1 no such user".to_owned(),
                "RCPT" if rest.contains("later@") => "451 4.3.0 try again later".to_owned(),
                "RCPT" => {
                    self.to.push(rest.to_owned());
                    "250 ok".to_owned()
                }
                "DATA" => {
                    write!(stream, "354 go on\r\n").ok()?;
                    let text = data(stream)?;
                    self.taken = Some(Taken {
                        hello: std::mem::take(&mut self.hello),
                        from: std::mem::take(&mut self.from),
                        to: std::mem::take(&mut self.to),
                        tls: self.tls,
                        user: self.user.clone(),
                        text,
                    });
                    "250 taken".to_owned()
                }
                "QUIT" => {
                    let _ = write!(stream, "221 bye\r\n");
                    return Some(Next::Over);
                }
                _ => "500 what".to_owned(),
            };
            write!(stream, "{answer}\r\n").ok()?;
            if self.taken.is_some() {
                return Some(Next::Over);
            }
        }
    }
}

/// One line, without its end; byte by byte, as what follows may be TLS.
fn line(stream: &mut Box<dyn Stream>) -> Option<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while !line.ends_with(b"\r\n") {
        if stream.read(&mut byte).ok()? == 0 || line.len() > 4096 {
            return None;
        }
        line.push(byte[0]);
    }
    line.truncate(line.len() - 2);
    String::from_utf8(line).ok()
}

fn data(stream: &mut Box<dyn Stream>) -> Option<String> {
    let mut text = String::new();
    loop {
        let line = line(stream)?;
        if line == "." {
            return Some(text);
        }
        text.push_str(line.strip_prefix('.').unwrap_or(&line));
        text.push('\n');
    }
}

fn message(summary: &str) -> Message {
    let report = Report {
        id: Uuid::from_u128(5),
        at: Timestamp::from_second(1_790_000_000).unwrap(),
        host: "web1.example.org".into(),
        result: RunResult::Changed,
        summary: summary.into(),
        lines: vec![".".into(), "libssl3 3.0.15 -> 3.0.16".into()],
        data: serde_json::Value::Null,
    };
    Message::of(vec![report]).unwrap()
}

fn send(mail: &Mail) -> Result<(), patch_notify::NotifyError> {
    patch_notify::send_mail(mail, &Secrets::default(), &message("1 package updated"))
}

#[test]
fn a_mail_is_submitted_with_starttls_and_with_tls() {
    for kind in [Kind::Starttls, Kind::Tls] {
        let server = Server::start(kind);
        let mut mail = server.mail();
        if kind == Kind::Tls {
            mail.tls = Some(patch_types::notifications::Security::Tls);
        }
        send(&mail).unwrap();
        let taken = server.taken().unwrap();
        assert!(taken.tls);
        assert_eq!(taken.user.as_deref(), Some(USER));
        assert_eq!(taken.hello, "web1.example.org");
        assert!(taken.from.starts_with(&format!("FROM:<{USER}>")), "{taken:?}");
        assert_eq!(taken.to, ["TO:<ops@example.org>", "TO:<boss@example.org>"]);
        for words in [
            "Subject: [web1.example.org] changed: 1 package updated\n",
            "Message-ID: <00000000-0000-0000-0000-000000000005@web1.example.org>\n",
            "libssl3 3.0.15 -> 3.0.16",
            "\n.\n",
        ] {
            assert!(taken.text.contains(words), "{words}: {}", taken.text);
        }
    }
}

#[test]
fn a_relay_on_this_host_needs_no_password() {
    let server = Server::start(Kind::Plain);
    let mut mail = server.mail();
    mail.password_file = None;
    mail.tls = Some(patch_types::notifications::Security::None);
    send(&mail).unwrap();
    let taken = server.taken().unwrap();
    assert_eq!((taken.tls, taken.user), (false, None));
}

#[test]
fn what_goes_wrong_is_explained() {
    let server = Server::start(Kind::Starttls);
    let failed = |change: &dyn Fn(&mut Mail)| {
        let mut mail = server.mail();
        change(&mut mail);
        let error = send(&mail).unwrap_err();
        assert!(!error.to_string().contains(PASSWORD), "{error}");
        (error.reason, error.to_string())
    };
    let other = server.dir.path().join("other");
    fs::write(&other, "wrong").unwrap();
    fs::set_permissions(&other, fs::Permissions::from_mode(0o600)).unwrap();
    let (reason, said) = failed(&|mail| mail.password_file = Some(other.clone()));
    assert!(reason == Reason::Authentication && said.contains("app password"), "{said}");
    let (reason, said) = failed(&|mail| mail.password_file = None);
    assert!(reason == Reason::Authentication && said.contains("password"), "{said}");
    let (reason, said) = failed(&|mail| mail.ca_file = None);
    assert!(reason == Reason::Certificate && said.contains("ca-certificates"), "{said}");
    let (reason, said) = failed(&|mail| mail.host = Some("127.0.0.1".into()));
    assert!(reason == Reason::Certificate && said.contains("another name"), "{said}");
    let (reason, said) = failed(&|mail| mail.ca_file = Some(PathBuf::from("/nonexistent")));
    assert!(reason == Reason::Settings && said.contains("/nonexistent"), "{said}");
    let (reason, said) = failed(&|mail| mail.to = vec!["deny@example.org".into()]);
    assert!(reason == Reason::Rejected && said.contains("no such user") && said.contains("deny@"), "{said}");
    let (reason, said) = failed(&|mail| mail.to = vec!["later@example.org".into()]);
    assert!(reason == Reason::Rejected && said.contains("tried again"), "{said}");
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (reason, said) = failed(&|mail| mail.port = Some(free));
    assert!(reason == Reason::ConnectionRefused && said.contains("host and port"), "{said}");
    let (reason, said) = failed(&|mail| mail.host = Some("mail.invalid".into()));
    assert!(reason == Reason::NameUnknown && said.contains("spelling"), "{said}");
    // The server says nothing, as one that waits for TLS does.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let (reason, said) = failed(&|mail| {
        mail.port = Some(silent.local_addr().unwrap().port());
        mail.timeout_seconds = Some(1);
    });
    assert!(reason == Reason::Timeout && said.contains("465"), "{said}");
    assert!(server.mails.try_recv().is_err(), "nothing was taken");
}

#[test]
fn a_server_that_drips_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut mail = Server::start(Kind::Plain).mail();
    mail.port = Some(listener.local_addr().unwrap().port());
    mail.password_file = None;
    mail.tls = Some(patch_types::notifications::Security::None);
    mail.timeout_seconds = Some(1);
    let (gone, ends) = channel::<()>();
    let dripping = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        // A byte well within the limit of each step, and never a whole answer.
        let pause = std::time::Duration::from_millis(100);
        while ends.recv_timeout(pause) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            if stream.write_all(b"2").is_err() {
                break;
            }
        }
    });
    let error = send(&mail).unwrap_err();
    assert_eq!(error.reason, Reason::Timeout, "{error}");
    drop(gone);
    dripping.join().unwrap();
}

#[test]
fn nothing_is_sent_in_the_clear() {
    let server = Server::start(Kind::Plain);
    let error = send(&server.mail()).unwrap_err();
    assert!(error.reason == Reason::NoEncryption && error.to_string().contains("587"), "{error}");
    let mut mail = server.mail();
    mail.host = Some("mail.invalid".into());
    mail.tls = Some(patch_types::notifications::Security::None);
    assert_eq!(send(&mail).unwrap_err().reason, Reason::NoEncryption);
    assert!(server.mails.try_recv().is_err());
}

#[test]
fn the_outbox_sends_a_mail_once() {
    let server = Server::start(Kind::Starttls);
    let settings = Notifications { mail: Some(server.mail()), ..Notifications::default() };
    let mut failed = message("a thing failed").reports()[0].clone();
    failed.result = RunResult::Failed;
    let mut quiet = failed.clone();
    quiet.id = Uuid::from_u128(6);
    quiet.result = RunResult::Changed;
    let dir = server.dir.path().join("outbox");
    for _ in 0..3 {
        let outbox = Outbox::open(&dir, failed.at).unwrap();
        outbox.queue(&failed, failed.at).unwrap();
        outbox.queue(&quiet, quiet.at).unwrap();
        assert!(outbox.deliver(&settings, &Secrets::default(), failed.at).unwrap().failed.is_empty());
    }
    assert!(server.taken().unwrap().text.contains("[web1.example.org] failed: a thing failed"));
    assert!(server.mails.try_recv().is_err(), "only the failure is wanted, and once");
}

#[test]
fn a_webhook_is_told_over_tls() {
    let dir = tempfile::tempdir().unwrap();
    let config = certificates(dir.path(), "localhost");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = std::thread::spawn(move || {
        let mut seen = Vec::new();
        for answer in ["204 No Content", "302 Found"] {
            let (tcp, _) = listener.accept().unwrap();
            let stream = StreamOwned::new(ServerConnection::new(Arc::clone(&config)).unwrap(), tcp);
            let mut reader = BufReader::new(stream);
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                reader.read_line(&mut head).unwrap();
            }
            let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
            let mut body = vec![0; length.parse().unwrap()];
            reader.read_exact(&mut body).unwrap();
            write!(reader.get_mut(), "HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n").unwrap();
            seen.push((head, String::from_utf8(body).unwrap()));
        }
        seen
    });
    let mut webhook = Webhook::at(&format!("https://localhost:{port}/hook?token=s3cret"));
    webhook.ca_file = Some(dir.path().join("ca.pem"));
    webhook.secret_credential = Some("hook".into());
    fs::write(dir.path().join("hook"), "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n").unwrap();
    let secrets = Secrets::in_directory(dir.path());
    let message = message("1 package updated");
    patch_notify::send_webhook(&webhook, &secrets, &message).unwrap();
    let error = patch_notify::send_webhook(&webhook, &secrets, &message).unwrap_err();
    assert!(error.to_string().contains("redirects") && !error.to_string().contains("s3cret"), "{error}");
    let seen = thread.join().unwrap();
    let (head, body) = &seen[0];
    assert!(head.starts_with("POST /hook?token=s3cret HTTP/1.1\r\n"), "{head}");
    let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    let (id, at) = (header("webhook-id: "), header("webhook-timestamp: "));
    assert_eq!(id, "00000000-0000-0000-0000-000000000005");
    let key = base64::Engine::decode(
        &base64::engine::general_purpose::STANDARD,
        "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
    );
    let key = hmac_by_hand(&key.unwrap(), format!("{id}.{at}.{body}").as_bytes());
    assert_eq!(header("webhook-signature: "), format!("v1,{key}"));
    let event: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!(event["specversion"], "1.0");

    webhook.ca_file = None;
    let (reason, listener) = {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        webhook.url = format!("https://localhost:{}/", listener.local_addr().unwrap().port());
        webhook.timeout_seconds = Some(1);
        (patch_notify::send_webhook(&webhook, &secrets, &message).unwrap_err().reason, listener)
    };
    drop(listener);
    assert_eq!(reason, Reason::Timeout, "a server that says nothing is given up");
}

/// HMAC-SHA256 as RFC 2104 writes it down, in base64: by another way than the program goes.
fn hmac_by_hand(key: &[u8], text: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    let mut block = [0_u8; 64];
    block[..key.len()].copy_from_slice(key);
    let inner = Sha256::new().chain_update(block.map(|b| b ^ 0x36)).chain_update(text).finalize();
    let outer = Sha256::new().chain_update(block.map(|b| b ^ 0x5c)).chain_update(inner).finalize();
    base64::Engine::encode(&base64::engine::general_purpose::STANDARD, outer)
}
