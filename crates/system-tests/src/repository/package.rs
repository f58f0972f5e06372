//! One binary package: what it says, what it contains, and making a `.deb` of it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::{Input, run_ok};

/// In which suite, and from which day on, a version is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Published {
    /// The main suite, from day 0 on.
    First,
    /// The main suite on day 0 only: the archive forgets it.
    Former,
    /// The updates suite, from day 1 on.
    Update,
    /// The security suite, from day 1 on.
    Security,
    /// The security suite on day 2.
    Later,
}

/// What a file contains.
#[derive(Debug, Clone)]
pub(super) enum Content {
    Text(String),
    /// A program that does what `sleep` does, different in each version of the package.
    Program,
    /// A shared library that nothing is missed of, different in each version of the package.
    Library,
    /// So many bytes that cannot be compressed.
    Noise(u64),
    /// The same program, which runs as its owner whoever starts it.
    Setuid,
    /// A symbolic link to there.
    Symlink(String),
    /// Another name of a file of the package that stands before it.
    HardLink(String),
    /// A directory with nothing in it.
    Directory,
}

/// One version of one binary package.
#[derive(Debug, Clone)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) published: Published,
    machine_dependent: bool,
    fields: Vec<String>,
    files: Vec<(String, Content)>,
    /// Files of the control area: maintainer scripts and their like, all executable but `templates` and `triggers`.
    control: Vec<(&'static str, String)>,
}

impl Package {
    pub(super) fn new(name: &str, version: &str, published: Published) -> Self {
        Self {
            name: name.to_owned(),
            version: version.to_owned(),
            published,
            machine_dependent: false,
            fields: Vec::new(),
            files: Vec::new(),
            control: Vec::new(),
        }
    }

    /// The same with a field of the control file, `Depends: lp-lib (= 1.0)` for one.
    pub(super) fn field(mut self, field: &str) -> Self {
        self.fields.push(field.to_owned());
        self
    }

    /// The same with a file; one under `/etc` is a conffile.
    pub(super) fn file(mut self, path: &str, content: Content) -> Self {
        self.files.push((path.to_owned(), content));
        self
    }

    /// The same with a shell script as a maintainer script.
    pub(super) fn script(mut self, name: &'static str, body: &str) -> Self {
        self.control.push((name, format!("#!/bin/sh\n{body}\n")));
        self
    }

    /// The same with debconf templates.
    pub(super) fn templates(mut self, text: &str) -> Self {
        self.control.push(("templates", text.to_owned()));
        self
    }

    /// The same with an interest in triggers, or with those that it activates.
    pub(super) fn triggers(mut self, text: &str) -> Self {
        self.control.push(("triggers", format!("{text}\n")));
        self
    }

    /// The same for the machine's architecture instead of all.
    pub(super) fn machine_dependent(mut self) -> Self {
        self.machine_dependent = true;
        self
    }

    /// Makes the `.deb` in `pool`, by way of the directory `scratch`, which is left as it was.
    pub(super) fn build(&self, scratch: &Path, pool: &Path, machine: &str) -> Result<PathBuf> {
        let tree = scratch.join(format!("{}_{}", self.name, self.version));
        let architecture = if self.machine_dependent { machine } else { "all" };
        self.fill(&tree, architecture).with_context(|| format!("cannot lay out {}", tree.display()))?;
        // As Debian does, the file's name has no epoch.
        let version = self.version.split_once(':').map_or(&*self.version, |(_, version)| version);
        let deb = pool.join(format!("{}_{version}_{architecture}.deb", self.name));
        let mut command = Command::new("dpkg-deb");
        command.args(["--root-owner-group", "-Znone", "--build"]).arg(&tree).arg(&deb);
        run_ok(command, Input::Nothing).with_context(|| format!("cannot build {}", deb.display()))?;
        fs::remove_dir_all(&tree)?;
        Ok(deb)
    }

    fn fill(&self, tree: &Path, architecture: &str) -> Result<()> {
        let version_file =
            (format!("/usr/share/{}/version", self.name), Content::Text(format!("{}\n", self.version)));
        for (path, content) in self.files.iter().chain([&version_file]) {
            write_with_parents(tree, path, content, &self.version)?;
        }
        let mut control = format!(
            "Package: {}\nVersion: {}\nArchitecture: {architecture}\nMaintainer: Test <test@test.invalid>\n\
             Section: misc\nPriority: optional\n",
            self.name, self.version
        );
        for field in &self.fields {
            control += &format!("{field}\n");
        }
        control += &format!("Description: test package {} {}\n", self.name, self.version);
        let area = tree.join("DEBIAN");
        fs::create_dir_all(&area)?;
        fs::write(area.join("control"), control)?;
        let conffiles: String = self
            .files
            .iter()
            .filter(|(path, _)| path.starts_with("/etc/"))
            .map(|(path, _)| format!("{path}\n"))
            .collect();
        if !conffiles.is_empty() {
            fs::write(area.join("conffiles"), conffiles)?;
        }
        for (name, text) in &self.control {
            let path = area.join(name);
            fs::write(&path, text)?;
            let mode = if matches!(*name, "templates" | "triggers") { 0o644 } else { 0o755 };
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        }
        Ok(())
    }
}

/// A library of the machine's that has next to nothing in it.
fn small_library() -> Result<PathBuf> {
    let directories = fs::read_dir("/usr/lib").context("cannot list /usr/lib")?.flatten();
    let mut found =
        directories.map(|directory| directory.path().join("libdl.so.2")).filter(|path| path.is_file());
    found.next().context("the machine has no libdl.so.2")
}

fn write_with_parents(tree: &Path, path: &str, content: &Content, version: &str) -> Result<()> {
    let inside = |path: &str| tree.join(path.trim_start_matches('/'));
    let path = &inside(path);
    fs::create_dir_all(path.parent().context("a file needs a directory")?)?;
    match content {
        Content::Text(text) => fs::write(path, text)?,
        Content::Symlink(there) => symlink(there, path)?,
        Content::HardLink(there) => fs::hard_link(inside(there), path)?,
        Content::Directory => fs::create_dir(path)?,
        Content::Program | Content::Setuid => {
            let mut program = fs::read("/bin/sleep").context("cannot read /bin/sleep")?;
            // What follows an ELF program's sections does not matter to it.
            program.extend_from_slice(version.as_bytes());
            fs::write(path, program)?;
            let mode = if matches!(content, Content::Setuid) { 0o4755 } else { 0o755 };
            fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        }
        Content::Library => {
            let mut library = fs::read(small_library()?).context("cannot read a library")?;
            library.extend_from_slice(version.as_bytes());
            fs::write(path, library)?;
        }
        Content::Noise(length) => {
            use std::io::Read;
            let mut noise = fs::File::open("/dev/urandom")?.take(*length);
            std::io::copy(&mut noise, &mut fs::File::create(path)?)?;
        }
    }
    Ok(())
}
