//! What the documentation tells people to type is typed here.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use system_tests::trials::trial;

use crate::fixture::Agent;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("the_documented_certificates_work", the_documented_certificates_work),
        trial("the_documented_operations_work", the_documented_operations_work),
        trial("what_the_documents_name_exists", what_the_documents_name_exists),
    ]
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

fn the_documented_operations_work() -> Result<()> {
    let agent = Agent::boot("operated", &[])?;
    agent.change("POST", "/packages", &serde_json::json!({"packages": [{"name": "lp-plain"}]}))?;
    let blocks = shell_blocks("operations.md")?;
    ensure!(blocks.len() >= 8, "the page has {} blocks of commands", blocks.len());
    for block in blocks {
        let output = agent.host.exec(&["bash", "-euo", "pipefail", "-c", &block])?;
        ensure!(output.success(), "{block}\n{output:?}");
    }
    agent.wait_until_up()
}

/// The tests that the threat model names, the alerts that the operations name, the pages that pages refer to.
fn what_the_documents_name_exists() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let read = |path: &str| -> Result<String> {
        fs::read_to_string(root.join(path)).with_context(|| format!("cannot read {path}"))
    };
    let output = Command::new("grep")
        .args(["-rhoE", "--include=*.rs", r"\bfn [a-z0-9_]+"])
        .arg(root.join("crates"))
        .output()?;
    let known = String::from_utf8(output.stdout)?;
    let known: std::collections::BTreeSet<&str> =
        known.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').collect();
    let model = read("docs/threat-model.md")?;
    let tests: Vec<&str> = model
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|word| word.matches('_').count() >= 3 && !word.contains('/'))
        .collect();
    ensure!(tests.len() > 30, "{tests:?}");
    for test in tests {
        ensure!(known.contains(test), "docs/threat-model.md names {test}, and there is no such test");
    }
    let (operations, rules) =
        (read("docs/operations.md")?, read("packaging/monitoring/linux-patch-api.rules.yml")?);
    for alert in rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        let short =
            alert.trim_start_matches("PatchApiConfiguration").trim_start_matches("PatchApiCertificate");
        ensure!(
            operations.contains(alert) || operations.contains(&format!("…{short}")),
            "docs/operations.md lacks {alert}"
        );
    }
    Ok(())
}
