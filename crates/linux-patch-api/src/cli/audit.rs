//! `audit verify` and `audit show`.

use std::{
    fs::File,
    io::{BufReader, ErrorKind, Read as _, Take},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use patch_audit::{Break, Expect, Filter, Head, LOG_PATH, Reader, Start, verify};
use patch_types::JobId;

use super::{Json, exit, print};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Find every edited, removed, inserted or reordered record. Exit code 3 if there is one.
    Verify(Verify),
    /// Print the last records.
    Show(Show),
}

#[derive(Debug, Args)]
pub(super) struct Verify {
    #[command(flatten)]
    json: Json,
    /// A record that has to be there, as it was kept elsewhere: only so a trail that was cut off is told from one that
    /// ends (`audit_head` in GET /health, PATCH_SEQ and PATCH_HASH in the journal).
    #[arg(long, value_name = "SEQ:HASH")]
    head: Option<Head>,
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
    let log = root.join(LOG_PATH);
    let files = open_trail(&log)?;
    match command {
        Command::Verify(Verify { json, head }) => {
            let report = examine(&log, files, *head)?;
            print(&if json.json { report.json() } else { report.text() })?;
            Ok(if report.is_intact() { exit::OK } else { exit::NOT_IN_ORDER })
        }
        Command::Show(show) => show_last(files, show),
    }
}

/// A file of the trail as it was when it was opened: what is written meanwhile belongs to the next look.
struct Opened {
    path: PathBuf,
    file: File,
    size: u64,
    is_live: bool,
}

impl Opened {
    /// None if there is no such file (any more).
    fn open(path: PathBuf, is_live: bool) -> anyhow::Result<Option<Self>> {
        let opened = File::open(&path).and_then(|file| Ok((file.metadata()?.size(), file)));
        match opened {
            Ok((size, file)) => Ok(Some(Self { path, file, size, is_live })),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| {
                format!("cannot read {}; run this as root or as linux-patch-api", path.display())
            }),
        }
    }

    fn inode(&self) -> Option<(u64, u64)> {
        self.file.metadata().ok().map(|meta| (meta.dev(), meta.ino()))
    }

    fn reader(self) -> BufReader<Take<File>> {
        BufReader::new(self.file.take(self.size))
    }
}

/// The trail's files, oldest first: those of former days are named by their day.
fn open_trail(log: &Path) -> anyhow::Result<Vec<Opened>> {
    // The present file comes first: if a new day begins meanwhile it is listed once more, and recognised.
    let live = Opened::open(log.to_owned(), true)?;
    let directory = log.parent().unwrap_or(Path::new("/"));
    let prefix = format!("{}.", log.file_name().unwrap_or_default().to_string_lossy());
    let entries = std::fs::read_dir(directory).with_context(|| {
        format!("cannot read {}; run this as root or as linux-patch-api", directory.display())
    })?;
    let mut former: Vec<_> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            Some((order(name.to_string_lossy().strip_prefix(&prefix)?)?, entry.path()))
        })
        .collect();
    former.sort();
    let mut files = Vec::new();
    for (_, path) in former {
        // One that is gone by now was too old to be kept.
        let opened = Opened::open(path, false)?;
        let is_live = |file: &Opened| live.as_ref().is_some_and(|live| live.inode() == file.inode());
        files.extend(opened.filter(|file| !is_live(file)));
    }
    files.extend(live);
    Ok(files)
}

/// The place of a former file among the others: its day, then its number within that day. What was set aside has none:
/// it is damaged, and the trail begun after it says so.
fn order(suffix: &str) -> Option<(String, u64)> {
    if !suffix.starts_with(|c: char| c.is_ascii_digit()) {
        return None;
    }
    Some(match suffix.split_once('.') {
        Some((day, number)) => (day.to_owned(), number.parse().unwrap_or(u64::MAX)),
        None => (suffix.to_owned(), 0),
    })
}

/// What verifying the whole trail found.
#[derive(Debug, Default)]
struct Report {
    records: u64,
    first: Option<Head>,
    head: Option<Head>,
    problems: Vec<String>,
    /// Whether the present file ends within a line.
    is_being_written: bool,
}

