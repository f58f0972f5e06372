//! Every read against the truth on the host.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use system_tests::trials::trial;

use crate::{
    fixture::{Agent, Answer},
    prometheus::samples,
};

pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("the_package_list_is_what_dpkg_says", the_package_list_is_what_dpkg_says),
        trial("patches_host_and_services_are_as_they_are", patches_host_and_services_are_as_they_are),
    ]
}

/// What dpkg calls a package's state, by the second letter of its short form.
fn state(abbreviation: &str) -> Option<&'static str> {
    match abbreviation.as_bytes().get(1)? {
        b'c' => Some("config-files"),
        b'H' => Some("half-installed"),
        b'U' => Some("unpacked"),
        b'F' => Some("half-configured"),
        b'W' => Some("triggers-awaited"),
        b't' => Some("triggers-pending"),
        b'i' => Some("installed"),
        _ => None,
    }
}

type Row = (String, String, bool, bool);

/// Version, state, held and automatic by name and architecture, as dpkg and apt-mark say.
fn truth(agent: &Agent) -> Result<BTreeMap<String, Row>> {
    let format = "${Package} ${Version} ${Architecture} ${db:Status-Abbrev}\n";
    let listed = agent.host.exec_ok(&["dpkg-query", "-W", "-f", format])?;
    let automatic = agent.host.exec_ok(&["apt-mark", "showauto"])?;
    let automatic: BTreeSet<&str> = automatic.lines().collect();
    let mut rows = BTreeMap::new();
    for line in listed.lines() {
        let mut words = line.split_whitespace();
        let mut word = || words.next().with_context(|| format!("dpkg-query printed {line:?}"));
        let (name, version, architecture, status) = (word()?, word()?, word()?, word()?);
        let Some(state) = state(status) else { continue };
        let row = (
            version.to_owned(),
            state.to_owned(),
            status.starts_with('h'),
            automatic.contains(name) && state != "config-files",
        );
        rows.insert(format!("{name}:{architecture}"), row);
    }
    Ok(rows)
}

fn told(list: &Value) -> Result<BTreeMap<String, Row>> {
    let packages = list["packages"].as_array().context("no packages")?;
    let text = |package: &Value, field: &str| package[field].as_str().unwrap_or_default().to_owned();
    let flag = |package: &Value, field: &str| package[field].as_bool().unwrap_or_default();
    Ok(packages
        .iter()
        .map(|package| {
            let key = format!("{}:{}", text(package, "name"), text(package, "architecture"));
            let row = (
                text(package, "version"),
                text(package, "status"),
                flag(package, "held"),
                flag(package, "auto_installed") && package["status"] != "config-files",
            );
            (key, row)
        })
        .collect())
}

fn ensure_list_is_true(agent: &Agent) -> Result<()> {
    let (truth, list) = (truth(agent)?, agent.get("/packages")?.data()?.clone());
    let told = told(&list)?;
    for (name, row) in &truth {
        ensure!(told.get(name) == Some(row), "{name} is {row:?} and is told as {:?}", told.get(name));
    }
    ensure!(
        told.len() == truth.len() && list["total"] == truth.len(),
        "{} against {}",
        told.len(),
        truth.len()
    );
    Ok(())
}

fn names(agent: &Agent, query: &str) -> Result<Vec<String>> {
    let list = agent.get(&format!("/packages?{query}"))?.data()?.clone();
    let packages = list["packages"].as_array().context("no packages")?;
    Ok(packages.iter().map(|p| p["name"].as_str().unwrap_or_default().to_owned()).collect())
}

