//! Webhooks: one POST of a CloudEvent, signed as Standard Webhooks say.
//!
//! HTTP is spoken by hand: all that is needed is one request of a known length and the status of its answer. Redirects are
//! not followed, as the report is meant for the address that was configured.

use std::time::Instant;

use base64::{Engine, engine::general_purpose::STANDARD};
use hmac::{Hmac, KeyInit, Mac};
use jiff::Timestamp;
use patch_types::notifications::{Webhook, WebhookUrl};
use serde_json::{Value, json};
use sha2::Sha256;

use crate::{
    error::{NotifyError, Reason},
    exchange::Server,
    report::Message,
    secret::Secrets,
};

/// How much of an answer's head is read, in bytes.
const MOST_HEAD: usize = 16 * 1024;

pub(crate) fn send(webhook: &Webhook, secrets: &Secrets, message: &Message) -> Result<(), NotifyError> {
    let url = WebhookUrl::parse(&webhook.url).ok_or_else(|| {
        NotifyError::new(
            Reason::Settings,
            "the webhook's URL is not of the form https://HOST[:PORT]/PATH",
            "correct it; http is only for this host itself",
        )
    })?;
    let secret =
        secrets.read("secret", webhook.secret_file.as_deref(), webhook.secret_credential.as_deref())?;
    let body = event(message).to_string();
    let signature = match secret {
        Some(secret) => Some(signature(&secret, message.id(), Timestamp::now().as_second(), &body)?),
        None => None,
    };
    let request = request(&url, message.id(), signature.as_ref(), &body);
    let whom = format!("the webhook's server {}:{}", url.host, url.port);
    let server = Server {
        whom: &whom,
        tls: url.tls,
        host: &url.host,
        port: url.port,
        ca_file: webhook.ca_file.as_deref(),
    };
    let is_enough = |head: &[u8]| head.len() >= MOST_HEAD || head.contains(&b'\n');
    let head = server.exchange(&request, Instant::now() + webhook.timeout(), is_enough)?;
    judge(&whom, &head)
}

/// The event in CloudEvents' structured form.
fn event(message: &Message) -> Value {
    let reports: Vec<Value> = message
        .reports()
        .iter()
        .map(|report| {
            json!({
                "id": report.id, "time": report.at, "result": report.result, "summary": report.summary,
                "lines": report.lines, "data": report.data,
            })
        })
        .collect();
    json!({
        "specversion": "1.0",
        "id": message.id(),
        "source": format!("//{}/linux-patch", message.host()),
        "type": format!("linux-patch.report.{}", message.result().as_str()),
        "subject": message.host(),
        "time": message.at(),
        "datacontenttype": "application/json",
        "data": {"host": message.host(), "result": message.result(), "summary": message.subject(), "reports": reports},
    })
}

/// When the request was signed, in seconds since 1970, and the signature: over id, time and body, by HMAC-SHA256.
fn signature(secret: &str, id: &str, at: i64, body: &str) -> Result<(i64, String), NotifyError> {
    let key = match secret.strip_prefix("whsec_") {
        Some(encoded) => STANDARD.decode(encoded).map_err(|_| {
            NotifyError::new(
                Reason::Secret,
                "the webhook's secret begins with whsec_, but what follows is not base64",
                "copy it once more from where it was made",
            )
        })?,
        None => secret.as_bytes().to_vec(),
    };
    let unusable =
        |_| NotifyError::new(Reason::Secret, "the webhook's secret cannot be used", "make another one");
    let mut mac = Hmac::<Sha256>::new_from_slice(&key).map_err(unusable)?;
    mac.update(format!("{id}.{at}.{body}").as_bytes());
    Ok((at, format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()))))
}

fn request(url: &WebhookUrl, id: &str, signature: Option<&(i64, String)>, body: &str) -> Vec<u8> {
    let signed = signature
        .map(|(at, signature)| format!("webhook-timestamp: {at}\r\nwebhook-signature: {signature}\r\n"))
        .unwrap_or_default();
    format!(
        "POST {} HTTP/1.1\r\nHost: {}\r\nUser-Agent: linux-patch/{}\r\n\
         Content-Type: application/cloudevents+json; charset=utf-8\r\nContent-Length: {}\r\nwebhook-id: {id}\r\n{signed}\
         Connection: close\r\n\r\n{body}",
        url.path,
        url.authority,
        env!("CARGO_PKG_VERSION"),
        body.len(),
    )
    .into_bytes()
}