fn examine(log: &Path, files: Vec<Opened>, head: Option<Head>) -> anyhow::Result<Report> {
    let mut report = Report::default();
    let mut start = Start::Anything;
    let mut known = head;
    if !files.iter().any(|file| file.is_live) {
        report.problems.push(format!("{}: the file is not there", log.display()));
    }
    let last = files.len().saturating_sub(1);
    for (i, file) in files.into_iter().enumerate() {
        let (path, is_live) = (file.path.clone(), file.is_live);
        let verdict = verify(file.reader(), &Expect { start, head: known })
            .with_context(|| format!("cannot read {}", path.display()))?;
        report.records += verdict.records;
        report.first = report.first.or(verdict.first);
        let reaches_known = known.is_some_and(|k| verdict.head.is_some_and(|h| h.seq >= k.seq));
        let is_pruned = known.is_some_and(|k| report.first.is_some_and(|first| k.seq < first.seq));
        for problem in verdict.problems {
            match problem.what {
                // A record is written with one call, but that may be under way; a crash is mended at the next start.
                Break::Torn if is_live => report.is_being_written = true,
                // A later file may have it, or it is told below.
                Break::Truncated { .. } if is_pruned || (i < last && !reaches_known) => {}
                _ => report.problems.push(format!("{}: {problem}", path.display())),
            }
        }
        if let (Some(expected), Some(first), true) = (known, report.first, is_pruned) {
            report.problems.push(format!(
                "record {} is known elsewhere, but the trail that is left begins with record {}: it cannot be compared",
                expected.seq, first.seq
            ));
        }
        if reaches_known || is_pruned {
            known = None;
        }
        if let Some(last) = verdict.head {
            report.head = Some(last);
            start = Start::After(last);
        }
    }
    if report.records == 0 {
        report.problems.push(format!("{}: there is not one record", log.display()));
    }
    Ok(report)
}

impl Report {
    fn is_intact(&self) -> bool {
        self.problems.is_empty()
    }

    fn json(&self) -> String {
        let head = self.head.map(|h| serde_json::json!({ "seq": h.seq, "hash": h.hash.to_string() }));
        let report = serde_json::json!({
            "intact": self.is_intact(), "records": self.records, "first_seq": self.first.map(|f| f.seq),
            "head": head, "problems": self.problems, "being_written": self.is_being_written,
        });
        format!("{report:#}\n")
    }

    fn text(&self) -> String {
        let mut text: String = self.problems.iter().map(|p| format!("{p}\n")).collect();
        if self.is_being_written {
            text.push_str(
                "note: the last line is incomplete; it is being written, or a crash broke it off\n",
            );
        }
        let span = match (self.first, self.head) {
            (Some(first), Some(head)) => format!(", {} to {}, head {head}", first.seq, head.seq),
            _ => String::new(),
        };
        let verdict =
            if self.is_intact() { "the audit trail is intact" } else { "the audit trail is broken" };
        text.push_str(&format!("{verdict}: {} records{span}\n", self.records));
        text
    }
}

