//! `audit verify` and `audit show`.

use std::{
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use patch_audit::{Expect, Filter, Head, LOG_PATH, Reader, Start, verify};
use patch_types::JobId;

use super::{Json, exit, print};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Find every edited, removed, inserted or reordered record. Exit code 3 if there is one.
    Verify(Json),
    /// Print the last records.
    Show(Show),
}

#[derive(Debug, Args)]
pub(super) struct Show {
    #[command(flatten)]
    json: Json,
    /// How many.
    #[arg(long, short = 'n', default_value_t = 50)]
    last: usize,
    /// Only of this kind, such as auth_failure.
    #[arg(long)]
    kind: Option<String>,
    /// Only about this job.
    #[arg(long)]
    job: Option<JobId>,
    /// Only by this identity.
    #[arg(long)]
    identity: Option<String>,
}

pub(super) fn execute(root: &Path, command: &Command) -> anyhow::Result<u8> {
    let files = files(&root.join(LOG_PATH))?;
    match command {
        Command::Verify(json) => verify_all(&files, json.json),
        Command::Show(show) => show_last(&files, show),
    }
}

/// The trail's files, oldest first: those of former days are named by their day.
fn files(log: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let directory = log.parent().unwrap_or(Path::new("/"));
    let prefix = format!("{}.", log.file_name().unwrap_or_default().to_string_lossy());
    let entries = std::fs::read_dir(directory).with_context(|| {
        format!("cannot read {}; run this as root or as linux-patch-api", directory.display())
    })?;
    let mut files: Vec<PathBuf> = entries
        .flatten()
        .filter(|e| {
            let name = e.file_name();
            // What was set aside is damaged, and the trail begun after it says so.
            name.to_string_lossy()
                .strip_prefix(&prefix)
                .is_some_and(|day| day.starts_with(|c: char| c.is_ascii_digit()))
        })
        .map(|e| e.path())
        .collect();
    files.sort();
    files.push(log.to_owned());
    Ok(files)
}

fn open(path: &Path) -> anyhow::Result<BufReader<File>> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(BufReader::new(file))
}

fn verify_all(files: &[PathBuf], json: bool) -> anyhow::Result<u8> {
    let mut start = Start::Anything;
    let mut records = 0;
    let mut problems = Vec::new();
    let (mut first, mut head): (Option<Head>, Option<Head>) = (None, None);
    for path in files {
        let verdict = verify(open(path)?, &Expect { start, head: None })
            .with_context(|| format!("cannot read {}", path.display()))?;
        records += verdict.records;
        first = first.or(verdict.first);
        problems.extend(verdict.problems.iter().map(|p| format!("{}: {p}", path.display())));
        if let Some(last) = verdict.head {
            head = Some(last);
            start = Start::After(last);
        }
    }
    let intact = problems.is_empty();
    if json {
        let head = head.map(|h| serde_json::json!({ "seq": h.seq, "hash": h.hash.to_string() }));
        let report = serde_json::json!({
            "intact": intact, "records": records, "first_seq": first.map(|f| f.seq), "head": head, "problems": problems,
        });
        print(&format!("{report:#}\n"))?;
    } else {
        let mut text: String = problems.iter().map(|p| format!("{p}\n")).collect();
        let span = match (first, head) {
            (Some(first), Some(head)) => format!(", {} to {}, head {}", first.seq, head.seq, head.hash),
            _ => String::new(),
        };
        let verdict = if intact { "the audit trail is intact" } else { "the audit trail is broken" };
        text.push_str(&format!("{verdict}: {records} records{span}\n"));
        print(&text)?;
    }
    Ok(if intact { exit::OK } else { exit::NOT_IN_ORDER })
}

fn show_last(files: &[PathBuf], show: &Show) -> anyhow::Result<u8> {
    let filter =
        Filter { kind: show.kind.clone(), job: show.job, identity: show.identity.clone(), priority: None };
    let mut groups = Vec::new();
    let mut missing = show.last;
    for path in files.iter().rev() {
        if missing == 0 {
            break;
        }
        let mut reader = Reader::new(open(path)?);
        let records =
            reader.tail(missing, &filter).with_context(|| format!("cannot read {}", path.display()))?;
        missing -= records.len();
        groups.push(records);
    }
    let mut text = String::new();
    for record in groups.into_iter().rev().flatten() {
        if show.json.json {
            text.push_str(&record.line);
        } else {
            let event = &record.event;
            text.push_str(&format!(
                "{:>6}  {:.0}  {:<6}  {}",
                record.seq,
                event.at,
                event.priority.as_str(),
                event.message
            ));
        }
        text.push('\n');
    }
    print(&text)?;
    Ok(exit::OK)
}