fn the_package_list_is_what_dpkg_says() -> Result<()> {
    let agent = Agent::boot(
        "reading",
        &[
            "lp-plain=1.0-1",
            "lp-conf",
            "lp-held",
            "lp-postfail",
            "lp-lib",
            "lp-app",
            "lp-epoch",
            "lp-multi",
            "lp-tools",
        ],
    )?;
    let host = &agent.host;
    host.exec_ok(&["apt-mark", "hold", "lp-held"])?;
    host.exec_ok(&["apt-mark", "auto", "lp-lib"])?;
    host.exec_ok(&["apt-get", "-qq", "-y", "remove", "lp-conf"])?;
    ensure_list_is_true(&agent)?;

    // What is changed behind the agent's back is in the next answer.
    agent.repository.publish_day(1)?;
    host.exec_ok(&["apt-get", "-qq", "update"])?;
    ensure!(
        !host.exec(&["apt-get", "-qq", "-y", "install", "lp-postfail"])?.success(),
        "lp-postfail does not fail"
    );
    ensure_list_is_true(&agent)?;
    let etag = |answer: &Answer| -> Result<String> {
        // The headers were made lower-case.
        let tag = answer.headers.lines().find_map(|line| line.strip_prefix("etag: w/")).context("no ETag")?;
        Ok(format!("W/{tag}"))
    };
    // A filter for `upgradable` waits for the solver; without it the list may still be about to learn the candidates.
    agent.get("/packages?upgradable=true")?;
    let tag = etag(&agent.get("/packages")?)?;
    let condition = format!("If-None-Match: {tag}");
    let unchanged = agent.curl("/packages", &["--header", &condition])?;
    ensure!(unchanged.status == 304 && unchanged.text.is_empty(), "{}", unchanged.headers);
    host.shell("cd /root && apt-get -qq download lp-new && dpkg -i ./lp-new_*.deb")?;
    let changed = agent.curl("/packages", &["--header", &condition])?;
    ensure!(changed.status == 200 && etag(&changed)? != tag, "{}", changed.headers);
    ensure_list_is_true(&agent)?;
    for mark in [["hold", "lp-new"], ["unhold", "lp-new"], ["auto", "lp-new"], ["manual", "lp-new"]] {
        host.exec_ok(&["apt-mark", mark[0], mark[1]])?;
        ensure_list_is_true(&agent).with_context(|| format!("after apt-mark {}", mark[0]))?;
    }
    host.exec_ok(&["dpkg", "--remove", "lp-new"])?;
    ensure_list_is_true(&agent)?;

    filters_select(&agent)?;
    details_are_true(&agent)?;

    let job = agent.change("POST", "/packages", &json!({"packages": [{"name": "lp-virtual"}]}))?;
    ensure!(job["outcome"] == "applied" && agent.version("lp-provider")? == "1.1", "{job:#}");
    Ok(())
}

fn filters_select(agent: &Agent) -> Result<()> {
    for (query, expected) in [
        ("name=lp-plain", &["lp-plain"][..]),
        ("name=lp-pla", &[]),
        ("name=lp-*l*i*", &["lp-lib", "lp-multi", "lp-plain"]),
        ("name=lp-l*", &["lp-lib"]),
        ("name=*-epoch", &["lp-epoch"]),
        ("name=lp-multi:amd64", &["lp-multi"]),
        ("name=lp-multi:i386", &[]),
        ("name=lp-*&version=1.0-1", &["lp-plain"]),
        ("version=1:1.0~rc1", &["lp-epoch"]),
        ("status=held", &["lp-held"]),
        ("status=broken", &["lp-postfail"]),
        ("name=lp-conf&status=all", &["lp-conf"]),
        ("name=lp-conf&status=installed", &[]),
        ("name=lp-plain&upgradable=true", &["lp-plain"]),
        ("name=lp-plain&upgradable=false", &[]),
        ("name=lp-plain&status=upgradable", &["lp-plain"]),
        ("name=lp-postfail&status=upgradable", &[]),
        ("name=lp-*&status=installed&limit=2", &["lp-app", "lp-epoch"]),
        ("name=lp-*&status=installed&limit=2&offset=1", &["lp-epoch", "lp-held"]),
        ("name=lp-[a]", &[]),
    ] {
        let answer = agent.curl(&format!("/packages?{query}"), &["--globoff"])?;
        if query.contains('[') {
            ensure!(answer.status == 422 && answer.code() == "INVALID_REQUEST", "{query}: {}", answer.text);
            continue;
        }
        let found = names(agent, query)?;
        ensure!(found == expected, "{query}: {found:?}");
    }
    let page = agent.get("/packages?name=lp-*&status=installed&limit=1")?.data()?.clone();
    ensure!(page["total"] == names(agent, "name=lp-*&status=installed")?.len(), "{page:#}");
    let all = names(agent, "sort=name")?;
    let mut reversed = names(agent, "sort=name&order=desc")?;
    reversed.reverse();
    ensure!(all == reversed && all.is_sorted(), "names are not in order");

    let sizes = agent.get("/packages?sort=size&order=desc")?.data()?.clone();
    let sizes: Vec<u64> =
        sizes["packages"].as_array().into_iter().flatten().filter_map(|p| p["size"].as_u64()).collect();
    ensure!(sizes.len() == all.len() && sizes.is_sorted_by(|a, b| a >= b) && sizes.first() > sizes.last());
    let versions = agent.get("/packages?sort=version")?.data()?.clone();
    let versions: Vec<&str> =
        versions["packages"].as_array().into_iter().flatten().filter_map(|p| p["version"].as_str()).collect();
    // dpkg is asked about each neighbour.
    let script = "while read -r a b; do dpkg --compare-versions \"$a\" le \"$b\" || echo \"$a > $b\"; done";
    let pairs: String = versions.windows(2).map(|pair| format!("{}\n", pair.join(" "))).collect();
    let wrong = agent.host.exec_with(&["bash", "-c", script], pairs, std::time::Duration::from_secs(60))?;
    ensure!(wrong.success() && wrong.stdout.is_empty() && versions.len() == all.len(), "{wrong:?}");
    Ok(())
}

