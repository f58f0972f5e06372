//! What the documentation tells people to type is typed here.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use system_tests::trials::trial;

use crate::fixture::Agent;

pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("the_documented_certificates_work", the_documented_certificates_work)]
}

/// The shell blocks of a page, in order.
fn shell_blocks(page: &str) -> Result<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(page);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let blocks = text.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    Ok(blocks.map(str::to_owned).collect())
}

fn the_documented_certificates_work() -> Result<()> {
    let agent = Agent::boot("documented", &[])?;
    let dir = tempfile::tempdir()?;
    let blocks = shell_blocks("certificates.md")?;
    ensure!(blocks.len() >= 4, "the page has {} blocks of commands", blocks.len());
    for block in blocks {
        let output = Command::new("bash")
            .args(["-euc", &block])
            .current_dir(dir.path())
            .env("HOST_IP", agent.host.ip().to_string())
            .output()?;
        ensure!(
            output.status.success(),
            "{block}\nended with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    for (file, mode) in [("ca.pem", "644"), ("server.pem", "644"), ("server.key.pem", "600")] {
        agent.host.push_file(&dir.path().join(file), &format!("/etc/linux_patch_api/certs/{file}"), mode)?;
    }
    agent.host.exec_ok(&["linux-patch-api", "check-config"])?;
    agent.host.exec_ok(&["systemctl", "restart", "linux-patch-api"])?;
    let file = |name: &str| dir.path().join(name).display().to_string();
    let (ca, cert, key) = (file("ca.pem"), file("client.pem"), file("client.key.pem"));
    let url = format!("https://{}:12443/api/v1/system/info", agent.host.ip());
    let output = agent.network.exec(&[
        "curl",
        "--silent",
        "--show-error",
        "--cacert",
        &ca,
        "--cert",
        &cert,
        "--key",
        &key,
        &url,
    ])?;
    ensure!(output.stdout.contains("\"success\":true"), "{output:?}");
    Ok(())
}
