//! The program as a script sees it: exit codes, and what goes to which stream.

use std::{net::TcpListener, path::Path, process::Output};

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyPair};

#[expect(clippy::disallowed_methods, reason = "the program itself is what is tested")]
fn patchctl(config: &Path, arguments: &[&str]) -> Output {
    std::process::Command::new(env!("CARGO_BIN_EXE_patchctl"))
        .env_clear()
        .env("PATCHCTL_CONFIG", config)
        .args(arguments)
        .output()
        .unwrap_or_else(|e| unreachable!("the program starts: {e}"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn usage_and_local_errors_are_2() {
    let empty = tempfile::tempdir().unwrap();
    let output = patchctl(empty.path(), &["info"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("PATCHCTL_HOST"));
    let output = patchctl(empty.path(), &["info", "--host", "localhost"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("ca.pem"), "{}", text(&output.stderr));
    assert_eq!(patchctl(empty.path(), &["install", "--", "-rf"]).status.code(), Some(2));
}

#[test]
fn an_agent_that_is_not_there_or_says_nothing_is_3() {
    let config = tempfile::tempdir().unwrap();
    // One certificate for all: it is only looked at by this side.
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap().pem();
    for name in ["ca.pem", "client.pem"] {
        std::fs::write(config.path().join(name), &certificate).unwrap();
    }
    std::fs::write(config.path().join("client.key.pem"), key.serialize_pem()).unwrap();

    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    let silent = std::thread::spawn(move || drop(listener.accept()));
    let output = patchctl(config.path(), &["info", "--host", &host]);
    assert_eq!(output.status.code(), Some(3));
    assert!(text(&output.stderr).contains("allowed_ips"), "{}", text(&output.stderr));
    silent.join().unwrap();

    let output = patchctl(config.path(), &["info", "--json", "--host", &host]);
    assert_eq!(output.status.code(), Some(3));
    assert!(output.stdout.is_empty());
    let error: serde_json::Value = serde_json::from_slice(&output.stderr).unwrap();
    assert!(error["error"]["message"].as_str().unwrap().contains("cannot connect"));
}

#[test]
fn help_completions_and_the_manual_need_no_agent() {
    let empty = tempfile::tempdir().unwrap();
    let help = patchctl(empty.path(), &["--help"]);
    assert!(help.status.success() && text(&help.stdout).contains("Exit codes:"));
    for arguments in [&["completions", "bash"][..], &["completions", "fish"], &["man"], &["man", "apply"]] {
        let output = patchctl(empty.path(), arguments);
        assert!(output.status.success() && output.stdout.len() > 100, "{arguments:?}");
    }
}
