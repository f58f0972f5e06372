//! The text format of metrics.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

/// Reads the text format by its rules: each sample belongs to a family that was declared before, appears once, and
/// has a number.
pub(crate) fn samples(text: &str) -> Result<BTreeMap<String, f64>> {
    ensure!(text.ends_with("# EOF\n"), "the metrics have no end");
    let mut types = BTreeMap::new();
    let mut samples = BTreeMap::new();
    for line in text.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declared.split_once(' ').context("a type without a name")?;
            ensure!(["counter", "gauge", "histogram", "info"].contains(&kind), "{line}");
            ensure!(types.insert(name, kind).is_none(), "declared twice: {line}");
        } else if !line.starts_with('#') {
            let (series, value) = line.rsplit_once(' ').with_context(|| format!("no value: {line}"))?;
            let name = series.split('{').next().unwrap_or_default();
            let family = types.iter().find(|(family, kind)| {
                let suffixes: &[&str] = match **kind {
                    "counter" => &["_total"],
                    "histogram" => &["_bucket", "_sum", "_count"],
                    "info" => &["_info"],
                    _ => &[""],
                };
                suffixes.iter().any(|suffix| name.strip_suffix(suffix) == Some(**family))
            });
            ensure!(family.is_some(), "not declared: {line}");
            ensure!(series.contains('{') == series.ends_with('}'), "{line}");
            ensure!(samples.insert(series.to_owned(), value.parse()?).is_none(), "twice: {line}");
        }
    }
    Ok(samples)
}
