//! Lines out of a pipe, within bounds.

use std::io::{self, Read};

use crate::run::shown;

/// How much is read at once, in bytes.
const AT_ONCE: usize = 64 << 10;

/// What came so far of a line that has no end yet.
#[derive(Debug)]
pub(super) struct Lines {
    partial: Vec<u8>,
    most: usize,
    overlong: bool,
}

impl Lines {
    /// Of a longer line only the first `most` bytes are kept.
    pub(super) fn at_most(most: usize) -> Self {
        Self { partial: Vec::new(), most, overlong: false }
    }

    /// Reads once, and gives what is whole by that. False at the pipe's end, with what had no line feed.
    pub(super) fn read(&mut self, pipe: &mut impl Read, lines: &mut Vec<String>) -> io::Result<bool> {
        let mut buffer = vec![0; AT_ONCE];
        let n = match pipe.read(&mut buffer) {
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(true),
            Err(error) => return Err(error),
        };
        if n == 0 {
            self.end(lines);
            return Ok(false);
        }
        for byte in buffer.get(..n).unwrap_or_default() {
            match byte {
                b'\n' | b'\r' => self.end(lines),
                _ if self.partial.len() >= self.most => self.overlong = true,
                byte => self.partial.push(*byte),
            }
        }
        Ok(true)
    }

    fn end(&mut self, lines: &mut Vec<String>) {
        if !self.partial.is_empty() {
            let text = String::from_utf8_lossy(&self.partial);
            lines.push(shown(text.into_owned(), self.overlong));
        }
        self.partial.clear();
        self.overlong = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_whole_and_bounded() {
        let mut lines = Lines::at_most(4);
        let mut seen = Vec::new();
        assert!(lines.read(&mut "ab\ncdefgh\nxy".as_bytes(), &mut seen).unwrap());
        assert_eq!(seen, ["ab", "cdef…"]);
        assert!(!lines.read(&mut "".as_bytes(), &mut seen).unwrap());
        assert_eq!(seen, ["ab", "cdef…", "xy"]);
    }

    #[test]
    fn passwords_in_addresses_go_no_further() {
        let mut lines = Lines::at_most(99);
        let mut seen = Vec::new();
        let said = "from https://me:s3cret@h/x\n{\"line\":\"http://t0ken@h\"}\n";
        assert!(lines.read(&mut said.as_bytes(), &mut seen).unwrap());
        assert_eq!(seen, ["from https://***@h/x", "{\"line\":\"http://***@h\"}"]);
        // Too long, and cut within the password.
        let mut lines = Lines::at_most(20);
        let mut seen = Vec::new();
        assert!(lines.read(&mut "from https://me:s3cret@h/x\n".as_bytes(), &mut seen).unwrap());
        assert_eq!(seen, ["from https://***…"]);
    }
}
