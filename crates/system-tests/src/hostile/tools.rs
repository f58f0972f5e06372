//! Other people's tools against the agent: schemathesis and sslyze, in an environment of their own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use super::Stage;

/// What is installed, at exactly these versions.
const PACKAGES: &[&str] = &["schemathesis==4.32.5", "sslyze==6.3.1"];

/// What the document cannot say.
const CONFIG: &str = include_str!("schemathesis.toml");

/// The Python environment with the tools, made once below the target directory.
///
/// # Errors
/// When it cannot be made: it needs Debian's `python3-venv` and, once, the registry.
pub fn environment() -> Result<PathBuf> {
    let target = std::env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"), PathBuf::from);
    let place = target.join("hostile-venv");
    let stamp = place.join("lp-installed");
    let wanted = PACKAGES.join(" ");
    if fs::read_to_string(&stamp).is_ok_and(|text| text == wanted) {
        return Ok(place);
    }
    let run = |program: &Path, args: &[&str]| -> Result<()> {
        let output = Command::new(program).args(args).stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("cannot start {}", program.display()))?;
        ensure!(
            output.status.success(),
            "{}: {}",
            program.display(),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    };
    run(Path::new("python3"), &["-m", "venv", &place.to_string_lossy()])
        .context("apt-get install python3-venv")?;
    run(
        &place.join("bin/pip"),
        &[&["install", "--quiet", "--disable-pip-version-check"], PACKAGES].concat(),
    )?;
    fs::write(stamp, wanted)?;
    Ok(place)
}

/// All checks of schemathesis on all operations of the agent's own document, with so many examples each. Gives its
/// summary.
///
/// # Errors
/// When it finds anything; the message has its report.
pub fn schemathesis(stage: &Stage, examples: u32, seed: u64, phases: &str) -> Result<String> {
    let tools = environment()?;
    let work = tempfile::tempdir()?;
    let config = work.path().join("schemathesis.toml");
    fs::write(&config, CONFIG)?;
    // Nobody carries a reboot out here, and each would be watched for long.
    let ceiling = "operations: [install, update, remove, hold, apply_patches, refresh, rollback]\n";
    stage.root.push(ceiling, "/etc/linux_patch_api/ceiling.yaml", "644")?;
    let pem = |name: &str| stage.pki.path().join(name).display().to_string();
    let output = Command::new(tools.join("bin/schemathesis"))
        .current_dir(work.path())
        .arg("--config-file")
        .arg(&config)
        .arg("run")
        .arg(format!("https://{}/api/v1/openapi.json", stage.address))
        .args(["--tls-verify", &pem("ca.pem"), "--request-cert", &pem("alice.pem")])
        .args(["--request-cert-key", &pem("alice.key.pem"), "--checks", "all", "--phases", phases])
        .args(["--max-examples", &examples.to_string(), "--seed", &seed.to_string()])
        .args(["--continue-on-failure", "--generation-database", "none", "--no-color"])
        .args(["--suppress-health-check", "all", "--request-timeout", "60", "--warnings", "off"])
        .stdin(Stdio::null())
        .output()
        .context("cannot start schemathesis")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "schemathesis, seed {seed}:\n{said}\n{}\nthe agent's log:\n{}",
        String::from_utf8_lossy(&output.stderr),
        stage.log()?
    );
    Ok(said
        .lines()
        .filter(|line| !line.trim().is_empty())
        .rev()
        .take(12)
        .collect::<Vec<_>>()
        .into_iter()
        .rev()
        .collect::<Vec<_>>()
        .join("\n"))
}

/// All of sslyze's scans, with a client's certificate: TLS 1.3 alone, and no finding.
///
/// # Errors
/// When it finds anything.
pub fn sslyze(stage: &Stage) -> Result<String> {
    let tools = environment()?;
    let work = tempfile::tempdir()?;
    let json = work.path().join("sslyze.json");
    let pem = |name: &str| stage.pki.path().join(name).display().to_string();
    let output = Command::new(tools.join("bin/sslyze"))
        .args([
            "--quiet",
            "--mozilla_config=disable",
            "--cert",
            &pem("alice.pem"),
            "--key",
            &pem("alice.key.pem"),
        ])
        .args([
            "--sslv2",
            "--sslv3",
            "--tlsv1",
            "--tlsv1_1",
            "--tlsv1_2",
            "--tlsv1_3",
            "--early_data",
            "--resum",
        ])
        .args(["--heartbleed", "--openssl_ccs", "--robot", "--reneg", "--compression", "--fallback"])
        .arg("--json_out")
        .arg(&json)
        .arg(stage.address.to_string())
        .stdin(Stdio::null())
        .output()
        .context("cannot start sslyze")?;
    ensure!(output.status.success(), "sslyze: {}", String::from_utf8_lossy(&output.stderr));
    let report: serde_json::Value = serde_json::from_str(&fs::read_to_string(&json)?)?;
    let server = report["server_scan_results"].get(0).context("sslyze scanned nothing")?;
    ensure!(server["scan_status"] == "COMPLETED", "sslyze could not scan: {server:#}");
    let results = &server["scan_result"];
    let accepted = |protocol: &str| -> Result<usize> {
        let suites = &results[protocol]["result"]["accepted_cipher_suites"];
        suites
            .as_array()
            .map(Vec::len)
            .with_context(|| format!("no result for {protocol}: {:#}", results[protocol]))
    };
    for old in ["ssl_2_0", "ssl_3_0", "tls_1_0", "tls_1_1", "tls_1_2"] {
        ensure!(accepted(&format!("{old}_cipher_suites"))? == 0, "{old} is spoken");
    }
    let suites = accepted("tls_1_3_cipher_suites")?;
    ensure!(suites > 0, "TLS 1.3 is not spoken");
    for (scan, field) in [
        ("heartbleed", "is_vulnerable_to_heartbleed"),
        ("openssl_ccs_injection", "is_vulnerable_to_ccs_injection"),
        ("session_renegotiation", "is_vulnerable_to_client_renegotiation_dos"),
        ("tls_compression", "supports_compression"),
        ("tls_1_3_early_data", "supports_early_data"),
    ] {
        let found = &results[scan]["result"][field];
        ensure!(*found != serde_json::Value::Bool(true), "{scan}: {:#}", results[scan]);
    }
    let robot = results["robot"]["result"]["robot_result"].as_str().unwrap_or_default();
    ensure!(!robot.starts_with("VULNERABLE"), "robot: {robot}");
    Ok(format!("TLS 1.3 alone, {suites} cipher suites, nothing found"))
}
