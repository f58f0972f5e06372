//! `cloud-init`: a `#cloud-config` that has a new host patch itself from its first boot on.
//!
//! It is made as a value and serialised, so nothing that is put in can become structure. Secrets that outlive the first boot
//! are refused: whoever may read a host's user data could read them.

mod document;
mod mail;

use std::{fs, path::PathBuf, str::FromStr};

use anyhow::{Context, bail, ensure};

use self::{
    document::{AptSource, CloudConfig, WriteFile},
    mail::{Preset, Smtp},
};
use crate::{
    exit::Exit,
    provision::content::{Address, Distribution, MailReport, PERIODIC, TimeOfDay, UPGRADES, Wish},
    screen::Screen,
};

/// What the new host is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Profile {
    /// Everything is upgraded once, at the first boot
    Basic,
    /// Security fixes within a day, by unattended-upgrades; a reboot at the first boot if the upgrade there needs one
    Unattended,
    /// The same for a host of virtual machines: it never reboots by itself
    KvmHost,
    /// As unattended, with the agent installed
    Agent,
}

/// What the document is made of.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// What the new host is to be
    #[arg(long, value_name = "PROFILE", default_value = "unattended")]
    profile: Profile,
    /// Whose archives it has
    #[arg(long, value_name = "NAME", default_value = "debian")]
    distribution: Distribution,
    /// Install ordinary updates as well, not security fixes alone
    #[arg(long)]
    with_updates: bool,
    /// Who gets a mail about runs
    #[arg(long, value_name = "ADDRESS")]
    mail_to: Option<Address>,
    /// When a mail is sent
    #[arg(long, value_name = "WHEN", default_value = "on-change")]
    mail_report: MailReport,
    /// The relay that takes the host's mail. Its password is given on the host, afterwards
    #[arg(long, value_name = "RELAY")]
    smtp_preset: Option<Preset>,
    /// A YAML file `smtp: {from_email, user_email, recipient_email}`
    #[arg(long, value_name = "FILE", requires = "smtp_preset")]
    smtp_config: Option<PathBuf>,
    /// For agent: where its package is, as `URI SUITE COMPONENT`; the host's own sources if not given
    #[arg(long, value_name = "SOURCE", requires = "agent_key")]
    agent_source: Option<Source>,
    /// For agent: the public key of that archive, in armour
    #[arg(long, value_name = "FILE", requires = "agent_source")]
    agent_key: Option<PathBuf>,
    /// For agent: the certificate of the CA that signs clients
    #[arg(long, value_name = "FILE")]
    ca_cert: Option<PathBuf>,
    /// For agent: who may connect: an address, a network or a name. More than once for several
    #[arg(long, value_name = "ENTRY")]
    allow: Vec<Entry>,
    /// For agent: the manager at which it is to enrol. It is only written down: this version of the agent does not enrol, and
    /// its key and certificate are made on the host or brought there all the same
    #[arg(long, value_name = "URL", requires = "ca_fingerprint")]
    enroll: Option<ManagerUrl>,
    /// For agent: the fingerprint of the manager's CA, as the manager prints it
    #[arg(long, value_name = "sha256:HEX", requires = "enroll")]
    ca_fingerprint: Option<Fingerprint>,
    /// For agent: a token that lets it join once
    #[arg(long, value_name = "TOKEN", requires = "enroll")]
    join_token: Option<Token>,
}

/// Text of plain characters that was checked when it was read.
macro_rules! plain {
    ($(#[$doc:meta])* $name:ident, $check:expr, $message:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub(crate) struct $name(String);

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                let check: fn(&str) -> bool = $check;
                if check(text) { Ok(Self(text.to_owned())) } else { Err($message.to_owned()) }
            }
        }
    };
}

fn is_of(text: &str, others: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || others.contains(c))
}

