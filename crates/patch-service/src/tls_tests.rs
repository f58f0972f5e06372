use std::path::PathBuf;

use super::*;
use crate::{
    pki,
    testing::{Pki, run},
};

/// Makes a CA, a server and a client with plain openssl.
fn openssl(dir: &Path, key: &str, server_ext: &str) -> TlsSource {
    run(
        dir,
        &format!(
            "{key} -out ca.key; {key} -out server.key; {key} -out client.key; \
             openssl req -x509 -new -key ca.key -days 30 -subj /CN=Test-CA -addext keyUsage=critical,keyCertSign,cRLSign -out ca.pem; \
             openssl req -new -key server.key -subj /CN=server -out server.csr; \
             printf '{server_ext}' > server.ext; \
             openssl x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 9 {} -out server.pem",
            if server_ext.is_empty() { "" } else { "-extfile server.ext" }
        ),
    );
    source(dir)
}

fn source(dir: &Path) -> TlsSource {
    TlsSource::read(&dir.join("ca.pem"), &dir.join("server.pem"), &dir.join("server.key"), None).unwrap()
}

const P256: &str = "openssl ecparam -name prime256v1 -genkey -noout";
const GOOD: &str = "subjectAltName=DNS:localhost\\nextendedKeyUsage=serverAuth\\n";

fn message(source: &TlsSource) -> String {
    LoadedTls::load(source, TlsOptions::default()).unwrap_err().to_string()
}

#[test]
fn what_plain_openssl_makes_loads() {
    for key in [P256, "openssl genrsa 4096"] {
        let dir = tempfile::tempdir().unwrap();
        // openssl takes the output's name before the size.
        let key = if key.starts_with("openssl genrsa") {
            "openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:4096"
        } else {
            key
        };
        let loaded = LoadedTls::load(&openssl(dir.path(), key, GOOD), TlsOptions::default()).unwrap();
        assert_eq!(loaded.server.common_name, "server");
        assert_eq!(loaded.ca[0].common_name, "Test-CA");
        assert!(loaded.server.not_after > Timestamp::now());
        let shown = run(dir.path(), "openssl x509 -in server.pem -noout -serial -fingerprint -sha256")
            .to_lowercase()
            .replace(':', "");
        assert!(shown.contains(&loaded.server.fingerprint_sha256), "{shown}");
        assert!(shown.contains(&loaded.server.serial), "{shown}");
    }
}

#[test]
fn a_certificate_that_no_client_would_accept_is_refused_with_the_remedy() {
    let rows = [
        ("", "X.509 version 1", "-extfile"),
        ("extendedKeyUsage=serverAuth", "no subjectAltName", "subjectAltName=DNS:HOST"),
        (
            "subjectAltName=DNS:a\\nextendedKeyUsage=clientAuth",
            "lacks the extended key usage serverAuth",
            "sign it again",
        ),
        ("subjectAltName=DNS:a\\nbasicConstraints=critical,CA:TRUE", "is a CA certificate", "comes first"),
    ];
    for (extensions, fault, remedy) in rows {
        let dir = tempfile::tempdir().unwrap();
        let text = message(&openssl(dir.path(), P256, extensions));
        let file = dir.path().join("server.pem").display().to_string();
        assert!(
            text.starts_with(&file) && text.contains(fault) && text.contains(remedy),
            "{extensions}: {text}"
        );
    }
}

