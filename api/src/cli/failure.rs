//! The one line a command ends with when it cannot go on.

use std::fmt;

/// What went wrong and what to do about it, in one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure(String);

impl Failure {
    /// A failure with this line; line breaks in it (from foreign error texts) become spaces.
    pub(crate) fn new(line: impl fmt::Display) -> Failure {
        let line = without_numbers(&line.to_string());
        Failure(line.split_whitespace().collect::<Vec<_>>().join(" "))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Failure {}

/// Puts "what was being done" in front of an error.
pub(crate) trait Context<T> {
    /// `Err(e)` becomes the failure `"{what}: {e}"`.
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Failure>;
}

impl<T, E: fmt::Display> Context<T> for Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(format_args!("{}: {error}", what())))
    }
}

/// std's `io::Error` ends in " (os error 2)", which helps nobody.
fn without_numbers(mut text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    while let Some(at) = text.find(" (os error ") {
        out.push_str(&text[..at]);
        text = text[at..].split_once(')').map_or("", |(_, rest)| rest);
    }
    out + text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line_and_says_what_was_being_done() {
        let missing =
            std::fs::read("/nonexistent/file").context(|| "cannot read /nonexistent/file".into());
        let failure = missing.expect_err("no such file");
        assert_eq!(
            failure.to_string(),
            "cannot read /nonexistent/file: No such file or directory"
        );
        assert_eq!(Failure::new("a\n  b").to_string(), "a b");
        assert_eq!(
            Failure::new("x: gone (os error 2): y (os error 3)").to_string(),
            "x: gone: y"
        );
    }
}
