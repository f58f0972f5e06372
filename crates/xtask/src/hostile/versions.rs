//! Our order of versions against dpkg's: `Dpkg::Version` of `libdpkg-perl`, dpkg's own implementation in a form that can
//! be asked a million times, and for a sample `dpkg --compare-versions` itself.

use std::{
    cmp::Ordering,
    io::Write as _,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, ensure};
use patch_backends::apt::versions;

/// Answers a pair a line by -1, 0 or 1; `?` for what it does not take for versions.
const ASK: &str = "use Dpkg::Version; while (<STDIN>) { chomp; my ($a, $b) = split / /; \
    my ($va, $vb) = map { Dpkg::Version->new($_, check => 1) } ($a, $b); \
    print defined $va && defined $vb ? version_compare($a, $b) : '?', qq{\\n} }";

/// How many of the pairs dpkg itself is asked.
const SAMPLE: usize = 1000;

/// A small generator of its own, so that a seed means the same pairs for ever (`splitmix64`).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % (limit as u64).max(1)).unwrap_or_default()
    }
}

/// A version: an epoch now and then, an upstream part, a revision often.
fn version(random: &mut Random) -> String {
    const UPSTREAM: &[u8] = b"000123459.....~~++-aAzZb";
    const REVISION: &[u8] = b"00123459..~~++aAzZub";
    let mut text = match random.below(5) {
        0 => format!("{}:", random.below(3)),
        _ => String::new(),
    };
    text.push(char::from(b'0' + u8::try_from(random.below(10)).unwrap_or_default()));
    let mut part = |text: &mut String, letters: &[u8]| {
        for _ in 0..random.below(8) {
            let letter = letters.get(random.below(letters.len())).copied().unwrap_or(b'0');
            text.push(char::from(letter));
        }
    };
    let mut upstream = String::new();
    part(&mut upstream, UPSTREAM);
    let mut revision = String::new();
    part(&mut revision, REVISION);
    text.push_str(&upstream);
    if !revision.is_empty() {
        text.push('-');
        text.push_str(&revision);
    }
    text
}

/// Pairs: half of them differ in one place only, since that is where orders differ.
fn pair(random: &mut Random) -> (String, String) {
    let a = version(random);
    if random.below(2) == 0 {
        return (a, version(random));
    }
    let mut b = a.clone();
    let at = 1 + random.below(a.len());
    let letters = b"019az~+.-";
    let letter = char::from(letters.get(random.below(letters.len())).copied().unwrap_or(b'0'));
    match random.below(3) {
        0 if at < b.len() => drop(b.remove(at)),
        1 if at < b.len() => b.replace_range(at..=at, &letter.to_string()),
        _ => b.insert(at.min(b.len()), letter),
    }
    (a, b)
}

/// Compares `count` pairs and gives the figures.
pub(super) fn compare(seed: u64, count: usize) -> Result<String> {
    let mut random = Random(seed);
    let pairs: Vec<(String, String)> = (0..count).map(|_| pair(&mut random)).collect();
    let mut perl = Command::new("perl")
        .args(["-e", ASK])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start perl; apt-get install libdpkg-perl")?;
    let mut input = perl.stdin.take().context("no standard input")?;
    let lines: String = pairs.iter().map(|(a, b)| format!("{a} {b}\n")).collect();
    let writer = thread::spawn(move || input.write_all(lines.as_bytes()));
    let output = perl.wait_with_output()?;
    let written = writer.join();
    ensure!(
        output.status.success() && written.is_ok_and(|result| result.is_ok()),
        "Dpkg::Version could not be asked; apt-get install libdpkg-perl"
    );
    let answers = String::from_utf8(output.stdout)?;
    let (mut compared, mut differ) = (0_usize, Vec::new());
    // The library takes an epoch alone for a version, which dpkg itself refuses.
    let is_version = |text: &str| !text.ends_with(':');
    for ((a, b), answer) in pairs.iter().zip(answers.lines()) {
        if !is_version(a) || !is_version(b) {
            continue;
        }
        let theirs = match answer {
            "-1" => Ordering::Less,
            "0" => Ordering::Equal,
            "1" => Ordering::Greater,
            _ => continue,
        };
        compared += 1;
        if versions::compare(a, b) != theirs {
            differ.push(format!("{a} {b}: dpkg says {theirs:?}"));
        }
    }
    let shown = differ.iter().take(10).map(String::as_str).collect::<Vec<_>>().join("; ");
    ensure!(differ.is_empty(), "seed {seed}: {} of {compared} differ: {shown}", differ.len());
    ensure!(compared > count / 2, "only {compared} of {count} pairs are versions");
    let asked = sample(&pairs)?;
    Ok(format!(
        "{count} pairs, {compared} of them two versions each, none differs from dpkg's; {asked} asked of dpkg itself"
    ))
}

fn sample(pairs: &[(String, String)]) -> Result<usize> {
    let mut asked = 0;
    for (a, b) in pairs.iter().take(SAMPLE) {
        let says = |relation: &str| -> Result<bool> {
            let mut command = Command::new("dpkg");
            command.args(["--compare-versions", a, relation, b]).stderr(Stdio::null());
            Ok(command.status().context("cannot start dpkg")?.success())
        };
        let theirs = match (says("lt")?, says("gt")?) {
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
            (false, false) if says("eq")? => Ordering::Equal,
            _ => continue,
        };
        asked += 1;
        ensure!(versions::compare(a, b) == theirs, "{a} {b}: dpkg says {theirs:?}");
    }
    Ok(asked)
}
