//! The shipped alert rules and the dashboard, in a real Prometheus that scrapes a real agent.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use system_tests::{trials::trial, wait};

use crate::fixture::Agent;

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("each_alert_fires_when_it_should", each_alert_fires_when_it_should),
        trial("prometheus_finds_every_metric_that_is_shown", prometheus_finds_every_metric_that_is_shown),
    ]
}

const RULES: &str = "linux-patch-api.rules.yml";

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/monitoring").join(name)
}

fn promtool(args: &[&str], directory: &Path) -> Result<()> {
    let output = Command::new("promtool")
        .args(args)
        .current_dir(directory)
        .output()
        .context("cannot start promtool")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "promtool {args:?}: {said}{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

fn each_alert_fires_when_it_should() -> Result<()> {
    promtool(&["check", "rules", RULES], &shipped(""))?;
    promtool(&["test", "rules", "rules.test.yml"], &shipped("tests"))?;
    // No rule without a test.
    let (rules, tests) =
        (fs::read_to_string(shipped(RULES))?, fs::read_to_string(shipped("tests/rules.test.yml"))?);
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    ensure!(alerts.len() > 10);
    for alert in alerts {
        ensure!(tests.contains(&format!("alertname: {alert}\n")), "{alert} has no test");
    }
    Ok(())
}

/// The names of ours in a text of queries.
fn names(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("linux_patch_")).collect()
}

/// Ends with the test.
struct Prometheus(Child);

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn prometheus_finds_every_metric_that_is_shown() -> Result<()> {
    let agent = Agent::boot("monitored", &[])?;
    let dashboard = fs::read_to_string(shipped("grafana-dashboard.json"))?;
    let board: Value = serde_json::from_str(&dashboard)?;
    let panels = board["panels"].as_array().context("no panels")?;
    let ids: BTreeSet<_> = panels.iter().filter_map(|panel| panel["id"].as_u64()).collect();
    ensure!(ids.len() == panels.len() && panels.len() > 10, "the panels' ids are not unique");
    for panel in panels {
        let targets = panel["targets"].as_array().context("a panel without queries")?;
        ensure!(
            panel["title"].is_string() && panel["gridPos"]["w"].is_u64() && !targets.is_empty(),
            "{panel:#}"
        );
    }
    let queries: Vec<&str> = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().into_iter().flatten())
        .filter_map(|target| target["expr"].as_str())
        .collect();

    // So that each family has a sample: a job that ended, and a configuration that was changed.
    agent.change("POST", "/packages", &json!({"packages": [{"name": "lp-plain"}]}))?;
    agent.host.shell("sed -i 's/level: INFO/level: DEBUG/' /etc/linux_patch_api/config.yaml; systemctl reload linux-patch-api")?;

    let dir = tempfile::tempdir()?;
    let config = format!(
        "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\n\
         rule_files: [{}]\n\
         scrape_configs:\n  - job_name: linux-patch-api\n    scheme: https\n    metrics_path: /api/v1/metrics\n    \
         tls_config: {{ca_file: {}, cert_file: {}, key_file: {}}}\n    static_configs: [{{targets: ['{}:12443']}}]\n",
        shipped(RULES).display(),
        agent.pem("ca.pem"),
        agent.pem("alice.pem"),
        agent.pem("alice.key.pem"),
        agent.host.ip(),
    );
    let path = dir.path().join("prometheus.yml");
    fs::write(&path, config)?;
    // The port is free: the network is this test's own.
    let address = format!("{}:9090", agent.network.address());
    let mut command = agent.network.command(&[
        "prometheus",
        &format!("--config.file={}", path.display()),
        &format!("--storage.tsdb.path={}", dir.path().join("data").display()),
        &format!("--web.listen-address={address}"),
    ]);
    let _prometheus = Prometheus(
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("prometheus")?,
    );
    let get = |path: &str| -> Result<Value> {
        let url = format!("http://{address}/api/v1/{path}");
        let output = agent.network.exec(&["curl", "--silent", "--globoff", "--max-time", "5", &url])?;
        Ok(serde_json::from_str(&output.stdout).unwrap_or(Value::Null))
    };
    let limit = Duration::from_secs(40);
    let mut last = Value::Null;
    wait::until("Prometheus has scraped the agent", limit, || {
        last = get("targets")?;
        Ok((last["data"]["activeTargets"][0]["health"] == "up").then_some(()))
    })
    .with_context(|| format!("{last:#}"))?;

    let rules = fs::read_to_string(shipped(RULES))?;
    let wanted: BTreeSet<&str> = names(&rules)
        .into_iter()
        .chain(queries.iter().flat_map(|query| names(query)))
        .chain(names(&dashboard))
        .collect();
    let known = get("label/__name__/values")?["data"].clone();
    let known: BTreeSet<&str> = known.as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let missing: Vec<_> = wanted.iter().filter(|name| !known.contains(**name)).collect();
    ensure!(missing.is_empty(), "no agent has {missing:?}");

    // Each rule can be evaluated, and so can each query.
    wait::until("Prometheus has evaluated the rules", limit, || {
        let told = get("rules")?;
        let groups = told["data"]["groups"].as_array().cloned().unwrap_or_default();
        let rules: Vec<Value> =
            groups.iter().flat_map(|group| group["rules"].as_array().cloned().unwrap_or_default()).collect();
        last = told;
        Ok((rules.len() > 10 && rules.iter().all(|rule| rule["health"] == "ok")).then_some(()))
    })
    .with_context(|| format!("{last:#}"))?;
    for query in queries {
        let query = query.replace("$instance", ".*");
        let url = format!("http://{address}/api/v1/query");
        let output = agent.network.exec(&[
            "curl",
            "--silent",
            "--get",
            "--data-urlencode",
            &format!("query={query}"),
            &url,
        ])?;
        ensure!(output.stdout.contains("\"status\":\"success\""), "{query}: {}", output.stdout);
    }
    Ok(())
}
