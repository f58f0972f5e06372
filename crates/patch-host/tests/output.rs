//! What the program says through its exit code when its output cannot be written.
#![expect(clippy::disallowed_methods, reason = "the test starts the program")]

use std::{
    fs::File,
    process::{Command, Stdio},
};

#[test]
fn a_full_output_is_a_failure_and_a_closed_one_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let run = |out: Stdio| {
        let mut program = Command::new(env!("CARGO_BIN_EXE_linux-patch-host"));
        program.arg("--root").arg(dir.path()).args(["jobs", "--json"]).stdout(out);
        program.stderr(Stdio::piped()).output().unwrap()
    };
    let full = run(File::options().write(true).open("/dev/full").unwrap().into());
    let said = String::from_utf8(full.stderr).unwrap();
    assert_eq!(full.status.code(), Some(1), "{said}");
    assert!(said.contains("not all could be printed"), "{said}");

    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let closed = run(writer.into());
    assert_eq!((closed.status.code(), closed.stderr.len()), (Some(0), 0));
}