fn details_are_true(agent: &Agent) -> Result<()> {
    let detail =
        |name: &str| -> Result<Value> { Ok(agent.get(&format!("/packages/{name}"))?.data()?.clone()) };
    let plain = detail("lp-plain")?;
    ensure!(
        plain["version"] == "1.0-1" && plain["latest_version"] == "1.1-1" && plain["candidate"] == "1.1-1",
        "{plain:#}"
    );
    let versions: Vec<&str> =
        plain["versions"].as_array().into_iter().flatten().filter_map(|v| v["version"].as_str()).collect();
    ensure!(versions == ["1.1-1", "1.0-2", "1.0-1"], "{plain:#}");
    let suites: Vec<String> = plain["versions"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|v| {
            v["origins"][0]["codename"]
                .as_str()
                .or(v["origins"][0]["suite"].as_str())
                .unwrap_or_default()
                .to_owned()
        })
        .collect();
    ensure!(
        suites.len() == 3 && suites[0].ends_with("-security") && suites[1].ends_with("-updates"),
        "{suites:?} in {plain:#}"
    );
    ensure!(
        plain["versions"][2]["installed"] == true && plain["versions"][0]["installed"] == false,
        "{plain:#}"
    );

    let tools = detail("lp-tools")?;
    let files: BTreeSet<&str> =
        tools["files"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let listed = agent.host.exec_ok(&["dpkg", "-L", "lp-tools"])?;
    // The root itself is no file of a package.
    ensure!(files == listed.lines().filter(|line| *line != "/.").collect(), "{files:?} against {listed}");

    let app = detail("lp-app")?;
    ensure!(app["relations"]["depends"] == json!(["lp-lib (= 1.0)"]), "{app:#}");
    let lib = detail("lp-lib")?;
    ensure!(lib["reverse_dependencies"] == json!(["lp-app"]) && lib["auto_installed"] == true, "{lib:#}");

    let conf = detail("lp-conf")?;
    let sum = agent.host.exec_ok(&["md5sum", "/etc/lp-conf.conf"])?;
    ensure!(
        conf["status"] == "config-files"
            && conf["conffiles"][0]["path"] == "/etc/lp-conf.conf"
            && sum.starts_with(conf["conffiles"][0]["md5"].as_str().unwrap_or("?")),
        "{conf:#}"
    );
    let held = detail("lp-held")?;
    let why: Vec<&str> =
        held["why_not"].as_array().into_iter().flatten().filter_map(|c| c["kind"].as_str()).collect();
    ensure!(held["held"] == true && why == ["broken", "held"], "{held:#}");
    let epoch = detail("lp-epoch")?;
    ensure!(epoch["version"] == "1:1.0~rc1" && epoch["latest_version"] == "1:1.0", "{epoch:#}");
    let new = detail("lp-large")?;
    ensure!(
        new["status"] == "not-installed" && new["version"].is_null() && new["candidate"] == "1.1",
        "{new:#}"
    );
    let multi = detail("lp-multi:amd64")?;
    ensure!(multi["name"] == "lp-multi" || multi["name"] == "lp-multi:amd64", "{multi:#}");
    for missing in ["lp-no-such-thing", "lp-multi:i386"] {
        let answer = agent.get(&format!("/packages/{missing}"))?;
        ensure!(answer.status == 404 && answer.code() == "PKG_NOT_FOUND", "{missing}: {}", answer.text);
    }
    Ok(())
}

fn patches_host_and_services_are_as_they_are() -> Result<()> {
    let agent = Agent::boot("host-facts", &["lp-plain", "lp-tools", "lp-conf", "lp-reboot", "lp-daemon"])?;
    let patches = agent.get("/patches")?.data()?.clone();
    ensure!(patches["total"] == 0 && patches["patches"] == json!([]), "{patches:#}");
    agent.repository.publish_day(1)?;
    agent.host.exec_ok(&["apt-get", "-qq", "update"])?;
    let patches = agent.get("/patches")?.data()?.clone();
    let found: BTreeMap<&str, &Value> = patches["patches"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|patch| Some((patch["name"].as_str()?, patch)))
        .collect();
    let simulated = agent.host.exec_ok(&["apt-get", "-s", "upgrade"])?;
    let expected: BTreeSet<&str> =
        simulated.lines().filter_map(|line| line.strip_prefix("Inst ")?.split_whitespace().next()).collect();
    ensure!(found.keys().copied().collect::<BTreeSet<_>>() == expected, "{simulated} against {patches:#}");
    for (name, current, available, security) in [
        ("lp-plain", "1.0-1", "1.1-1", true),
        ("lp-tools", "1.0", "1.1", true),
        ("lp-conf", "1.0", "1.1", false),
    ] {
        let patch = found.get(name).context(name)?;
        ensure!(
            patch["current_version"] == current
                && patch["available_version"] == available
                && patch["security"] == security
                && patch["severity"] == "unknown"
                && patch["cve_ids"] == json!([])
                && patch["requires_reboot"] == false
                && patch["state"] == "ready"
                && patch["description"].as_str().is_some_and(|text| !text.is_empty())
                && patch["download_size"].as_u64().is_some_and(|size| size > 0),
            "{patch:#}"
        );
    }
    let security = found.values().filter(|patch| patch["security"] == true).count();
    ensure!(patches["security_updates"] == security && patches["total"] == expected.len(), "{patches:#}");

    system_info_is_true(&agent)?;
    services_are_true(&agent)?;
    health_metrics_and_document(&agent)
}

fn system_info_is_true(agent: &Agent) -> Result<()> {
    let host = &agent.host;
    let release = host.shell(". /etc/os-release; echo \"$NAME|$VERSION_ID|$VERSION_CODENAME\"")?;
    let info = agent.get("/system/info")?.data()?.clone();
    let told = ["os", "os_version", "os_codename"].map(|field| info[field].as_str().unwrap_or_default());
    ensure!(told.join("|") == release.trim(), "{release}{info:#}");
    for (field, argument) in [("kernel", "-r"), ("architecture", "-m"), ("hostname", "-n")] {
        ensure!(info[field] == host.exec_ok(&["uname", argument])?.trim(), "{info:#}");
    }
    ensure!(info["package_manager"] == "apt" && info["pending_reboot"] == false, "{info:#}");
    ensure!(info["agent_version"] == env!("CARGO_PKG_VERSION"), "{info:#}");
    for time in ["last_update_check", "last_update_apply"] {
        ensure!(info[time].as_str().is_some_and(|t| t.ends_with('Z')), "{info:#}");
    }
    let state = agent.get("/system/reboot")?.data()?.clone();
    ensure!(state["pending_reboot"] == false && state["packages"] == json!([]), "{state:#}");
    let job = agent.change("PUT", "/packages/lp-reboot", &json!({}))?;
    ensure!(job["outcome"] == "applied", "{job:#}");
    host.exec_ok(&["test", "-e", "/run/reboot-required"])?;
    let info = agent.get("/system/info")?.data()?.clone();
    ensure!(
        info["pending_reboot"] == true && info["reboot_reasons"].as_array().is_some_and(|r| !r.is_empty()),
        "{info:#}"
    );
    let state = agent.get("/system/reboot")?.data()?.clone();
    ensure!(state["pending_reboot"] == true && state["packages"] == json!(["lp-reboot"]), "{state:#}");
    Ok(())
}

fn services_are_true(agent: &Agent) -> Result<()> {
    let host = &agent.host;
    let listed = |name: &str| -> Result<Option<Value>> {
        let list = agent.get("/system/services")?.data()?.clone();
        Ok(list["services"].as_array().and_then(|all| all.iter().find(|unit| unit["name"] == name)).cloned())
    };
    ensure!(listed("lp-daemon.service")?.is_none(), "a unit in order is listed");
    let unit = "[Service]\nType=oneshot\nExecStart=/bin/false\n";
    host.push(unit, "/etc/systemd/system/lp-broken.service", "644")?;
    host.shell("systemctl daemon-reload; systemctl start lp-broken || true")?;
    let broken = listed("lp-broken.service")?.context("a failed unit is not listed")?;
    ensure!(broken["active_state"] == "failed" && broken["runs_old_code"] == false, "{broken:#}");
    agent.change("PUT", "/packages/lp-daemon", &json!({}))?;
    let old = listed("lp-daemon.service")?.context("a unit that runs replaced code is not listed")?;
    ensure!(
        old["active_state"] == "active"
            && old["runs_old_code"] == true
            && old["replaced_files"]
                .as_array()
                .is_some_and(|files| files.contains(&json!("/usr/sbin/lp-daemon"))),
        "{old:#}"
    );
    host.exec_ok(&["systemctl", "restart", "lp-daemon"])?;
    let shown = agent.get("/system/services/lp-daemon.service")?.data()?.clone();
    ensure!(shown["sub_state"] == "running" && shown["runs_old_code"] == false, "{shown:#}");
    ensure!(shown["load_state"] == "loaded" && shown["description"] == "test daemon", "{shown:#}");
    ensure!(agent.get("/system/services/lp-none.service")?.status == 404);
    ensure!(agent.get("/system/services/lp-none")?.status == 422);
    Ok(())
}

fn health_metrics_and_document(agent: &Agent) -> Result<()> {
    let health = agent.get("/health")?.data()?.clone();
    // There is no revocation list here, which asks for attention.
    ensure!(health["status"] == "degraded" && health["crl_status"] == "missing", "{health:#}");
    let vital: Vec<&Value> =
        health["checks"].as_array().into_iter().flatten().filter(|check| check["healthy"] == false).collect();
    ensure!(vital.len() == 1 && vital[0]["name"] == "crl", "{health:#}");
    ensure!(health["audit_head"]["seq"].as_u64().is_some_and(|seq| seq > 0), "{health:#}");

    let scrape = || -> Result<BTreeMap<String, f64>> { samples(&agent.get("/metrics")?.text) };
    let before = scrape()?;
    for _ in 0..3 {
        agent.get("/packages?name=lp-plain")?;
    }
    let after = scrape()?;
    let series = |metrics: &BTreeMap<String, f64>| -> f64 {
        let is_wanted =
            |key: &str| key.starts_with("linux_patch_api_requests_total{") && key.contains("/packages\"");
        metrics.iter().filter(|(key, _)| is_wanted(key)).map(|(_, value)| value).sum()
    };
    ensure!((series(&after) - series(&before) - 3.0).abs() < 0.5, "{before:?} {after:?}");
    let installed = agent.host.shell("dpkg-query -W -f '${db:Status-Abbrev}\\n' | grep -c '^.i'")?;
    ensure!(
        after.get("linux_patch_api_packages_installed") == installed.trim().parse().ok().as_ref(),
        "{installed} {after:?}"
    );

    let checked_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../openapi/linux-patch-api.json");
    let checked_in: Value = serde_json::from_str(&std::fs::read_to_string(checked_in)?)?;
    ensure!(agent.get("/openapi.json")?.body == checked_in, "the document is not the one that is checked in");
    Ok(())
}