#[test]
fn faults_of_the_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let good = openssl(dir.path(), P256, GOOD);
    let at = |name: &str| PemInput::read(&dir.path().join(name)).unwrap();
    run(
        dir.path(),
        "openssl ec -in server.key -aes128 -passout pass:x -out old.key; openssl pkcs8 -topk8 -in server.key -passout pass:x -out enc.key; openssl x509 -in server.pem -outform DER -out der.pem; : > empty.pem; openssl req -x509 -key ca.key -days 9 -subj /CN=Test-CA -addext keyUsage=critical,keyCertSign -out nocrl.pem; openssl req -x509 -key ca.key -days 9 -subj /CN=Test-CA -addext keyUsage=critical,digitalSignature -out nosign.pem; openssl x509 -req -in server.csr -signkey server.key -days 9 -extfile server.ext -out self.pem; sed 's/^MII/MIJ/' server.pem > broken.pem",
    );
    let with = |change: &dyn Fn(&mut TlsSource)| {
        let mut source = good.clone();
        change(&mut source);
        message(&source)
    };
    let rows: [(String, &str); 10] = [
        (with(&|s| s.key = at("client.key")), "does not belong to the certificate"),
        (with(&|s| s.key = at("enc.key")), "is encrypted"),
        (with(&|s| s.key = at("old.key")), "is encrypted"),
        (with(&|s| s.key = at("server.pem")), "holds no PEM block `PRIVATE KEY` (it holds: CERTIFICATE)"),
        (with(&|s| s.chain = at("server.key")), "holds no PEM block `CERTIFICATE`"),
        (with(&|s| s.chain = at("der.pem")), "it is not PEM at all"),
        (with(&|s| s.chain = at("empty.pem")), "it is empty"),
        (with(&|s| s.chain = at("broken.pem")), "cannot be parsed"),
        (with(&|s| s.ca = at("self.pem")), "is not a CA certificate"),
        (with(&|s| s.ca = at("nosign.pem")), "lacks keyCertSign"),
    ];
    for (text, wanted) in rows {
        assert!(text.contains(wanted), "{wanted}: {text}");
        assert!(!text.contains('\n'), "{text}");
    }
    let missing = PemInput::read(&PathBuf::from("/nonexistent/ca.pem")).unwrap_err().to_string();
    assert!(missing.starts_with("/nonexistent/ca.pem: cannot be read"), "{missing}");
    let late = Timestamp::now() + jiff::SignedDuration::from_hours(24 * 365);
    let text = LoadedTls::load_at(&good, TlsOptions::default(), late).unwrap_err().to_string();
    assert!(text.contains("expired at"), "{text}");
    let early = Timestamp::UNIX_EPOCH;
    let text = LoadedTls::load_at(&good, TlsOptions::default(), early).unwrap_err().to_string();
    assert!(text.contains("not valid before"), "{text}");
}

#[test]
fn a_revocation_list_must_be_the_cas_own() {
    let (own, other) = (Pki::new(), Pki::new());
    let mut source = own.source(true);
    assert!(LoadedTls::load(&source, TlsOptions::default()).unwrap().crls[0].revoked.is_empty());
    source.crl = Some(PemInput::read(&other.path().join("crl.pem")).unwrap());
    // Both CAs have the same name, as they do after one was made anew: only the signature tells them apart.
    assert!(message(&source).contains("signature does not verify"), "{}", message(&source));
    source.crl = Some(PemInput::read(&own.path().join("server.pem")).unwrap());
    assert!(message(&source).contains("holds no PEM block `X509 CRL`"));

    let first =
        CrlFacts::from_der(&PemInput::read(&own.path().join("crl.pem")).unwrap().crls().unwrap()[0]).unwrap();
    let second = pki::write_crl(own.path(), &["bob".to_owned()]).unwrap();
    assert_ne!(second.number, first.number);
    let bob = PemInput::read(&own.path().join("bob.pem")).unwrap().certificates().unwrap();
    let facts = CertificateFacts::from_der(&bob[0]).unwrap();
    assert!(second.revoked.contains(&facts.serial));
    assert!(!second.is_expired(Timestamp::now()));
}

#[test]
fn an_open_connection_is_judged_by_the_rules_of_now() {
    let pki = Pki::new();
    let chain =
        |name: &str| PemInput::read(&pki.path().join(format!("{name}.pem"))).unwrap().certificates().unwrap();
    let address = "192.0.2.1:1".parse().unwrap();
    let bob = PeerIdentity::new(chain("bob"), address).unwrap();
    assert!(pki.tls(TlsOptions::default()).permits(&bob));
    let only_alice: Allowed = Arc::new(|facts| facts.common_name == "alice");
    assert!(!pki.tls(TlsOptions { allowed: Some(only_alice), ..TlsOptions::default() }).permits(&bob));
    pki::write_crl(pki.path(), &["bob".to_owned()]).unwrap();
    assert!(!pki.tls(TlsOptions::default()).permits(&bob));
    let server = PeerIdentity::new(chain("server"), address).unwrap();
    assert!(!pki.tls(TlsOptions::default()).permits(&server));
}

