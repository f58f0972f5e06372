//! What happened, and how it is put into words.

use jiff::Timestamp;
use patch_types::{notifications::ReportMode, settings::is_host, terminal};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;

/// The longest subject, in characters.
const MOST_SUBJECT: usize = 150;

/// The longest text of a message, in bytes.
const MOST_TEXT: usize = 256 * 1024;

/// The longest summary, and the longest name of a host, in characters.
const MOST_SUMMARY: usize = 2000;

/// How much of a report's lines and of its data is kept, in bytes.
const MOST_LINES: usize = 256 * 1024;
const MOST_DATA: usize = 1 << 20;

/// What a run did to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunResult {
    /// Nothing, and nothing failed.
    Unchanged,
    /// Packages changed.
    Changed,
    /// Something failed, or needs somebody's attention.
    Failed,
}

impl RunResult {
    /// The result in one word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unchanged => "unchanged",
            Self::Changed => "changed",
            Self::Failed => "failed",
        }
    }

    /// Whether somebody wants to know.
    #[must_use]
    pub fn is_wanted(self, mode: ReportMode) -> bool {
        match mode {
            ReportMode::Always => true,
            ReportMode::OnChange => self != Self::Unchanged,
            ReportMode::OnlyOnError => self == Self::Failed,
        }
    }
}

/// One run's report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The run's id, a job's for one: nothing is sent twice about it.
    pub id: Uuid,
    /// When it ended.
    pub at: Timestamp,
    /// The host's name.
    pub host: String,
    /// What came of it.
    pub result: RunResult,
    /// That in one line, such as `3 packages updated`.
    pub summary: String,
    /// The details, line by line.
    #[serde(default)]
    pub lines: Vec<String>,
    /// The same for programs.
    #[serde(default)]
    pub data: Value,
}

impl Report {
    /// A report that shows that messages arrive.
    #[must_use]
    pub fn test(host: &str, at: Timestamp) -> Self {
        Self {
            id: Uuid::now_v7(),
            at,
            host: host.to_owned(),
            result: RunResult::Unchanged,
            summary: "this is a test: reports of this host arrive here".to_owned(),
            lines: vec!["Nothing was changed. It was sent by `linux-patch-host notify test`.".to_owned()],
            data: Value::Null,
        }
    }

    /// The same with no more than can be kept. What is left out is said: in the lines, and as `left_out` in the data.
    pub(crate) fn shortened(mut self) -> Self {
        for text in [&mut self.summary, &mut self.host] {
            if let Some((end, _)) = text.char_indices().nth(MOST_SUMMARY) {
                text.truncate(end);
            }
        }
        let mut length = 0_usize;
        let kept = self.lines.iter().take_while(|line| {
            // In JSON a line is longer than it is.
            length = length.saturating_add(line.len()).saturating_add(8);
            length <= MOST_LINES
        });
        let kept = kept.count();
        if kept < self.lines.len() {
            self.lines.truncate(kept);
            self.lines.push("The rest is left out; the job's log has it.".to_owned());
        }
        let length = |value: &Value| serde_json::to_vec(value).map_or(usize::MAX, |text| text.len());
        if length(&self.data) <= MOST_DATA {
            return self;
        }
        let mut members: Vec<(usize, String, Value)> = match self.data {
            Value::Object(members) => members
                .into_iter()
                .map(|(key, value)| (length(&value).saturating_add(key.len()), key, value))
                .collect(),
            _ => Vec::new(),
        };
        members.sort_by(|a, b| (a.0, &a.1).cmp(&(b.0, &b.1)));
        let mut kept = serde_json::Map::new();
        let mut sum = 0_usize;
        for (length, key, value) in members {
            sum = sum.saturating_add(length).saturating_add(8);
            if sum > MOST_DATA {
                break;
            }
            kept.insert(key, value);
        }
        kept.insert("left_out".to_owned(), Value::Bool(true));
        self.data = Value::Object(kept);
        self
    }
}

/// What is sent at once: one report, or several that belong together.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    id: String,
    reports: Vec<Report>,
}

impl Message {
    /// A message of these reports, oldest first; none without any.
    #[must_use]
    pub fn of(mut reports: Vec<Report>) -> Option<Self> {
        reports.sort_by_key(|report| (report.at, report.id));
        reports.dedup_by_key(|report| report.id);
        let id = match reports.as_slice() {
            [] => return None,
            [one] => one.id.to_string(),
            many => {
                let mut hash = Sha256::new();
                many.iter().for_each(|report| hash.update(report.id.as_bytes()));
                hex::encode(hash.finalize().iter().take(16).copied().collect::<Vec<_>>())
            }
        };
        Some(Self { id, reports })
    }

    /// The same with another id.
    pub(crate) fn with_id(mut self, id: Uuid) -> Self {
        self.id = id.to_string();
        self
    }

    /// Its id: the report's own, or one that follows from all their ids; a digest of an outbox has one that was made for it.
    /// The same reports have the same id whenever they are sent, so that a receiver can tell that it has them already.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The reports, oldest first; at least one.
    #[must_use]
    pub fn reports(&self) -> &[Report] {
        &self.reports
    }

    /// The worst result among them.
    #[must_use]
    pub fn result(&self) -> RunResult {
        self.reports.iter().map(|report| report.result).max().unwrap_or(RunResult::Unchanged)
    }

    /// When the last one ended.
    #[must_use]
    pub fn at(&self) -> Timestamp {
        self.reports.iter().map(|report| report.at).max().unwrap_or_default()
    }

    /// The host's name, as far as it is one.
    #[must_use]
    pub fn host(&self) -> &str {
        self.reports
            .last()
            .map(|report| report.host.as_str())
            .filter(|host| is_host(host))
            .unwrap_or("localhost")
    }