/// `http://` or `https://` and a host with perhaps a port and a path; no user, since a password might follow it.
fn is_url(text: &str, schemes: &[&str]) -> bool {
    schemes.iter().any(|scheme| {
        text.strip_prefix(scheme)
            .is_some_and(|rest| is_of(rest, ".-_~:/[]%") && !rest.starts_with(['/', ':']))
    })
}

plain!(
    /// An archive: address, suite and components.
    Source,
    |text| {
        let words: Vec<&str> = text.split(' ').collect();
        words.len() >= 3
            && words.first().is_some_and(|uri| is_url(uri, &["https://", "http://"]) || is_file(uri))
            && words.iter().skip(1).all(|word| is_of(word, ".-_/~") && !word.starts_with('-'))
    },
    "it must be `URI SUITE COMPONENT`, such as \"https://apt.example.org/debian bookworm main\", without a password"
);

plain!(
    /// The manager.
    ManagerUrl,
    |text| is_url(text, &["https://"]),
    "it must be https://NAME[:PORT], without a password"
);

plain!(
    /// A SHA-256 in hexadecimal.
    Fingerprint,
    |text| text.strip_prefix("sha256:").is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit())),
    "it must be sha256: and 64 hexadecimal digits"
);

plain!(
    /// A token.
    Token,
    |text| (16..=512).contains(&text.len()) && is_of(text, "._~-+/="),
    "it must be a token of the manager: 16 letters, digits and ._~-+/= or more"
);

plain!(
    /// An entry of the allow list.
    Entry,
    |text| text.len() <= 253 && is_of(text, ".:-/") && !text.starts_with(['-', '/']),
    "it must be an address, a network or a host's name"
);

fn is_file(uri: &str) -> bool {
    uri.strip_prefix("file:").is_some_and(|path| path.starts_with('/') && is_of(path, "./-_~"))
}

/// Runs the command.
///
/// # Errors
/// When options do not go together, or a file that is named cannot be read or holds something that must not be there.
pub(crate) fn cloud_init(screen: &mut Screen, options: &Options) -> anyhow::Result<Exit> {
    let config = config(options)?;
    if screen.is_json() {
        screen.json(&config)?;
        return Ok(Exit::Done);
    }
    // As it is: a pipe takes it.
    screen.raw(&config.text()?);
    for remark in remarks(options) {
        screen.remark(remark);
    }
    Ok(Exit::Done)
}

fn remarks(options: &Options) -> Vec<&'static str> {
    let mut remarks = Vec::new();
    if options.smtp_preset.is_some() {
        remarks.push("The relay's password is not in it: run `sudo msmtp-config` on the host.");
    }
    if options.profile == Profile::Agent {
        if options.agent_source.is_none() {
            remarks.push("No --agent-source: the host's own sources must have the package linux-patch-api.");
        }
        remarks.push(
            "The agent stays silent until its key and certificate are in /etc/linux_patch_api/certs/; they are made on \
             the host or brought there, and belong in no user data.",
        );
        if options.enroll.is_some() {
            remarks.push(
                "Nothing reads /etc/linux_patch_api/enrolment.yaml yet: enrolment takes effect with the version that brings \
                 the manager. A join token that ends before then is of no use in it.",
            );
        }
    }
    remarks
}

