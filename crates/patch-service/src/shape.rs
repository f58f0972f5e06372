//! Whether JSON was taken for what it is. Deserialising is more generous than any document of an API: it takes an array
//! for an object, by the order of the fields, and an object of one field for a word out of a list.

use std::fmt;

use serde::Serialize;
use serde_json::Value;

/// Where what was written and what was understood are of different kinds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stray {
    /// The field, such as `packages[0].version`; empty for the whole.
    pub path: String,
    /// What is there, and what has to be.
    pub message: String,
}

impl fmt::Display for Stray {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.path, self.message)
        }
    }
}

/// Compares a JSON text with what was read from it.
///
/// # Errors
/// The first place where an array, an object or a plain value was taken for something else. What cannot be written as
/// JSON again is not compared.
pub fn check(written: &[u8], understood: &impl Serialize) -> Result<(), Stray> {
    let (Ok(written), Ok(understood)) =
        (serde_json::from_slice::<Value>(written), serde_json::to_value(understood))
    else {
        return Ok(());
    };
    compare(&written, &understood, "")
}

fn compare(written: &Value, understood: &Value, path: &str) -> Result<(), Stray> {
    match (written, understood) {
        // Absent is often told as null.
        (Value::Null, _) | (_, Value::Null) => Ok(()),
        (Value::Object(written), Value::Object(understood)) => written.iter().try_for_each(|(key, value)| {
            let Some(other) = understood.get(key) else { return Ok(()) };
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            compare(value, other, &path)
        }),
        (Value::Array(written), Value::Array(understood)) => (0..)
            .zip(written.iter().zip(understood))
            .try_for_each(|(number, (value, other))| compare(value, other, &format!("{path}[{number}]"))),
        _ if kind(written) == kind(understood) => Ok(()),
        _ => {
            let message = format!("this is {}; it has to be {}", kind(written), kind(understood));
            Err(Stray { path: path.to_owned(), message })
        }
    }
}

/// What a value is, with its article.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Word {
        Group,
    }

    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(default)]
    struct Inner {
        name: String,
        word: Option<Word>,
    }

    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(default)]
    struct Outer {
        list: Vec<Inner>,
        inner: Inner,
    }

    fn read(text: &str) -> Result<(), Stray> {
        check(text.as_bytes(), &serde_json::from_str::<Outer>(text).unwrap())
    }

    #[test]
    fn what_is_taken_for_something_else_is_found() {
        for (text, path, message) in [
            ("[]", "", "this is an array; it has to be an object"),
            (r#"{"inner": ["a"]}"#, "inner", "this is an array; it has to be an object"),
            (r#"{"list": [{"name": "a"}, ["b"]]}"#, "list[1]", "this is an array; it has to be an object"),
            (
                r#"{"inner": {"word": {"group": null}}}"#,
                "inner.word",
                "this is an object; it has to be a string",
            ),
        ] {
            let stray = read(text).unwrap_err();
            assert_eq!((stray.path.as_str(), stray.message.as_str()), (path, message), "{text}");
        }
        for text in ["{}", r#"{"list": [{"name": "a", "word": null}], "inner": {"word": "group"}}"#] {
            assert_eq!(read(text), Ok(()), "{text}");
        }
    }
}
