use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::testing::run;

#[test]
fn what_init_makes_satisfies_openssl_and_keys_are_private() {
    let dir = tempfile::tempdir().unwrap();
    let clients = ["ops".to_owned()];
    let names = ["agent.example".to_owned()];
    let report = init(dir.path(), &names, &[IpAddr::from([192, 0, 2, 7])], &clients, Existing::Keep).unwrap();
    assert_eq!(report.files.len(), 7);
    add_client(dir.path(), "second", Existing::Keep).unwrap();
    for command in [
        "openssl verify -purpose sslserver -CAfile ca.pem server.pem",
        "openssl verify -purpose sslclient -CAfile ca.pem ops.pem second.pem",
        "openssl verify -purpose sslclient -CAfile ca.pem -CRLfile crl.pem -crl_check ops.pem",
        "openssl x509 -in server.pem -noout -checkhost agent.example -checkip 192.0.2.7 | grep -v NOT",
    ] {
        run(dir.path(), command);
    }
    write_crl(dir.path(), &["ops".to_owned()]).unwrap();
    run(dir.path(), "! openssl verify -CAfile ca.pem -CRLfile crl.pem -crl_check ops.pem");
    let facts = write_crl(dir.path(), &["second".to_owned()]).unwrap();
    assert_eq!((facts.revoked.len(), facts.number.as_deref()), (2, Some("3")));
    for name in ["ca", "server", "ops", "second"] {
        let mode = fs::metadata(dir.path().join(format!("{name}.key.pem"))).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    let leftovers = fs::read_dir(dir.path())
        .unwrap()
        .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with('.'));
    assert_eq!(leftovers.count(), 0);
}

#[test]
fn a_list_that_is_not_understood_is_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    init(dir.path(), &[], &[], &["ops".to_owned()], Existing::Keep).unwrap();
    let list = dir.path().join("crl.pem");
    for text in ["", "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"] {
        fs::write(&list, text).unwrap();
        assert!(write_crl(dir.path(), &["ops".to_owned()]).is_err(), "{text}");
        assert_eq!(fs::read_to_string(&list).unwrap(), text);
    }
    fs::remove_file(&list).unwrap();
    let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    fs::write(dir.path().join("ops.pem"), garbage).unwrap();
    let error = write_crl(dir.path(), &["ops".to_owned()]).unwrap_err();
    assert!(error.to_string().contains("no certificate in"), "{error}");
    assert!(!list.exists());
}

/// Both CAs have the name that `init` gives.
#[test]
fn a_ca_of_the_same_name_is_another_one() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [&one, &other] {
        init(dir.path(), &[], &[], &["ops".to_owned()], Existing::Keep).unwrap();
    }
    write_crl(other.path(), &["ops".to_owned()]).unwrap();
    let read = |dir: &tempfile::TempDir, file: &str| fs::read_to_string(dir.path().join(file)).unwrap();
    // A bundle in which the other one comes first, and both their lists.
    let bundle = [read(&other, "ca.pem"), read(&one, "ca.pem")].concat();
    fs::write(one.path().join("ca.pem"), &bundle).unwrap();
    let theirs = read(&other, "crl.pem");
    fs::write(one.path().join("crl.pem"), [theirs.clone(), read(&one, "crl.pem")].concat()).unwrap();
    let facts = write_crl(one.path(), &["ops".to_owned()]).unwrap();
    assert_eq!((facts.revoked.len(), facts.number.as_deref()), (1, Some("2")), "its own number goes on");
    let text = read(&one, "crl.pem");
    assert!(text.ends_with(&theirs), "the other one's list is as it was");
    let lists =
        crate::tls::verify_crl(&PemInput::new("f", text.clone()), &PemInput::new("ca", bundle)).unwrap();
    let serials = [&one, &other].map(|dir| serial(dir.path(), "ops", None).unwrap());
    let revoked: Vec<Vec<_>> =
        lists.iter().map(|list| list.facts.revoked.iter().cloned().collect()).collect();
    assert_eq!(revoked, serials.map(|serial| vec![serial]));
    assert_ne!(lists[0].facts.signer, lists[1].facts.signer);
    // The other one's client is for the other one to revoke.
    fs::copy(other.path().join("ops.pem"), one.path().join("guest.pem")).unwrap();
    let error = write_crl(one.path(), &["guest".to_owned()]).unwrap_err();
    assert!(matches!(&error, PkiError::NotOfCa { .. }) && error.to_string().contains("guest.pem"), "{error}");
    assert_eq!(read(&one, "crl.pem"), text);
    // Alone, the other one's certificate belongs to no key here.
    fs::write(one.path().join("ca.pem"), read(&other, "ca.pem")).unwrap();
    let error = write_crl(one.path(), &[]).unwrap_err();
    assert!(matches!(error, PkiError::KeyOfAnother { .. }), "{error}");
}

#[test]
fn a_list_of_no_ca_at_hand_is_not_replaced() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for dir in [&one, &other] {
        init(dir.path(), &[], &[], &[], Existing::Keep).unwrap();
    }
    let list = one.path().join("crl.pem");
    fs::copy(other.path().join("crl.pem"), &list).unwrap();
    let before = fs::read(&list).unwrap();
    let error = write_crl(one.path(), &[]).unwrap_err();
    assert!(matches!(error, PkiError::Ca(TlsError::CrlSignature { .. })), "{error}");
    assert_eq!(fs::read(&list).unwrap(), before);
}

#[test]
fn nothing_is_overwritten_unasked() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("server.pem"), "mine").unwrap();
    let error = init(dir.path(), &[], &[], &[], Existing::Keep).unwrap_err();
    assert!(error.to_string().contains("server.pem exists"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    init(dir.path(), &["a".to_owned()], &[], &[], Existing::Replace).unwrap();
    assert!(add_client(dir.path(), "a", Existing::Keep).is_ok());
    assert!(matches!(add_client(dir.path(), "a", Existing::Keep), Err(PkiError::Exists { .. })));
}

#[test]
fn names_cannot_leave_the_directory_or_hit_other_files() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["", "../x", "a/b", ".hidden", "ca", "server", "crl", "ca.key", "-o", "a b"] {
        assert!(
            matches!(add_client(dir.path(), name, Existing::Replace), Err(PkiError::Name { .. })),
            "{name}"
        );
    }
}
