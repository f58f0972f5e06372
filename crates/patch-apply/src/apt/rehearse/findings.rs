//! What a rehearsal's output says of where it failed: dpkg's words, in the C locale.

use std::collections::VecDeque;

use patch_types::{Finding, FindingKind};

/// How many lines of a step's output are kept for its finding, how many findings, and how many questions.
const STEP: usize = 40;
const FINDINGS: usize = 200;
const QUESTIONS: usize = 1000;

/// How much of a line is kept, and how much of all that is told in the end, in bytes.
const LINE: usize = 1 << 10;
const TOTAL: usize = 256 << 10;

/// How many of the last lines are kept, to be classified.
const LAST: usize = 400;

/// What a step of dpkg begins with.
const STEPS: &[&str] = &[
    "Preparing to unpack ",
    "Unpacking ",
    "Setting up ",
    "Removing ",
    "Purging configuration files for ",
    "Processing triggers for ",
];

/// What dpkg says of a package that could not be done; the next line says why.
const ERRORS: &[&str] = &["dpkg: error processing package ", "dpkg: error processing archive "];

/// A configuration file of which there are two newer versions.
const QUESTION: &str = "Configuration file '";

/// Listens to the output of dpkg, line by line.
#[derive(Debug, Default)]
pub struct Listener {
    /// What was said since the step began.
    step: VecDeque<String>,
    is_trigger: bool,
    /// The package of which the next line says what is wrong.
    failing: Option<String>,
    findings: Vec<Finding>,
    conffiles: Vec<String>,
    last: VecDeque<String>,
    /// Whether the first command has ended, by whose words a failure is classified.
    is_mending: bool,
    /// How long the findings and the questions are together, in bytes.
    told: usize,
}

/// What dpkg says when a script of the old version fails and the new one has none that could make it good.
const GIVES_UP: &str = "there is no script in the new version of the package";

/// How it begins what it has said of the old one's before.
const WARNING: &str = "dpkg: warning: old ";

impl Listener {
    /// What comes now is said by what mends what the run left, and not by the run itself.
    pub fn mends(&mut self) {
        self.is_mending = true;
    }

    /// Takes one line.
    pub fn hear(&mut self, line: &str) {
        if !self.is_mending {
            keep(&mut self.last, line, LAST);
        }
        if let Some(package) = self.failing.take() {
            self.found(Some(package), line.trim());
            return;
        }
        if let Some(rest) = ERRORS.iter().find_map(|error| line.strip_prefix(error)) {
            self.failing = Some(named(rest));
            return;
        }
        if line.starts_with("dpkg: unrecoverable fatal error") {
            // Said on the next line, of no package.
            self.failing = Some(String::new());
            return;
        }
        if let Some(path) = line.strip_prefix(QUESTION).and_then(|rest| rest.split('\'').next())
            && self.conffiles.len() < QUESTIONS
            && !self.conffiles.iter().any(|known| known == path)
            && self.has_room(path.len())
        {
            self.conffiles.push(path.to_owned());
        }
        if STEPS.iter().any(|step| line.starts_with(step)) {
            // `Preparing to unpack` and `Unpacking` are one step, in which two scripts are run.
            if !line.starts_with("Unpacking ") {
                self.step.clear();
            }
            self.is_trigger = line.starts_with("Processing triggers for ");
            return;
        }
        keep(&mut self.step, line, STEP);
    }

    fn found(&mut self, package: Option<String>, message: &str) {
        if self.findings.len() >= FINDINGS {
            return;
        }
        let package = package.filter(|package| !package.is_empty()).map(|package| cut(&package));
        let message = cut(message);
        let step = std::mem::take(&mut self.step);
        let mut kind = kind(&message, self.is_trigger);
        if message.contains(GIVES_UP)
            && let Some(warning) = step.iter().rev().find(|line| line.starts_with(WARNING))
        {
            // Which script that was it has said before.
            kind = self::kind(warning, self.is_trigger);
        }
        if !self.has_room(message.len() + package.as_ref().map_or(0, String::len)) {
            return;
        }
        let mut output: Vec<String> =
            step.into_iter().rev().take_while(|line| self.has_room(line.len())).collect();
        output.reverse();
        self.findings.push(Finding { kind, package, message, output });
    }

    /// Whether so much more can be told; if so it counts.
    fn has_room(&mut self, bytes: usize) -> bool {
        let fits = self.told + bytes <= TOTAL;
        if fits {
            self.told += bytes;
        }
        fits
    }

