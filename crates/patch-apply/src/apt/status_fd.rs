//! apt's machine-readable progress (`APT::Status-Fd`, described in apt's `README.progress-reporting`).

/// One line of it.
#[derive(Debug, Clone, PartialEq)]
pub enum Status {
    /// A download's progress in percent of all downloads.
    Download {
        /// 0 to 100.
        percent: f32,
        /// apt's words.
        message: String,
    },
    /// The package manager's progress in percent of all steps.
    Package {
        /// The package, with architecture if it is foreign; `dpkg-exec` between runs of dpkg.
        package: String,
        /// 0 to 100.
        percent: f32,
        /// apt's words.
        message: String,
    },
    /// A package's step failed.
    Error {
        /// The package or archive.
        package: String,
        /// dpkg's words.
        message: String,
    },
    /// dpkg asked about a changed configuration file (and took the answer that it was told beforehand).
    Conffile {
        /// The path.
        path: String,
    },
}

/// Reads one line; `None` for what is not progress, in any form.
#[must_use]
pub fn parse(line: &str) -> Option<Status> {
    let (kind, rest) = line.split_once(':')?;
    // A package of a foreign architecture brings a colon of its own, so the percentage is the first field that reads
    // as a number: names cannot, since no architecture is one.
    let percent_at = |rest: &str| -> Option<(String, f32, String)> {
        let mut from = 0;
        while let Some(colon) = rest.get(from..)?.find(':').map(|i| from + i) {
            let after = rest.get(colon + 1..)?;
            let (field, message) = after.split_once(':').unwrap_or((after, ""));
            if let Ok(percent) = field.parse::<f32>()
                && percent.is_finite()
            {
                return Some((rest.get(..colon)?.to_owned(), percent.clamp(0.0, 100.0), message.to_owned()));
            }
            from = colon + 1;
        }
        None
    };
    let (package, percent, message) = percent_at(rest)?;
    match kind {
        "dlstatus" => Some(Status::Download { percent, message }),
        "pmstatus" => Some(Status::Package { package, percent, message }),
        "pmerror" => Some(Status::Error { package, message }),
        "pmconffile" => Some(Status::Conffile { path: package }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn lines_of_apt_are_understood() {
        let package = |package: &str, percent, message: &str| {
            Some(Status::Package { package: package.into(), percent, message: message.into() })
        };
        let rows = [
            (
                "dlstatus:2:50.0000:Retrieving file 2 of 2",
                Some(Status::Download { percent: 50.0, message: "Retrieving file 2 of 2".into() }),
            ),
            (
                "pmstatus:lp-plain:20.0000:Unpacking lp-plain (amd64)",
                package("lp-plain", 20.0, "Unpacking lp-plain (amd64)"),
            ),
            (
                "pmstatus:libc6:i386:7.5:Preparing libc6:i386 (i386)",
                package("libc6:i386", 7.5, "Preparing libc6:i386 (i386)"),
            ),
            ("pmstatus:dpkg-exec:0.0000:Running dpkg", package("dpkg-exec", 0.0, "Running dpkg")),
            (
                "pmerror:/x/y_1%3a0_all.deb:40.0:sub: process",
                Some(Status::Error { package: "/x/y_1%3a0_all.deb".into(), message: "sub: process".into() }),
            ),
            ("pmstatus:a", None),
            ("", None),
            ("Reading package lists...", None),
        ];
        for (line, expected) in rows {
            assert_eq!(parse(line), expected, "{line}");
        }
    }

    proptest! {
        #[test]
        fn no_line_panics(line in "(dlstatus|pmstatus|pmerror)?:?\\PC{0,60}") {
            if let Some(Status::Package { percent, .. } | Status::Download { percent, .. }) = parse(&line) {
                prop_assert!((0.0..=100.0).contains(&percent));
            }
        }
    }
}
