use clap::Parser;
use serde_json::Value;

use super::*;
use crate::screen::tests::paper;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    options: Options,
}

fn parse(args: &str) -> Result<Options, clap::Error> {
    Line::try_parse_from(["x"].into_iter().chain(args.split_whitespace())).map(|line| line.options)
}

fn text(args: &str) -> String {
    config(&parse(args).unwrap()).unwrap().text().unwrap()
}

/// The document as a value, and a file of it.
fn document(args: &str) -> Value {
    serde_saphyr::from_str(&text(args)).unwrap()
}

fn file<'a>(document: &'a Value, path: &str) -> Option<&'a Value> {
    document["write_files"].as_array()?.iter().find(|file| file["path"] == path)
}

#[test]
fn basic_is_what_the_name_says() {
    assert_eq!(text("--profile basic"), "#cloud-config\npackage_update: true\npackage_upgrade: true\n");
    assert!(config(&parse("--profile basic --mail-to root").unwrap()).is_err());
}

#[test]
fn unattended_writes_what_provision_writes() {
    let told = document("");
    let upgrades = file(&told, "/etc/apt/apt.conf.d/50unattended-upgrades").unwrap();
    assert!(
        upgrades["content"].as_str().unwrap().contains("origin=Debian,codename=${distro_codename}-security")
    );
    assert_eq!((&upgrades["permissions"], &upgrades["defer"]), (&"0644".into(), &true.into()));
    assert!(text("").contains("permissions: \"0644\""));
    assert_eq!(told["package_reboot_if_required"], true);
    assert!(!text("").contains("msmtp"));
    let ubuntu = document("--distribution ubuntu --profile kvm-host");
    assert_eq!(ubuntu["package_reboot_if_required"], false);
    let upgrades =
        file(&ubuntu, "/etc/apt/apt.conf.d/50unattended-upgrades").unwrap()["content"].as_str().unwrap();
    assert!(upgrades.contains("${distro_id}ESM:${distro_codename}-infra-security"));
    assert!(upgrades.contains("Automatic-Reboot \"false\""), "{upgrades}");
}

#[test]
fn mail_goes_by_a_relay_without_its_password() {
    let told = document("--mail-to ops@example.org --smtp-preset sendgrid");
    let settings = file(&told, "/etc/msmtprc").unwrap();
    assert_eq!(settings["permissions"], "0600");
    let lines = settings["content"].as_str().unwrap();
    for line in ["host           smtp.sendgrid.net", "user           apikey", "aliases        /etc/aliases"] {
        assert!(lines.lines().any(|found| found == line), "{line}: {lines}");
    }
    assert_eq!(
        file(&told, "/etc/aliases").unwrap()["content"],
        "root: ops@example.org\ndefault: ops@example.org\n"
    );
    assert!(file(&told, "/etc/msmtp-password").is_none());
    let upgrades =
        file(&told, "/etc/apt/apt.conf.d/50unattended-upgrades").unwrap()["content"].as_str().unwrap();
    assert!(upgrades.contains("::Mail \"root\""), "{upgrades}");
    assert!(config(&parse("--smtp-preset gmail").unwrap()).is_err(), "nobody gets the mail");
    assert!(config(&parse("--smtp-preset gmail --mail-to root").unwrap()).is_err(), "root of which host?");

    let (mut screen, out, remarks) = paper(false);
    cloud_init(&mut screen, &parse("--mail-to a@b.example --smtp-preset m365").unwrap()).unwrap();
    assert!(
        out.text().starts_with("#cloud-config\n") && remarks.text().contains("msmtp-config"),
        "{}",
        remarks.text()
    );
}

#[test]
fn a_file_of_the_relay_is_read_and_passwords_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("smtp.yaml");
    let good = "smtp:\n  from_email: alerts@example.com\n  user_email: user@example.com\n  recipient_email: admin@example.com\n";
    let told = |text: &str| {
        fs::write(&path, text).unwrap();
        config(&parse(&format!("--smtp-preset m365 --smtp-config {}", path.display())).unwrap())
    };
    let text = told(good).unwrap().text().unwrap();
    assert!(
        text.contains("user           user@example.com") && text.contains("root: admin@example.com"),
        "{text}"
    );
    for (bad, said) in [
        (format!("{good}  password: hunter2\n"), "passwords do not belong"),
        (format!("{good}SMTP_PASSWORD: hunter2\n"), "passwords do not belong"),
        (format!("{good}  port: 25\n"), "it must be `smtp:"),
        (good.replace("admin@example.com", "\"a\\nb@example.com\""), "recipient_email"),
        ("smtp: {}\n".to_owned(), "it must be `smtp:"),
    ] {
        let error = format!("{:#}", told(&bad).unwrap_err());
        assert!(error.contains(said) && !error.contains("hunter2"), "{error}");
    }
}