fn judge(whom: &str, head: &[u8]) -> Result<(), NotifyError> {
    let status = status(head);
    let refused = |message: String, advice: &str| Err(NotifyError::new(Reason::Rejected, message, advice));
    match status {
        Some(200..=299) => Ok(()),
        Some(code @ 300..=399) => refused(
            format!("{whom} answered {code}: it wants the report elsewhere"),
            "write the address that it names into the configuration; redirects are not followed",
        ),
        Some(code @ (401 | 403)) => refused(
            format!("{whom} answered {code}"),
            "check the URL, which may hold a token, and the secret by which requests are signed",
        ),
        Some(code @ (404 | 410)) => refused(
            format!("{whom} answered {code}: there is no such webhook"),
            "make a new one, or remove it here",
        ),
        Some(code) => refused(
            format!("{whom} answered {code}"),
            "see its log; it is tried again with the next delivery",
        ),
        None => refused(format!("{whom} did not answer in HTTP"), "check host and port"),
    }
}

/// The status in the first line of an answer.
fn status(head: &[u8]) -> Option<u16> {
    let line = head.split(|b| *b == b'\n').next()?;
    let mut words = line.split(|b| *b == b' ');
    let version = words.next()?;
    let code = std::str::from_utf8(words.next()?.trim_ascii_end()).ok()?;
    let is_code =
        version.starts_with(b"HTTP/1.") && code.len() == 3 && code.bytes().all(|b| b.is_ascii_digit());
    is_code.then(|| code.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::report::{RunResult, tests::report};

    #[test]
    fn an_event_is_a_cloud_event() {
        let message = Message::of(vec![report(7, RunResult::Changed, "1 package")]).unwrap();
        let event = event(&message);
        for (key, value) in [
            ("specversion", "1.0"),
            ("id", "00000000-0000-0000-0000-000000000007"),
            ("source", "//web1.example.org/linux-patch"),
            ("type", "linux-patch.report.changed"),
        ] {
            assert_eq!(event[key], value);
        }
        assert!(event["time"].as_str().unwrap().ends_with('Z'));
        assert_eq!(event["data"]["reports"][0]["data"]["packages"], 1);
    }

    #[test]
    fn requests_are_signed_as_standard_webhooks_say() {
        // The example of that specification.
        let secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
        let body = r#"{"test": 2432232314}"#;
        let (_, signature) =
            super::signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body).unwrap();
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
        assert!(super::signature("whsec_!", "a", 1, "").is_err());
        assert!(super::signature("plain", "a", 1, "").is_ok());
    }

    #[test]
    fn answers_are_understood() {
        for (head, expected) in [
            ("HTTP/1.1 204 No Content\r\n\r\n", Some(204)),
            ("HTTP/1.0 200\r\n", Some(200)),
            ("HTTP/2 200 OK\r\n", None),
            ("220 mail.example.org ESMTP\r\n", None),
            ("HTTP/1.1 20", None),
            ("HTTP/1.1 +20 x", None),
            ("", None),
        ] {
            assert_eq!(status(head.as_bytes()), expected, "{head}");
        }
        for (head, words) in
            [("HTTP/1.1 302 x", "redirects"), ("HTTP/1.1 410 x", "make a new one"), ("x", "host and port")]
        {
            assert!(judge("w", head.as_bytes()).unwrap_err().to_string().contains(words));
        }
        assert!(judge("w", b"HTTP/1.1 202 x").is_ok());
    }

    proptest! {
        #[test]
        fn nothing_becomes_a_header(summary in ".*|[\r\nA-Z: ]{0,40}", host in ".*|[a-z\r\n]{0,20}") {
            let mut one = report(1, RunResult::Failed, &summary);
            one.host = host;
            let message = Message::of(vec![one]).unwrap();
            let body = event(&message).to_string();
            let url = WebhookUrl::parse("https://h.example/x").unwrap();
            let request = String::from_utf8(request(&url, message.id(), Some(&(1, "v1,x".into())), &body)).unwrap();
            let (head, sent) = request.split_once("\r\n\r\n").unwrap();
            prop_assert_eq!(sent, body);
            prop_assert_eq!(head.split("\r\n").count(), 9);
        }

        #[test]
        fn any_answer_is_taken(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = judge("w", &bytes);
        }
    }
}
