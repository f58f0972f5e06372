use proptest::prelude::*;

use super::*;

macro_rules! recorded {
    ($($name:literal => $code:ident $(, $package:literal)*;)+) => {
        [$(($name, include_str!(concat!("fixtures/fail-", $name, ".txt")), ErrorCode::$code, &[$($package),*] as &[&str])),+]
    };
}

/// What apt 2.6 and dpkg 1.21 said, the code that follows and the packages named.
const TABLE: [(&str, &str, ErrorCode, &[&str]); 34] = recorded! {
    "nosuch" => PkgNotFound, "nosuch-package";
    "nosuch-two" => PkgNotFound, "nosuch-package", "other-nosuch";
    "remove-nosuch" => PkgNotFound, "nosuch-package";
    "virtual" => PkgNotFound, "ex-virtual";
    "nocandidate" => PkgNotFound, "ex-missing";
    "version" => PkgVersionConflict, "pa-plain";
    "downgrade" => PkgVersionConflict, "pa-plain";
    "held" => PkgHeld, "pa-held";
    "unmet" => PkgDependencyError, "ex-needs";
    "protected" => PkgDependencyError, "dash", "grep", "gzip", "init-system-helpers", "perl-base";
    "essential" => PkgDependencyError, "bash";
    "broken-deps" => PkgDependencyError, "pa-app";
    "removals" => PkgDependencyError, "pa-victim";
    "lock" => LockTimeout;
    "lock-lists" => LockTimeout;
    "connect-error-any" => NetworkError;
    "resolve" => NetworkError;
    "resolve-error-any" => NetworkError;
    "missing-repo" => NetworkError;
    "hash" => SignatureError;
    "update-expired" => SignatureError;
    "update-wrongkey" => SignatureError;
    "nopubkey" => SignatureError;
    "unsigned-update" => SignatureError;
    "unsigned" => SignatureError, "ex-rival-a";
    "disk-archives" => DiskSpace;
    "disk-unpack" => DiskSpace;
    "preinst" => PkgManagerError, "pa-prefail";
    "postinst" => PkgManagerError, "pa-postfail";
    "prerm" => PkgManagerError, "pa-prermfail";
    "again" => PkgManagerError, "pa-conf", "pa-postfail";
    "interrupted" => PkgManagerError;
    "sources" => PkgManagerError;
    "badoption" => PkgManagerError;
};

fn packages(detail: &ErrorDetail) -> Vec<&str> {
    let list = detail.details.get("packages").and_then(|p| p.as_array());
    list.into_iter().flatten().filter_map(|p| p.as_str()).collect()
}

#[test]
fn recorded_failures_have_their_codes_packages_and_a_next_step() {
    for (name, output, code, expected) in TABLE {
        let detail = classify(Some(100), output, OperationKind::Install);
        assert_eq!(detail.code, code, "{name}: {}", detail.message);
        assert_eq!(packages(&detail), expected, "{name}");
        assert_eq!(detail.details["exit_code"], 100, "{name}");
        assert!(
            detail.message.contains("Next: ") && detail.message.len() < 3000,
            "{name}: {}",
            detail.message
        );
    }
}

#[test]
fn messages_carry_the_tools_own_words() {
    for (name, words) in [
        ("lock", "held by process 839 (perl)"),
        ("version", "Version '9.9' for 'pa-plain' was not found"),
        ("unmet", "ex-needs : Depends: ex-missing (>= 2) but it is not installable"),
        ("nopubkey", "NO_PUBKEY"),
        ("resolve", "Temporary failure resolving 'nosuch.invalid'"),
        ("disk-archives", "free space in /var/cache/apt/archives/"),
        ("postinst", "the postinst script of pa-postfail failed: error exit status 3"),
        ("badoption", "--nosuch is not understood"),
    ] {
        let (_, output, ..) = TABLE.iter().find(|(n, ..)| *n == name).unwrap();
        let message = classify(Some(100), output, OperationKind::Install).message;
        assert!(message.contains(words), "{name}: {message}");
    }
}

#[test]
fn a_failing_script_is_named_with_its_status() {
    for (name, script, status) in
        [("preinst", "preinst", 4), ("postinst", "postinst", 3), ("prerm", "prerm", 5)]
    {
        let (_, output, ..) = TABLE.iter().find(|(n, ..)| *n == name).unwrap();
        let detail = classify(Some(100), output, OperationKind::ApplyPatches);
        assert_eq!(detail.details["script"], script);
        assert_eq!(detail.details["script_status"], format!("error exit status {status}"));
    }
    let old = "dpkg: error processing package aa (--configure):\n subprocess installed post-installation script returned error exit status 1\n";
    let scripts = failed_scripts(old.replace(" subprocess", " x subprocess").as_str());
    assert_eq!(scripts[0].package, "aa");
    let killed = "dpkg: error processing package aa:i386 (--configure):\n installed aa:i386 package post-installation script subprocess was killed by signal (Terminated)\n";
    assert_eq!(
        failed_scripts(killed)[0].sentence(),
        "the postinst script of aa:i386 failed: was killed by signal (Terminated)"
    );
}

#[test]
fn a_scripts_words_do_not_decide() {
    let output = "Setting up aa (1) ...\nCould not resolve host: x\nHash Sum mismatch\ndpkg: error processing package aa (--configure):\n \
                  installed aa package post-installation script subprocess returned error exit status 1\n\
                  Errors were encountered while processing:\n aa\nE: Sub-process /usr/bin/dpkg returned an error code (1)\n";
    assert_eq!(classify(Some(100), output, OperationKind::Install).code, ErrorCode::PkgManagerError);
}

