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
