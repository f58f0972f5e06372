//! A host's mail by way of a relay: msmtp, its aliases, its log's rotation, and a helper for the password, which is given on
//! the host.

use anyhow::Context;
use serde::Deserialize;

use super::document::WriteFile;
use crate::provision::content::Address;

/// A relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Preset {
    /// Microsoft 365
    M365,
    /// Gmail
    Gmail,
    /// SendGrid
    Sendgrid,
}

impl Preset {
    fn name(self) -> &'static str {
        match self {
            Self::M365 => "m365",
            Self::Gmail => "gmail",
            Self::Sendgrid => "sendgrid",
        }
    }

    fn host(self) -> &'static str {
        match self {
            Self::M365 => "smtp.office365.com",
            Self::Gmail => "smtp.gmail.com",
            Self::Sendgrid => "smtp.sendgrid.net",
        }
    }
}

/// The file that `--smtp-config` names.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    smtp: Fields,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    from_email: String,
    user_email: String,
    recipient_email: String,
}

/// What it says, checked.
#[derive(Debug, Clone)]
pub(super) struct SmtpFile {
    from: Address,
    user: Address,
    recipient: Address,
}

impl SmtpFile {
    /// Parses the file.
    ///
    /// # Errors
    /// When it is not as it should be; above all when it holds a password.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        // What is wrong is not repeated: it could be the password.
        let has_secret = text.lines().any(|line| {
            let key = line.split(':').next().unwrap_or_default().to_ascii_lowercase();
            ["pass", "secret", "token", "key"].iter().any(|word| key.contains(word))
        });
        anyhow::ensure!(
            !has_secret,
            "passwords do not belong in cloud-init, where others can read them; remove it, and run `sudo msmtp-config` on the host"
        );
        let document: Document = serde_saphyr::from_str(text)
            .map_err(|error| {
                anyhow::anyhow!("{}", error.to_string().lines().next().unwrap_or_default().to_owned())
            })
            .context("it must be `smtp: {from_email, user_email, recipient_email}`")?;
        let address = |key: &str, text: &str| {
            text.parse::<Address>().map_err(|error| anyhow::anyhow!("smtp.{key}: {error}"))
        };
        let fields = &document.smtp;
        Ok(Self {
            from: address("from_email", &fields.from_email)?,
            user: address("user_email", &fields.user_email)?,
            recipient: address("recipient_email", &fields.recipient_email)?,
        })
    }
}

/// How the host sends mail.
#[derive(Debug, Clone)]
pub(super) struct Smtp {
    preset: Preset,
    from: String,
    user: String,
    recipient: String,
}

impl Smtp {
    /// Of a file, or of the one address that is known; none if there is neither.
    pub(super) fn new(preset: Preset, file: Option<SmtpFile>, mail_to: Option<&Address>) -> Option<Self> {
        let remote = mail_to.filter(|address| address.has_domain());
        let (from, user, recipient) = match (file, remote) {
            (Some(file), to) => (file.from, file.user, to.cloned().unwrap_or(file.recipient)),
            (None, Some(to)) => (to.clone(), to.clone(), to.clone()),
            (None, None) => return None,
        };
        // Its user is the same for everybody; the password is the API key.
        let user = if preset == Preset::Sendgrid { "apikey".to_owned() } else { user.to_string() };
        Some(Self { preset, from: from.to_string(), user, recipient: recipient.to_string() })
    }

    /// The files of it.
    pub(super) fn files(&self) -> Vec<WriteFile> {
        let Self { preset, from, user, recipient } = self;
        let (name, host) = (preset.name(), preset.host());
        let settings = format!(
            "defaults\nauth           on\ntls            on\ntls_starttls   on\n\
             tls_trust_file /etc/ssl/certs/ca-certificates.crt\nlogfile        /var/log/msmtp.log\n\
             aliases        /etc/aliases\n\n\
             account        {name}\nhost           {host}\nport           587\nfrom           {from}\n\
             user           {user}\npasswordeval   \"cat /etc/msmtp-password\"\n\naccount default : {name}\n"
        );
        let aliases = format!("root: {recipient}\ndefault: {recipient}\n");
        let rotation = "/var/log/msmtp.log {\n    monthly\n    rotate 6\n    compress\n    missingok\n    notifempty\n}\n";
        let helper =
            include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../packaging/cloud-init/msmtp-config.sh"));
        vec![
            WriteFile::new("etc/msmtprc", settings, 0o600).deferred(true),
            WriteFile::new("etc/aliases", aliases, 0o644).deferred(true),
            WriteFile::new("etc/logrotate.d/msmtp", rotation.to_owned(), 0o644).deferred(true),
            WriteFile::new("usr/local/sbin/msmtp-config", helper.to_owned(), 0o755),
        ]
    }
}