#[test]
fn archives_are_named_by_their_packages() {
    let output = "Errors were encountered while processing:\n /tmp/apt-dpkg-install-x7Yz/12-aa-bb_1%3a1.0_all.deb\n \
                  /var/cache/apt/archives/cc_1_amd64.deb\n dd:i386\nE: no\n";
    assert_eq!(failed_packages(output), ["aa-bb", "cc", "dd:i386"]);
}

#[test]
fn silence_and_the_unknown_get_the_generic_code() {
    let silent = classify(None, "", OperationKind::Install);
    assert_eq!(silent.code, ErrorCode::PkgManagerError);
    assert!(silent.message.contains("ended by a signal") && silent.details["exit_code"].is_null());
    let unknown = classify(Some(2), "one\n\ntwo\n", OperationKind::ApplyPatches);
    assert_eq!((unknown.code, unknown.message.starts_with("one; two")), (ErrorCode::PatchApplyError, true));
}

#[test]
fn what_failed_of_an_operation_is_told_by_its_kind() {
    let job = "018f3f6e-0000-7000-8000-000000000001";
    for (json, kind, code) in [
        (r#"{"kind": "refresh"}"#, OperationKind::Refresh, ErrorCode::PkgManagerError),
        (
            r#"{"kind": "install", "packages": [{"name": "aa"}]}"#,
            OperationKind::Install,
            ErrorCode::PkgManagerError,
        ),
        (r#"{"kind": "update", "name": "aa"}"#, OperationKind::Update, ErrorCode::PkgManagerError),
        (r#"{"kind": "remove", "name": "aa"}"#, OperationKind::Remove, ErrorCode::PkgManagerError),
        (r#"{"kind": "hold", "name": "aa", "hold": true}"#, OperationKind::Hold, ErrorCode::PkgManagerError),
        (r#"{"kind": "apply_patches"}"#, OperationKind::ApplyPatches, ErrorCode::PatchApplyError),
        (
            &format!(r#"{{"kind": "rollback", "job": "{job}"}}"#),
            OperationKind::ApplyPatches,
            ErrorCode::PatchApplyError,
        ),
    ] {
        let operation: Operation = serde_json::from_str(json).unwrap();
        assert_eq!(OperationKind::from(&operation), kind, "{json}");
        // Nobody's words say more.
        assert_eq!(classify(Some(1), "odd\n", (&operation).into()).code, code, "{json}");
        // Words that say more count for any.
        let full = "dpkg: error: No space left on device\n";
        assert_eq!(classify(Some(1), full, (&operation).into()).code, ErrorCode::DiskSpace, "{json}");
    }
}

#[test]
fn a_fetch_that_exits_with_zero_is_understood() {
    let output = include_str!("fixtures/fail-resolve.txt");
    let detail = classify(Some(0), output, OperationKind::Refresh);
    assert!(detail.code == ErrorCode::NetworkError && detail.retryable);
}

proptest! {
    #[test]
    fn any_change_of_a_recorded_failure_is_survived(which in 0..TABLE.len(), at in 0..2000usize, what in "\\PC{0,20}\n?") {
        let text = TABLE[which].1;
        let at = (0..=at.min(text.len())).rev().find(|i| text.is_char_boundary(*i)).unwrap();
        let _ = classify(Some(1), &format!("{}{what}{}", &text[..at], &text[at..]), OperationKind::Update);
        let _ = classify(None, &text[at..], OperationKind::Refresh);
    }

    #[test]
    fn long_outputs_make_short_messages(text in "E: \\PC{0,100}", times in 0..200usize) {
        let output = format!("{text}\n").repeat(times);
        let message = classify(Some(1), &output, OperationKind::Update).message;
        prop_assert!(message.chars().count() < 2000);
    }
}

#[test]
fn what_is_repeated_is_plain_and_without_passwords() {
    let output = "The following packages have unmet dependencies:\n\taa\u{1b}]0;x\u{7} : Depends: bb\nE: Unmet \u{1b}[31mdependencies\nE: \
                  Failed to fetch https://me:s3cret@h/x\n";
    let error = classify(Some(100), output, OperationKind::Install);
    let text = serde_json::to_string(&error).unwrap();
    assert!(
        !text.contains("s3cret") && !text.contains("u001b") && text.contains("https://***@h/x"),
        "{text}"
    );
    let error = classify(Some(100), "last https://me:s3cret@h\u{9b}2J words\n", OperationKind::Install);
    assert!(error.message.starts_with("last https://***@h words."), "{error:?}");
}

#[test]
fn a_wall_of_unmet_dependencies_is_cut_and_counted() {
    let wall: String = (0..40)
        .map(|n| format!(" aa{n} : Depends: bb but it is not going to be installed\n        Depends: cc\n"))
        .collect();
    let output = format!(
        "The following packages have unmet dependencies:\n{wall}E: Error, pkgProblemResolver::Resolve generated breaks, this may be caused by held packages.\n"
    );
    let error = classify(Some(100), &output, OperationKind::Install);
    assert_eq!(error.code, ErrorCode::PkgDependencyError);
    assert!(error.message.contains("aa4 : Depends") && !error.message.contains("aa5 :"), "{error:?}");
    assert!(
        error.message.contains("and 35 more packages") && error.message.contains("generated breaks"),
        "{error:?}"
    );
    assert_eq!(error.details["packages"].as_array().map(Vec::len), Some(40), "all are there for programs");
}