#[test]
fn a_ca_that_expires_ends_what_rests_on_it_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    openssl(dir.path(), P256, GOOD);
    run(
        dir.path(),
        &format!(
            "{P256} -out other.key; \
             openssl req -x509 -new -key other.key -days 60 -subj /CN=Other-CA \
                 -addext keyUsage=critical,keyCertSign,cRLSign -out other.pem; \
             openssl req -new -key client.key -subj /CN=client -out client.csr; \
             printf extendedKeyUsage=clientAuth > client.ext; \
             for ca in ca other; do openssl x509 -req -in client.csr -CA $ca.pem -CAkey $ca.key -CAcreateserial -days 90 \
                 -extfile client.ext -out of-$ca.pem; done; \
             cat ca.pem other.pem > both.pem"
        ),
    );
    let tls = |ca: &str| {
        let ca = PemInput::read(&dir.path().join(ca)).unwrap();
        LoadedTls::load(&TlsSource { ca, ..source(dir.path()) }, TlsOptions::default()).unwrap()
    };
    let chain = |of: &str| PemInput::read(&dir.path().join(of)).unwrap().certificates().unwrap();
    let peer = |of: &str| PeerIdentity::new(chain(of), "10.0.0.7:5000".parse().unwrap()).unwrap();
    let after = |days: u64| {
        let now = UnixTime::now().as_secs();
        UnixTime::since_unix_epoch(std::time::Duration::from_secs(now + days * 86400))
    };
    let (alone, both) = (tls("ca.pem"), tls("both.pem"));
    for (days, of_ca, of_other) in [(0, true, true), (29, true, true), (31, false, true), (61, false, false)]
    {
        assert_eq!(alone.permits_at(&peer("of-ca.pem"), after(days)), of_ca, "{days}");
        assert!(!alone.permits_at(&peer("of-other.pem"), after(days)), "{days}");
        assert_eq!(both.permits_at(&peer("of-ca.pem"), after(days)), of_ca, "{days}");
        assert_eq!(both.permits_at(&peer("of-other.pem"), after(days)), of_other, "{days}");
    }
    let why = |tls: &LoadedTls, of: &str| {
        let chain = chain(of);
        tls.verifier.verify_client_cert(&chain[0], &[], after(31)).unwrap_err()
    };
    let expired = rustls::Error::from(CertificateError::Expired);
    assert_eq!((why(&alone, "of-ca.pem"), why(&both, "of-ca.pem")), (expired.clone(), expired));
    assert_eq!(why(&alone, "of-other.pem"), CertificateError::UnknownIssuer.into());

    // Started with one that has expired: beside a good one it does no harm.
    let at = |days: i64| Timestamp::now() + jiff::SignedDuration::from_hours(24 * days);
    let ca = PemInput::read(&dir.path().join("both.pem")).unwrap();
    assert_eq!(Trust::load_at(&ca, None, at(31)).unwrap().ca.len(), 2);
    assert!(matches!(Trust::load_at(&ca, None, at(61)), Err(TlsError::Expired { .. })));

    // What is no CA does not become one by having expired.
    run(
        dir.path(),
        "openssl x509 -req -in server.csr -signkey server.key -days 9 -extfile server.ext -out self.pem; cat self.pem other.pem > odd.pem",
    );
    let odd = PemInput::read(&dir.path().join("odd.pem")).unwrap();
    assert!(matches!(Trust::load_at(&odd, None, at(31)), Err(TlsError::WrongUsage { .. })));

    // With a list of each, and one that has been revoked.
    let lists = |ca: &str| {
        let key =
            rcgen::KeyPair::from_pem(&std::fs::read_to_string(dir.path().join(format!("{ca}.key"))).unwrap());
        let pem = std::fs::read_to_string(dir.path().join(format!("{ca}.pem"))).unwrap();
        let issuer = rcgen::Issuer::from_ca_cert_pem(&pem, key.unwrap()).unwrap();
        let serial = CertificateFacts::from_der(&chain("of-ca.pem")[0]).unwrap().serial;
        pki::list(&issuer, &if ca == "ca" { vec![serial] } else { vec![] })
    };
    let crl = PemInput::new("lists", lists("ca") + &lists("other"));
    let listed =
        LoadedTls::load(&TlsSource { ca, crl: Some(crl), ..source(dir.path()) }, TlsOptions::default());
    let listed = listed.unwrap();
    let until: Vec<_> = listed.crls.iter().map(|list| listed.trust().until(list).unwrap()).collect();
    assert_eq!(until, [listed.ca[0].not_after, listed.ca[1].not_after]);
    assert!(!listed.permits(&peer("of-ca.pem")));
    for days in [0, 31] {
        assert!(listed.permits_at(&peer("of-other.pem"), after(days)), "{days}");
    }
    let why = |days| {
        let chain = chain("of-ca.pem");
        listed.verifier.verify_client_cert(&chain[0], &[], after(days)).unwrap_err()
    };
    assert_eq!(why(0), CertificateError::Revoked.into());
}

