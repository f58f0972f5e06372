//! Reading the host and its agent.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use anyhow::{Context as _, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use patch_types::api::HealthStatus;

use super::Context;
use crate::{
    exit::Exit,
    render::{clean, compliance, host},
};

pub(super) async fn info(context: &Context) -> anyhow::Result<Exit> {
    let answer = context.client.info().await?;
    context.out.answer(&answer.raw, |_| host::info(&answer))?;
    Ok(Exit::Done)
}

pub(super) async fn services(context: &Context, name: Option<&str>) -> anyhow::Result<Exit> {
    if let Some(name) = name {
        let answer = context.client.service(name).await?;
        context.out.answer(&answer.raw, |_| host::service(&answer))?;
    } else {
        let answer = context.client.services().await?;
        context.out.answer(&answer.raw, |style| host::services(style, &answer))?;
    }
    Ok(Exit::Done)
}

pub(super) async fn compliance(context: &Context) -> anyhow::Result<Exit> {
    let answer = context.client.compliance().await?;
    context.out.answer(&answer.raw, |style| compliance::report(style, &answer))?;
    Ok(match &answer.cannot_tell {
        _ if answer.summary.over_promise > 0 => Exit::OverPromise,
        Some(_) => Exit::Untold,
        None => Exit::Done,
    })
}

pub(super) async fn health(context: &Context) -> anyhow::Result<Exit> {
    let answer = context.client.health().await?;
    context.out.answer(&answer.raw, |style| host::health(style, &answer))?;
    Ok(if answer.status == HealthStatus::Unhealthy { Exit::Failed } else { Exit::Done })
}

/// The largest list that an agent takes, as PEM in JSON.
const MAX_LIST: u64 = (1 << 20) - 1024;

pub(super) async fn put_crl(context: &Context, file: &Path) -> anyhow::Result<Exit> {
    let text = list_in(file)?;
    let answer = context.client.put_crl(&text).await?;
    context.out.answer(&answer.raw, |_| host::crl(&answer))?;
    Ok(Exit::Done)
}

/// A list's text, or its DER in base64.
fn list_in(file: &Path) -> anyhow::Result<String> {
    let is_input = file == Path::new("-");
    let name = if is_input { "standard input".to_owned() } else { file.display().to_string() };
    let source: Box<dyn io::Read> = if is_input {
        Box::new(io::stdin().lock())
    } else {
        Box::new(File::open(file).with_context(|| format!("cannot read {name}"))?)
    };
    let mut bytes = Vec::new();
    source.take(MAX_LIST + 1).read_to_end(&mut bytes).with_context(|| format!("cannot read {name}"))?;
    ensure!(bytes.len() as u64 <= MAX_LIST, "{name} is too long: an agent takes less than 1 MiB");
    // DER begins with a sequence, which no text does.
    if bytes.first() == Some(&0x30) {
        return Ok(STANDARD.encode(&bytes));
    }
    let text = String::from_utf8(bytes).ok().filter(|text| text.contains("-----BEGIN X509 CRL-----"));
    text.with_context(|| {
        format!("{name} holds no revocation list: neither PEM (-----BEGIN X509 CRL-----) nor DER")
    })
}

pub(super) async fn metrics(context: &Context) -> anyhow::Result<Exit> {
    let text = context.client.metrics().await?;
    context.out.print(&clean::text(&text))?;
    Ok(Exit::Done)
}

pub(super) async fn openapi(context: &Context) -> anyhow::Result<Exit> {
    let text = context.client.openapi().await?;
    context.out.print(&clean::json(&text))?;
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_sent_as_text_whatever_it_is_kept_as() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("crl");
        let put = |bytes: &[u8]| std::fs::write(&file, bytes).unwrap();
        let pem = "-----BEGIN X509 CRL-----\nMAA=\n-----END X509 CRL-----\n";
        put(pem.as_bytes());
        assert_eq!(list_in(&file).unwrap(), pem);
        put(&[0x30, 0]);
        assert_eq!(list_in(&file).unwrap(), "MAA=");
        for bad in [&b""[..], b"-----BEGIN CERTIFICATE-----", &[0xff, 0]] {
            put(bad);
            assert!(list_in(&file).unwrap_err().to_string().contains("no revocation list"));
        }
        put(&vec![0x30; MAX_LIST as usize + 1]);
        assert!(list_in(&file).unwrap_err().to_string().contains("too long"));
        assert!(list_in(&dir.path().join("none")).unwrap_err().to_string().contains("cannot read"));
    }
}