fn config(options: &Options) -> anyhow::Result<CloudConfig> {
    let agent_options = options.agent_source.is_some()
        || options.ca_cert.is_some()
        || options.enroll.is_some()
        || !options.allow.is_empty();
    ensure!(
        options.profile == Profile::Agent || !agent_options,
        "--agent-source, --ca-cert, --allow and --enroll go with --profile agent"
    );
    if options.profile == Profile::Basic {
        ensure!(
            options.mail_to.is_none() && options.smtp_preset.is_none() && !options.with_updates,
            "--profile basic upgrades once and sends no mail; use --profile unattended"
        );
        return Ok(CloudConfig::default());
    }
    let smtp = smtp(options)?;
    // With a relay, mail goes to root, and the aliases say who that is.
    let mail_to = match &smtp {
        Some(_) => Some("root".parse().map_err(anyhow::Error::msg)?),
        None => options.mail_to.clone(),
    };
    let wish = Wish {
        distribution: options.distribution,
        with_updates: options.with_updates,
        once_a_day: false,
        mail_to,
        mail_report: options.mail_report,
        reboot_time: TimeOfDay::default(),
    };
    let mut config = CloudConfig {
        package_reboot_if_required: Some(options.profile != Profile::KvmHost),
        packages: ["unattended-upgrades", "apt-listchanges", "needrestart"].map(str::to_owned).to_vec(),
        ..CloudConfig::default()
    };
    for file in wish.files() {
        let Some(content) = file.content else { continue };
        // The package asks nothing of these when they are there, but makes its own where they are not.
        let is_packaged = [UPGRADES, PERIODIC].contains(&file.path);
        config.write_files.push(WriteFile::new(file.path, content, 0o644).deferred(is_packaged));
    }
    if let Some(smtp) = smtp {
        config.packages.extend(["msmtp", "msmtp-mta"].map(str::to_owned));
        config.write_files.extend(smtp.files());
    }
    if options.profile == Profile::Agent {
        agent(&mut config, options)?;
    }
    config.runcmd.push(["systemctl", "daemon-reload"].map(str::to_owned).to_vec());
    let enable = ["systemctl", "enable", "--now", "apt-daily.timer", "apt-daily-upgrade.timer"];
    config.runcmd.push(enable.map(str::to_owned).to_vec());
    Ok(config)
}

fn smtp(options: &Options) -> anyhow::Result<Option<Smtp>> {
    let Some(preset) = options.smtp_preset else { return Ok(None) };
    let file = match &options.smtp_config {
        Some(path) => {
            let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            Some(mail::SmtpFile::parse(&text).with_context(|| format!("{} is refused", path.display()))?)
        }
        None => None,
    };
    let Some(smtp) = Smtp::new(preset, file, options.mail_to.as_ref()) else {
        bail!("--smtp-preset needs --mail-to ADDRESS, or --smtp-config FILE");
    };
    Ok(Some(smtp))
}

/// A file of this machine that goes into the document. It must be public.
fn public(path: &PathBuf, begins: &str) -> anyhow::Result<String> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(
        !text.contains("PRIVATE KEY"),
        "{} has a private key in it, which belongs in no user data",
        path.display()
    );
    ensure!(text.contains(begins), "there is no {begins} in {}", path.display());
    Ok(text)
}

fn agent(config: &mut CloudConfig, options: &Options) -> anyhow::Result<()> {
    config.packages.push("linux-patch-api".to_owned());
    if let (Some(Source(source)), Some(key)) = (&options.agent_source, &options.agent_key) {
        let key = public(key, "-----BEGIN PGP PUBLIC KEY BLOCK-----")?;
        config.apt = Some(AptSource::new(source, key).into());
    }
    if let Some(path) = &options.ca_cert {
        let certificate = public(path, "-----BEGIN CERTIFICATE-----")?;
        config.write_files.push(WriteFile::new("etc/linux_patch_api/certs/ca.pem", certificate, 0o644));
    }
    if !options.allow.is_empty() {
        let list: Vec<&str> = options.allow.iter().map(|entry| entry.0.as_str()).collect();
        let text = serde_saphyr::to_string(&serde_json::json!({ "allowed_ips": list }))?;
        // The package brings one of its own.
        config
            .write_files
            .push(WriteFile::new("etc/linux_patch_api/whitelist.yaml", text, 0o644).deferred(true));
    }
    if let (Some(ManagerUrl(url)), Some(Fingerprint(fingerprint))) =
        (&options.enroll, &options.ca_fingerprint)
    {
        let token = options.join_token.as_ref().map(|token| token.0.as_str());
        let text = serde_saphyr::to_string(&serde_json::json!({
            "manager": url, "ca_fingerprint": fingerprint, "join_token": token,
        }))?;
        config.write_files.push(WriteFile::new("etc/linux_patch_api/enrolment.yaml", text, 0o600));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