    /// The last of what the first command said, as one text.
    #[must_use]
    pub fn last_words(&self) -> String {
        self.last.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }

    /// What went wrong, and of which configuration files there was a question.
    #[must_use]
    pub fn end(self) -> (Vec<Finding>, Vec<String>) {
        (self.findings, self.conffiles)
    }
}

fn keep(lines: &mut VecDeque<String>, line: &str, most: usize) {
    while lines.len() >= most {
        lines.pop_front();
    }
    lines.push_back(cut(line));
}

fn cut(line: &str) -> String {
    if line.len() <= LINE {
        return line.to_owned();
    }
    let end = (0..=LINE).rev().find(|end| line.is_char_boundary(*end)).unwrap_or_default();
    format!("{}…", line.get(..end).unwrap_or_default())
}

/// `NAME (--configure):`, or an archive, whose file bears the package's name: `/x/NAME_1.0_all.deb (--unpack):`.
fn named(rest: &str) -> String {
    let what = rest.split(" (--").next().unwrap_or(rest);
    let Some(archive) = what.strip_suffix(".deb") else { return what.to_owned() };
    let (directory, file) = archive.rsplit_once('/').unwrap_or(("", archive));
    // Where there are many apt gives dpkg a directory of links, with a number before each name.
    let file = match file.split_once('-') {
        Some((number, rest))
            if directory.contains("/apt-dpkg-install-") && number.bytes().all(|b| b.is_ascii_digit()) =>
        {
            rest
        }
        _ => file,
    };
    file.split('_').next().unwrap_or(file).to_owned()
}

