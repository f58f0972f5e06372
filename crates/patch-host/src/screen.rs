//! What is shown, and where it goes.
//!
//! An operation goes on whether or not anybody reads, and its end decides the exit code: so a reader that went away is
//! no error, and the rest is not printed. Any other failure is one, and is told at the end.

use std::io::{self, Write};

use comfy_table::{Table, presets};
use patch_types::terminal;
use serde::Serialize;

/// Standard output and standard error.
pub(crate) struct Screen {
    json: bool,
    out: Box<dyn Write>,
    remarks: Box<dyn Write>,
    /// Why something that was asked for could not be printed, the first time.
    failure: Option<io::Error>,
}

impl Screen {
    pub(crate) fn new(json: bool) -> Self {
        Self::with(json, Box::new(io::stdout()), Box::new(io::stderr()))
    }

    fn with(json: bool, out: Box<dyn Write>, remarks: Box<dyn Write>) -> Self {
        Self { json, out, remarks, failure: None }
    }

    /// Ends the output.
    ///
    /// # Errors
    /// When not all of it could be printed, though somebody would have read it.
    pub(crate) fn close(&mut self) -> io::Result<()> {
        self.failure.take().map_or(Ok(()), Err)
    }

    fn put(&mut self, text: &str) {
        if let Err(error) = put(&mut self.out, text) {
            self.failure.get_or_insert(error);
        }
    }

    /// Whether programs read.
    pub(crate) fn is_json(&self) -> bool {
        self.json
    }

    /// Text, made safe for a terminal, with a line feed at its end.
    pub(crate) fn text(&mut self, text: &str) {
        let text = terminal::text(text);
        let line_feed = if text.ends_with('\n') { "" } else { "\n" };
        self.put(&format!("{text}{line_feed}"));
    }

    /// What a program of ours generated, as it is.
    pub(crate) fn raw(&mut self, text: &str) {
        self.put(text);
    }

    /// One line of JSON.
    ///
    /// # Errors
    /// When the value has no JSON.
    pub(crate) fn json(&mut self, value: &impl Serialize) -> serde_json::Result<()> {
        let text = serde_json::to_string(value)?;
        self.put(&format!("{}\n", terminal::json(&text)));
        Ok(())
    }

    /// A table of lines.
    pub(crate) fn table<const N: usize>(&mut self, header: [&str; N], rows: &[[String; N]]) {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).force_no_tty().set_header(header);
        for row in rows {
            table.add_row(row.each_ref().map(|cell| terminal::line(cell).into_owned()));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let text: String =
            table.lines().flat_map(|line| [line.trim_end().to_owned(), "\n".to_owned()]).collect();
        self.put(&text);
    }

    /// A remark beside the answer, for people.
    pub(crate) fn remark(&mut self, text: &str) {
        if !self.json {
            self.put_beside(&format!("{}\n", terminal::text(text)));
        }
    }

    /// What went wrong.
    pub(crate) fn error(&mut self, error: &anyhow::Error) {
        let text = format!("{error:#}");
        let text = if self.json {
            terminal::json(&serde_json::json!({"error": {"message": text}}).to_string()).into_owned()
        } else {
            format!("linux-patch-host: {}", terminal::text(&text))
        };
        self.put_beside(&format!("{text}\n"));
    }

    /// Nobody could be told that this fails.
    fn put_beside(&mut self, text: &str) {
        let _ = put(&mut self.remarks, text);
    }
}

/// A remark of what is done without a screen, as by a timer; the journal has it.
pub(crate) fn aside(text: &str) {
    eprintln!("linux-patch-host: {}", terminal::line(text));
}

fn put(to: &mut Box<dyn Write>, text: &str) -> io::Result<()> {
    match to.write_all(text.as_bytes()).and_then(|()| to.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            *to = Box::new(io::sink());
            Ok(())
        }
        other => other,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{
        cell::{Ref, RefCell},
        rc::Rc,
    };

    use super::*;

    /// What was printed.
    #[derive(Debug, Clone, Default)]
    pub(crate) struct Paper(Rc<RefCell<Vec<u8>>>);

    impl Paper {
        pub(crate) fn text(&self) -> String {
            let bytes: Ref<'_, Vec<u8>> = self.0.borrow();
            String::from_utf8(bytes.clone()).unwrap()
        }
    }

    impl Write for Paper {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.borrow_mut().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// A screen, what goes to its output and what to its remarks.
    pub(crate) fn paper(json: bool) -> (Screen, Paper, Paper) {
        let (out, remarks) = (Paper::default(), Paper::default());
        (Screen::with(json, Box::new(out.clone()), Box::new(remarks.clone())), out, remarks)
    }

    struct Broken(io::ErrorKind);

    impl Write for Broken {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_went_away_is_no_error() {
        let closed = || Box::new(Broken(io::ErrorKind::BrokenPipe));
        let mut screen = Screen::with(false, closed(), closed());
        screen.text("one");
        screen.text("two");
        screen.remark("three");
        screen.close().unwrap();
    }

    #[test]
    fn what_could_not_be_printed_is_told_at_the_end() {
        let full = || Box::new(Broken(io::ErrorKind::StorageFull));
        let mut screen = Screen::with(false, Box::new(io::sink()), full());
        screen.remark("beside the answer");
        screen.close().unwrap();
        let mut screen = Screen::with(false, full(), Box::new(io::sink()));
        screen.text("one");
        screen.text("two");
        assert_eq!(screen.close().unwrap_err().kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn nothing_that_a_terminal_obeys_is_printed() {
        let (mut screen, out, remarks) = paper(false);
        screen.text("a\u{1b}]0;x\u{7}b");
        screen.table(["NAME", "REASON"], &[["a\u{1b}[2Ja".to_owned(), "b\nc".to_owned()]]);
        screen.remark("\u{9b}2Jd");
        assert_eq!(out.text(), "ab\nNAME  REASON\naa    b c\n");
        assert_eq!(remarks.text(), "d\n");
    }
}