#[test]
fn the_agent_comes_with_what_is_public() {
    let dir = tempfile::tempdir().unwrap();
    let (key, ca) = (dir.path().join("key.asc"), dir.path().join("ca.pem"));
    fs::write(&key, "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nAAAA\n-----END PGP PUBLIC KEY BLOCK-----\n")
        .unwrap();
    fs::write(&ca, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    let line = |rest: &[&str]| {
        let base = [
            "x",
            "--profile",
            "agent",
            "--agent-source",
            "https://apt.example.org/x bookworm main",
            "--agent-key",
        ];
        let all = base
            .iter()
            .copied()
            .chain([key.to_str().unwrap(), "--ca-cert", ca.to_str().unwrap()])
            .chain(rest.iter().copied());
        Line::try_parse_from(all.collect::<Vec<_>>()).map(|line| line.options)
    };
    let fingerprint = format!("sha256:{}", "ab".repeat(32));
    let enrol = [
        "--allow",
        "10.0.0.5",
        "--allow",
        "10.1.0.0/24",
        "--enroll",
        "https://m.example.org:8443",
        "--ca-fingerprint",
        &fingerprint,
        "--join-token",
        "0123456789abcdef",
    ];
    let config = config(&line(&enrol).unwrap()).unwrap();
    let told: Value = serde_saphyr::from_str(&config.text().unwrap()).unwrap();
    assert_eq!(
        told["apt"]["sources"]["linux-patch.list"]["source"],
        "deb [signed-by=$KEY_FILE] https://apt.example.org/x bookworm main"
    );
    let list = file(&told, "/etc/linux_patch_api/whitelist.yaml").unwrap();
    let parsed: Value = serde_saphyr::from_str(list["content"].as_str().unwrap()).unwrap();
    assert_eq!(parsed["allowed_ips"], serde_json::json!(["10.0.0.5", "10.1.0.0/24"]));
    let enrolment = file(&told, "/etc/linux_patch_api/enrolment.yaml").unwrap();
    assert_eq!(enrolment["permissions"], "0600");
    let parsed: Value = serde_saphyr::from_str(enrolment["content"].as_str().unwrap()).unwrap();
    assert_eq!(
        (&parsed["manager"], &parsed["join_token"]),
        (&"https://m.example.org:8443".into(), &"0123456789abcdef".into())
    );

    let (mut screen, _, remarks) = paper(false);
    cloud_init(&mut screen, &line(&enrol).unwrap()).unwrap();
    let remarks = remarks.text();
    assert!(remarks.contains("stays silent") && remarks.contains("Nothing reads"), "{remarks}");

    for bad in [
        &["--enroll", "https://m.example.org"][..],
        &["--enroll", "https://user:password@m.example.org", "--ca-fingerprint", &fingerprint],
        &["--enroll", "http://m.example.org", "--ca-fingerprint", &fingerprint],
        &["--enroll", "https://m.example.org", "--ca-fingerprint", "sha256:ab"],
        &["--allow", "a b"],
        &["--allow", "-x"],
        &["--password", "x"],
    ] {
        assert!(line(bad).is_err(), "{bad:?}");
    }
    fs::write(&ca, "-----BEGIN CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\n").unwrap();
    let error = super::config(&line(&[]).unwrap()).unwrap_err().to_string();
    assert!(error.contains("private key"), "{error}");
    assert!(super::config(&parse("--allow 10.0.0.5").unwrap()).is_err(), "not of this profile");
}

#[test]
fn sources_are_plain() {
    for good in ["https://a.example/x bookworm main", "file:/srv/repo/current bookworm main contrib"] {
        assert!(good.parse::<Source>().is_ok(), "{good}");
    }
    for bad in [
        "https://u:p@a.example x main",
        "a b c",
        "https://a.example x",
        "https://a.example [trusted=yes] x main",
        "https://a.example x  main",
        "file:../x y z",
    ] {
        assert!(bad.parse::<Source>().is_err(), "{bad}");
    }
}