fn kind(message: &str, is_trigger: bool) -> FindingKind {
    let says = |words: &str| message.contains(words);
    if says("No space left on device") || says("Disk quota exceeded") {
        FindingKind::DiskSpace
    } else if says("trying to overwrite") {
        FindingKind::FileConflict
    } else if says("pre-installation script") {
        FindingKind::Preinst
    } else if says("post-installation script") {
        if is_trigger { FindingKind::Trigger } else { FindingKind::Postinst }
    } else if says("pre-removal script") {
        FindingKind::Prerm
    } else if says("post-removal script") {
        FindingKind::Postrm
    } else if says("dependency problems") {
        FindingKind::Dependency
    } else {
        FindingKind::Other
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn no_output_panics(lines in proptest::collection::vec(
            "(dpkg: error processing (package|archive) |Configuration file '|Processing triggers for )?\\PC{0,60}", 0..30,
        )) {
            let mut listener = Listener::default();
            lines.iter().for_each(|line| listener.hear(line));
            let (findings, conffiles) = listener.end();
            prop_assert!(findings.len() <= lines.len() && conffiles.len() <= lines.len());
        }
    }

    fn hear(text: &str) -> (Vec<Finding>, Vec<String>) {
        let mut listener = Listener::default();
        text.lines().for_each(|line| listener.hear(line));
        listener.end()
    }

    #[test]
    fn each_failure_is_found_with_its_scripts_words() {
        let (findings, _) = hear(
            "Setting up aa (1.0) ...\naa: good\nSetting up bb (1.0) ...\nbb: bad\nbb: very bad\n\
             dpkg: error processing package bb (--configure):\n installed bb package post-installation script subprocess \
             returned error exit status 3\ndpkg: dependency problems prevent configuration of cc:\n cc depends on bb; however:\n  \
             Package bb is not configured yet.\n\ndpkg: error processing package cc (--configure):\n dependency problems - \
             leaving unconfigured\nProcessing triggers for dd (1.0) ...\ndd: bad\n\
             dpkg: error processing package dd (--configure):\n installed dd package post-installation script subprocess \
             returned error exit status 10\n",
        );
        let all: Vec<_> =
            findings.iter().map(|f| (f.kind, f.package.as_deref().unwrap_or_default())).collect();
        assert_eq!(
            all,
            [(FindingKind::Postinst, "bb"), (FindingKind::Dependency, "cc"), (FindingKind::Trigger, "dd")]
        );
        assert_eq!(findings[0].output, ["bb: bad", "bb: very bad"]);
        assert_eq!(findings[2].output, ["dd: bad"]);
    }

    #[test]
    fn an_old_versions_script_that_the_new_one_has_not_is_told() {
        for (script, expected) in [("pre-removal", FindingKind::Prerm), ("post-removal", FindingKind::Postrm)]
        {
            let (findings, _) = hear(&format!(
                "Preparing to unpack .../aa_2.0_all.deb ...\naa: no\n\
                 dpkg: warning: old aa package {script} script subprocess returned error exit status 1\n\
                 dpkg: trying script from the new package instead ...\n\
                 dpkg: error processing archive /x/aa_2.0_all.deb (--unpack):\n \
                 there is no script in the new version of the package - giving up\n"
            ));
            assert_eq!((findings[0].kind, findings[0].package.as_deref()), (expected, Some("aa")));
            assert!(findings[0].output.contains(&"aa: no".to_owned()), "{findings:?}");
        }
    }

    #[test]
    fn an_archive_is_named_by_its_package() {
        let (findings, _) = hear(
            "Preparing to unpack .../lp-taker_1.0_all.deb ...\nUnpacking lp-taker (1.0) ...\n\
             dpkg: error processing archive /var/cache/apt/archives/lp-taker_1%3a1.0_all.deb (--unpack):\n trying to \
             overwrite '/usr/share/x', which is also in package lp-giver 1.0\n\
             dpkg: error processing archive /var/cache/apt/archives/zz_1_all.deb (--unpack):\n cannot copy extracted data \
             for './usr/x' to '/usr/x.dpkg-new': failed to write (No space left on device)\n",
        );
        assert_eq!(
            (findings[0].kind, findings[0].package.as_deref()),
            (FindingKind::FileConflict, Some("lp-taker"))
        );
        assert_eq!((findings[1].kind, findings[1].package.as_deref()), (FindingKind::DiskSpace, Some("zz")));
    }

    #[test]
    fn an_archive_among_many_is_named_by_its_package() {
        let name = |path: &str| named(&format!("{path} (--unpack):"));
        assert_eq!(name("/tmp/apt-dpkg-install-aBcDeF/03-lp-x_1%3a1_all.deb"), "lp-x");
        assert_eq!(name("/var/cache/apt/archives/2048-qt_1_all.deb"), "2048-qt");
        assert_eq!(name("/tmp/apt-dpkg-install-aBcDeF/10-2048-qt_1_all.deb"), "2048-qt");
        assert_eq!(name("x.deb"), "x");
    }

    #[test]
    fn what_is_mended_is_found_and_is_not_what_failed_first() {
        let mut listener = Listener::default();
        listener.hear("E: first");
        listener.mends();
        for line in ["dpkg: error processing package x (--configure):", " why", "later"] {
            listener.hear(line);
        }
        assert_eq!(listener.last_words(), "E: first");
        assert_eq!(listener.end().0.len(), 1);
    }

    #[test]
    fn a_question_about_a_configuration_file_is_no_failure() {
        let (findings, conffiles) = hear(
            "Setting up lp-conf (1.1) ...\n\nConfiguration file '/etc/lp-conf.conf'\n ==> Modified (by you or by a script) \
             since installation.\n ==> Package distributor has shipped an updated version.\n ==> Keeping old config file as \
             default.\n",
        );
        assert!(findings.is_empty());
        assert_eq!(conffiles, ["/etc/lp-conf.conf"]);
    }

    #[test]
    fn however_long_the_lines_are_what_is_told_is_bounded() {
        let long = "ä".repeat(8 << 10);
        let mut listener = Listener::default();
        for number in 0..50 {
            (0..STEP).for_each(|_| listener.hear(&long));
            listener.hear(&format!("dpkg: error processing package p{number}{long} (--configure):"));
            listener.hear(&long);
            listener.hear(&format!("Configuration file '/etc/{number}{long}'"));
        }
        assert!(listener.last_words().len() <= LAST * (LINE + 4));
        let (findings, conffiles) = listener.end();
        assert!(
            !findings.is_empty() && findings[0].output.len() == STEP && findings[0].output[0].ends_with('…')
        );
        let told = findings.iter().map(|f| f.message.len() + f.output.iter().map(String::len).sum::<usize>());
        assert!(told.sum::<usize>() + conffiles.iter().map(String::len).sum::<usize>() <= TOTAL);
    }

    #[test]
    fn whatever_is_said_is_bounded() {
        let mut listener = Listener::default();
        for number in 0..10_000 {
            listener.hear(&format!("dpkg: error processing package p{number} (--configure):"));
            listener.hear(" something");
            listener.hear(&format!("Configuration file '/etc/{number}'"));
        }
        assert_eq!(listener.last_words().lines().count(), LAST);
        let (findings, conffiles) = listener.end();
        assert_eq!((findings.len(), conffiles.len()), (FINDINGS, QUESTIONS));
    }
}