    /// One line: the host, what came of it, and the summary.
    #[must_use]
    pub fn subject(&self) -> String {
        let (host, result) = (self.host(), self.result().as_str());
        let text = match self.reports.as_slice() {
            [one] => format!("[{host}] {result}: {}", one.summary),
            many => {
                let counts = [RunResult::Failed, RunResult::Changed, RunResult::Unchanged].map(|result| {
                    let count = many.iter().filter(|report| report.result == result).count();
                    (count > 0).then(|| format!("{count} {}", result.as_str()))
                });
                let counts: Vec<_> = counts.into_iter().flatten().collect();
                format!("[{host}] {result}: {} reports: {}", many.len(), counts.join(", "))
            }
        };
        let line: String = terminal::line(&text).chars().filter(|c| !c.is_control()).collect();
        if line.chars().count() <= MOST_SUBJECT {
            return line;
        }
        line.chars().take(MOST_SUBJECT).chain(['…']).collect()
    }

    /// The whole as plain text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for report in &self.reports {
            if !text.is_empty() {
                text.push_str("\n----\n\n");
            }
            let summary = terminal::line(&report.summary);
            let (host, result) = (terminal::line(&report.host), report.result.as_str());
            text.push_str(&format!(
                "{summary}\n\nHost:    {host}\nTime:    {:.0}\nResult:  {result}\nJob:     {}\n",
                report.at, report.id
            ));
            for (i, line) in report.lines.iter().enumerate() {
                let line = terminal::line(line);
                if text.len() + line.len() > MOST_TEXT {
                    text.push_str("\nThe rest is left out; the job's log has it.\n");
                    return text;
                }
                let gap = if i == 0 { "\n" } else { "" };
                text.push_str(&format!("{gap}{line}\n"));
            }
        }
        text
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn report(id: u128, result: RunResult, summary: &str) -> Report {
        Report {
            id: Uuid::from_u128(id),
            at: Timestamp::from_second(1_790_000_000 + i64::try_from(id % 1000).unwrap()).unwrap(),
            host: "web1.example.org".into(),
            result,
            summary: summary.into(),
            lines: vec!["libssl3 3.0.15 -> 3.0.16".into()],
            data: serde_json::json!({"packages": 1}),
        }
    }

    #[test]
    fn modes_choose() {
        use ReportMode::{Always, OnChange, OnlyOnError};
        use RunResult::{Changed, Failed, Unchanged};
        let wanted = |mode| [Unchanged, Changed, Failed].map(|result| result.is_wanted(mode));
        assert_eq!(wanted(Always), [true, true, true]);
        assert_eq!(wanted(OnChange), [false, true, true]);
        assert_eq!(wanted(OnlyOnError), [false, false, true]);
    }

    #[test]
    fn one_report_and_several_have_a_subject_and_a_text() {
        let one = Message::of(vec![report(1, RunResult::Changed, "1 package updated")]).unwrap();
        assert_eq!(one.subject(), "[web1.example.org] changed: 1 package updated");
        assert_eq!(one.id(), Uuid::from_u128(1).to_string());
        assert!(
            one.text().contains("Result:  changed\n") && one.text().ends_with("\nlibssl3 3.0.15 -> 3.0.16\n")
        );
        let reports = vec![
            report(3, RunResult::Failed, "c"),
            report(2, RunResult::Changed, "b"),
            report(2, RunResult::Changed, "b"),
            report(1, RunResult::Changed, "a"),
        ];
        let many = Message::of(reports.clone()).unwrap();
        assert_eq!(many.subject(), "[web1.example.org] failed: 3 reports: 1 failed, 2 changed");
        assert_eq!(many.reports().len(), 3);
        let again = Message::of(reports.into_iter().rev().collect()).unwrap();
        assert_eq!(many.id(), again.id());
        assert!(many.text().find("a\n").unwrap() < many.text().find("c\n").unwrap());
        assert_eq!(Message::of(Vec::new()), None);
    }

    #[test]
    fn a_long_report_is_shortened_until_it_can_be_kept() {
        let mut long = report(1, RunResult::Failed, &"\u{1}".repeat(5_000_000));
        long.host = "h".repeat(5_000_000);
        long.lines = vec!["\u{1}".repeat(1000); 5000];
        long.data = serde_json::json!({"kind": "install", "packages": vec!["x".repeat(100); 100_000], "status": "failed"});
        let short = long.shortened();
        assert!(serde_json::to_vec(&short).unwrap().len() < 3 << 20);
        assert_eq!(short.data, serde_json::json!({"kind": "install", "status": "failed", "left_out": true}));
        assert!(short.lines.len() > 200 && short.lines.last().unwrap().contains("left out"));
        let usual = report(1, RunResult::Failed, "x");
        assert_eq!(usual.clone().shortened(), usual);
        let mut one = usual;
        one.lines = vec!["x".repeat(1 << 20)];
        one.data = Value::String("x".repeat(2 << 20));
        assert_eq!(one.shortened().data, serde_json::json!({"left_out": true}));
    }

    proptest! {
        #[test]
        fn a_subject_is_one_line(host in ".*", summary in ".*|[\r\n:a-z ]{0,300}", lines in proptest::collection::vec(".*", 0..5)) {
            let mut one = report(1, RunResult::Failed, &summary);
            one.host = host;
            one.lines = lines;
            let message = Message::of(vec![one.clone(), report(2, RunResult::Changed, &summary)]).unwrap();
            for message in [message, Message::of(vec![one]).unwrap()] {
                let subject = message.subject();
                prop_assert!(!subject.contains(char::is_control), "{:?}", subject);
                prop_assert!(subject.chars().count() <= MOST_SUBJECT + 1);
                prop_assert!(!message.text().contains('\r'));
            }
        }
    }
}