#[test]
fn a_renewed_intermediate_goes_by_its_own_list() {
    let pem = |dir: &Path, file: &str| std::fs::read_to_string(dir.join(file)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    openssl(dir.path(), P256, GOOD);
    // The intermediate's certificate that is trusted here has expired; clients send the one that came after it.
    run(
        dir.path(),
        &format!(
            "{P256} -out between.key; \
             openssl req -new -key between.key -subj /CN=Between-CA -out between.csr; \
             printf 'basicConstraints=critical,CA:TRUE\\nkeyUsage=critical,keyCertSign,cRLSign\\n' > between.ext; \
             for days in 5 20; do openssl x509 -req -in between.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days $days \
                 -extfile between.ext -out between$days.pem; done; \
             openssl req -new -key client.key -subj /CN=client -out client.csr; \
             printf extendedKeyUsage=clientAuth > client.ext; \
             openssl x509 -req -in client.csr -CA between20.pem -CAkey between.key -CAcreateserial -days 20 \
                 -extfile client.ext -out of.pem; \
             cat ca.pem between5.pem > both.pem; cat of.pem between20.pem > chain.pem"
        ),
    );
    let chain = PemInput::read(&dir.path().join("chain.pem")).unwrap().certificates().unwrap();
    let serial = CertificateFacts::from_der(&chain[0]).unwrap().serial;
    let peer = PeerIdentity::new(chain, "10.0.0.7:5000".parse().unwrap()).unwrap();
    let list = |certificate: &str, key: &str, serials: &[String]| {
        let key = rcgen::KeyPair::from_pem(&pem(dir.path(), key)).unwrap();
        let issuer = rcgen::Issuer::from_ca_cert_pem(&pem(dir.path(), certificate), key).unwrap();
        pki::list(&issuer, serials)
    };
    let days =
        UnixTime::since_unix_epoch(std::time::Duration::from_secs(UnixTime::now().as_secs() + 8 * 86400));
    for (revoked, is_permitted) in [(vec![], true), (vec![serial], false)] {
        let of_between = list("between5.pem", "between.key", &revoked);
        let tls = |lists: String| {
            let ca = PemInput::read(&dir.path().join("both.pem")).unwrap();
            let crl = Some(PemInput::new("lists", lists));
            LoadedTls::load(&TlsSource { ca, crl, ..source(dir.path()) }, TlsOptions::default()).unwrap()
        };
        let both = tls(list("ca.pem", "ca.key", &[]) + &of_between);
        assert_eq!(both.permits_at(&peer, days), is_permitted);
        // Without a list of its own the CA above knows nothing; the reason is what the other one says.
        let (leaf, rest) = peer.chain().split_first().unwrap();
        let why = tls(of_between).verifier.verify_client_cert(leaf, rest, days).unwrap_err();
        let wanted = if is_permitted { CertificateError::Expired } else { CertificateError::Revoked };
        assert_eq!(why, wanted.into());
    }
}
