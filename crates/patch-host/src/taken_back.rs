//! The versions that were taken back: what is on record, and letting them be installed again.

use std::io;

use anyhow::Context;
use patch_types::{
    JobId,
    executor::{RequestBody, TAKEN_BACK, TakenBack},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{ask::Root, below::Below, exit::Exit, screen::Screen};

/// A version on record. Read loosely: what is missing is shown as missing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) architecture: String,
    pub(crate) version: String,
    #[serde(default)]
    pub(crate) job: String,
    #[serde(default)]
    at: String,
    #[serde(default)]
    reason: String,
}

impl Entry {
    fn is_meant(&self, versions: &TakenBack) -> bool {
        match versions {
            TakenBack::All => true,
            TakenBack::Package { name, version } => {
                name.name() == self.name
                    && name.architecture().is_none_or(|architecture| architecture == self.architecture)
                    && version.as_ref().is_none_or(|version| version.as_str() == self.version)
            }
        }
    }
}

pub(crate) fn list(root: &Root, screen: &mut Screen) -> anyhow::Result<Exit> {
    let entries = read(root.files())?;
    if screen.is_json() {
        screen.json(&json!({ "taken_back": entries }))?;
        return Ok(Exit::Done);
    }
    if entries.is_empty() {
        screen.remark("No version is barred from being installed.");
        return Ok(Exit::Done);
    }
    let rows: Vec<_> = entries
        .into_iter()
        .map(|entry| {
            let name = format!("{}:{}", entry.name, entry.architecture);
            [name.trim_end_matches(':').to_owned(), entry.version, entry.at, entry.job, entry.reason]
        })
        .collect();
    screen.table(["PACKAGE", "VERSION", "TAKEN BACK", "JOB", "REASON"], &rows);
    Ok(Exit::Done)
}

/// Has them cleared. The request is sent also if nothing is on record that fits: whoever asks wants to be sure.
pub(crate) fn clear(root: &Root, screen: &mut Screen, versions: TakenBack) -> anyhow::Result<Exit> {
    let meant: Vec<_> = read(root.files())?.into_iter().filter(|entry| entry.is_meant(&versions)).collect();
    root.ask(RequestBody::Clear { versions })?;
    if screen.is_json() {
        screen.json(&json!({ "cleared": meant }))?;
        return Ok(Exit::Done);
    }
    for entry in &meant {
        screen.text(&format!("{} {} may be installed again", entry.name, entry.version));
    }
    if meant.is_empty() {
        screen.remark("No such version was on record; nothing had to be cleared.");
    }
    Ok(Exit::Done)
}

/// Has the mark of a failed rollback lifted.
pub(crate) fn repaired(root: &Root, screen: &mut Screen, job: JobId) -> anyhow::Result<Exit> {
    root.ask(RequestBody::Repaired { job })?;
    if screen.is_json() {
        screen.json(&json!({ "repaired": job }))?;
    } else {
        screen.text("noted; the host is no longer marked as one of which a rollback failed");
    }
    Ok(Exit::Done)
}

/// What is on record.
///
/// # Errors
/// When it cannot be read or is not understood.
pub(crate) fn read(files: &Below) -> anyhow::Result<Vec<Entry>> {
    let path = files.name(TAKEN_BACK);
    let text = match files.read(TAKEN_BACK) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(error).with_context(|| format!("cannot read {}; run this as root", path.display()));
        }
    };
    let values: Vec<Value> = serde_json::from_slice(&text).with_context(|| {
        format!("{} is damaged; see `apt-cache policy` for what is barred", path.display())
    })?;
    Ok(values.into_iter().filter_map(|value| serde_json::from_value(value).ok()).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use patch_types::executor::Reply;

    use super::*;
    use crate::{ask::tests::Fake, screen::tests::paper};

    const RECORD: &str = r#"[
        {"name":"aa","architecture":"amd64","version":"2.0","job":"j","at":"2026-01-02T03:04:05Z","reason":"a check failed"},
        {"name":"aa","architecture":"i386","version":"2.0"},
        {"name":"bb","architecture":"all","version":"1:3","new":1},
        {"odd":true}]"#;

    #[test]
    fn what_was_taken_back_is_listed_and_cleared() {
        let fake = Fake::new(vec![Box::new(|_, _| Some(Reply::Accepted))]);
        fs::write(fake.root.files().name(TAKEN_BACK), RECORD).unwrap();
        let (mut screen, out, _) = paper(false);
        list(&fake.root, &mut screen).unwrap();
        let text = out.text();
        assert_eq!(text.lines().count(), 4, "{text}");
        assert!(text.contains("aa:amd64  2.0      2026-01-02T03:04:05Z  j    a check failed"), "{text}");

        let versions =
            TakenBack::Package { name: "aa:i386".parse().unwrap(), version: Some("2.0".parse().unwrap()) };
        let (mut screen, out, _) = paper(true);
        assert_eq!(clear(&fake.root, &mut screen, versions.clone()).unwrap(), Exit::Done);
        let value: Value = serde_json::from_str(&out.text()).unwrap();
        assert_eq!(value["cleared"][0]["architecture"], "i386");
        assert_eq!(value["cleared"].as_array().unwrap().len(), 1);
        assert_eq!(fake.requests()[0].body, RequestBody::Clear { versions });
    }

    #[test]
    fn a_mended_host_is_said_to_be_so() {
        let fake = Fake::new(vec![Box::new(|_, _| Some(Reply::Accepted))]);
        let job = JobId(uuid::Uuid::from_u128(7));
        let (mut screen, out, _) = paper(true);
        assert_eq!(repaired(&fake.root, &mut screen, job).unwrap(), Exit::Done);
        let value: Value = serde_json::from_str(&out.text()).unwrap();
        assert_eq!(value["repaired"], job.to_string());
        assert_eq!(fake.requests()[0].body, RequestBody::Repaired { job });
    }

    #[test]
    fn nothing_on_record_is_no_error_and_a_damaged_record_is_one() {
        let fake =
            Fake::new(vec![Box::new(|_, _| Some(Reply::Accepted)), Box::new(|_, _| Some(Reply::Accepted))]);
        let (mut screen, out, remarks) = paper(false);
        list(&fake.root, &mut screen).unwrap();
        let one = TakenBack::Package { name: "aa".parse().unwrap(), version: None };
        for versions in [TakenBack::All, one] {
            assert_eq!(clear(&fake.root, &mut screen, versions).unwrap(), Exit::Done);
        }
        assert_eq!((out.text().as_str(), remarks.text().lines().count()), ("", 3));
        assert_eq!(remarks.text().matches("No such version was on record").count(), 2);
        fs::write(fake.root.files().name(TAKEN_BACK), "{").unwrap();
        assert!(list(&fake.root, &mut screen).is_err());
        fake.requests();
    }
}
