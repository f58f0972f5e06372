//! `patch-executor check`, as the root side starts it.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::{
    net::TcpListener,
    process::{Command, Output},
};

use serde_json::{Value, json};

#[expect(clippy::disallowed_methods, reason = "a test of the program")]
fn check(what: Option<&Value>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_patch-executor"));
    command.arg("check").env_clear();
    if let Some(what) = what {
        command.env("LINUX_PATCH_CHECK", what.to_string());
    }
    command.output().unwrap()
}

fn answer(what: &Value) -> Value {
    let said = check(Some(what));
    assert!(said.status.success(), "{said:?}");
    let text = String::from_utf8(said.stdout).unwrap();
    assert_eq!(text.lines().count(), 1, "{text}");
    serde_json::from_str(&text).unwrap()
}

#[test]
fn a_port_that_accepts_holds_and_a_closed_one_does_not() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let what = json!({"type": "tcp", "address": address, "timeout_seconds": 1});
    assert_eq!(answer(&what), json!({"problem": null}));
    drop(listener);
    let problem = answer(&what)["problem"].to_string();
    assert!(problem.contains("cannot connect"), "{problem}");
    let url = format!("http://{address}/");
    let problem = answer(&json!({"type": "http", "url": url, "timeout_seconds": 1}))["problem"].to_string();
    assert!(problem.contains("does not answer"), "{problem}");
}

/// The kernel tells the listener who the peer is.
#[test]
fn whoever_speaks_to_the_network_is_not_root() {
    use std::io::Read;
    if !nix::unistd::geteuid().is_root() {
        return;
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let url = format!("http://{address}/");
    let asking =
        std::thread::spawn(move || answer(&json!({"type": "http", "url": url, "timeout_seconds": 20})));
    let (mut stream, peer) = listener.accept().unwrap();
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let port = format!(":{:04X}", peer.port());
    let line = table.lines().find(|line| line.split_whitespace().nth(1).is_some_and(|a| a.ends_with(&port)));
    let uid = line.and_then(|line| line.split_whitespace().nth(7)).unwrap().to_owned();
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    assert_eq!(uid, nobody.uid.to_string());
    let mut request = [0; 1024];
    let n = stream.read(&mut request).unwrap();
    assert!(request[..n].starts_with(b"GET / HTTP/1.1\r\n"));
    std::io::Write::write_all(&mut stream, b"HTTP/1.1 204 No Content\r\n\r\n").unwrap();
    assert_eq!(asking.join().unwrap(), json!({"problem": null}));
}

#[test]
fn what_is_not_understood_is_not_done() {
    assert!(!check(None).status.success());
    assert!(!check(Some(&json!({"type": "tcp"}))).status.success());
    let other = json!({"type": "command", "command": ["/usr/bin/true"], "timeout_seconds": 1});
    assert_eq!(answer(&other), json!({"problem": "not a check of the network"}));
}