fn show_last(files: Vec<Opened>, show: &Show) -> anyhow::Result<u8> {
    let filter =
        Filter { kind: show.kind.clone(), job: show.job, identity: show.identity.clone(), priority: None };
    let mut groups = Vec::new();
    let mut missing = show.last;
    for file in files.into_iter().rev() {
        if missing == 0 {
            break;
        }
        let path = file.path.clone();
        let mut reader = Reader::new(file.reader());
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

#[cfg(test)]
mod tests {
    use patch_audit::{AuditEvent, AuditKind, AuditLog, Caller, Options};

    use super::*;

    /// A trail of five records.
    fn trail() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("audit.log");
        let writer = AuditLog::open(&log, Options::new("test").without_journal()).unwrap();
        for _ in 0..5 {
            writer.record_later(AuditEvent::new(AuditKind::AuthSuccess, &Caller::local()));
        }
        writer.close();
        (directory, log)
    }

    fn examined(log: &Path, head: Option<Head>) -> Report {
        examine(log, open_trail(log).unwrap(), head).unwrap()
    }

    /// Moves the first lines into a file of a former day.
    fn rotate(log: &Path, suffix: &str, lines: usize) {
        let text = std::fs::read_to_string(log).unwrap();
        let at = text.match_indices('\n').nth(lines - 1).unwrap().0 + 1;
        std::fs::write(log.with_file_name(format!("audit.log.{suffix}")), &text[..at]).unwrap();
        std::fs::write(log, &text[at..]).unwrap();
    }

    #[test]
    fn a_head_kept_elsewhere_shows_a_cut() {
        let (_directory, log) = trail();
        let heads: Vec<Head> = (1..=5)
            .map(|n| {
                let (copy_dir, copy) = (tempfile::tempdir().unwrap(), std::fs::read_to_string(&log).unwrap());
                let copied = copy_dir.path().join("audit.log");
                let lines: String = copy.split_inclusive('\n').take(n).collect();
                std::fs::write(&copied, lines).unwrap();
                examined(&copied, None).head.unwrap()
            })
            .collect();
        rotate(&log, "2026-11-20", 2);
        for head in &heads {
            assert!(examined(&log, Some(*head)).is_intact(), "{head}");
        }
        let other = Head { seq: 4, hash: heads[0].hash };
        assert!(examined(&log, Some(other)).text().contains("not the one"));

        let text = std::fs::read_to_string(&log).unwrap();
        let cut: String = text.split_inclusive('\n').take(2).collect();
        std::fs::write(&log, cut).unwrap();
        assert!(examined(&log, None).is_intact(), "nothing shows it from within");
        let report = examined(&log, Some(heads[4]));
        assert!(report.text().contains("cut off"), "{}", report.text());

        std::fs::remove_file(log.with_file_name("audit.log.2026-11-20")).unwrap();
        assert!(examined(&log, Some(heads[2])).is_intact());
        let report = examined(&log, Some(heads[0]));
        assert_eq!(report.problems.len(), 1, "{:?}", report.problems);
        assert!(report.problems[0].contains("begins with record 3"), "{:?}", report.problems);
    }

    #[test]
    fn former_files_are_read_by_day_and_number() {
        let (_directory, log) = trail();
        for suffix in ["2026-11-19", "2026-11-20.2", "2026-11-20.10"] {
            rotate(&log, suffix, 1);
        }
        std::fs::write(log.with_file_name("audit.log.set-aside-20261120T000000Z"), "rubbish").unwrap();
        let report = examined(&log, None);
        assert!(report.is_intact(), "{}", report.text());
        assert_eq!(report.records, 5);
    }

    #[test]
    fn a_line_that_is_being_written_is_no_damage() {
        let (_directory, log) = trail();
        let text = std::fs::read_to_string(&log).unwrap();
        std::fs::write(&log, format!("{text}{{\"seq\":6,")).unwrap();
        let report = examined(&log, None);
        assert!(report.is_intact() && report.is_being_written, "{}", report.text());
        // In a file that nobody writes any more it is.
        std::fs::rename(&log, log.with_file_name("audit.log.2026-11-20")).unwrap();
        std::fs::write(&log, "").unwrap();
        assert!(!examined(&log, None).is_intact());
    }

    #[test]
    fn what_is_written_meanwhile_is_not_read() {
        let (_directory, log) = trail();
        let files = open_trail(&log).unwrap();
        let text = std::fs::read_to_string(&log).unwrap();
        std::fs::write(&log, format!("{text}{{\"seq\":6,")).unwrap();
        let report = examine(&log, files, None).unwrap();
        assert!(report.is_intact() && !report.is_being_written, "{}", report.text());
    }

    #[test]
    fn a_trail_without_records_is_not_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("audit.log");
        assert!(!examined(&log, None).is_intact());
        std::fs::write(&log, "").unwrap();
        assert!(!examined(&log, None).is_intact());
    }
}
