//! Errors as people meet them: one sentence what, one what to do, and an exit code.

use std::{fmt, process::ExitCode};

/// Why a command failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: Code,
    pub what: String,
    pub remedy: String,
}

/// Exit codes; scripts rely on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Code {
    Failed = 1,
    /// Nothing was changed.
    Usage = 2,
    NoNode = 3,
    TimedOut = 4,
}

impl Failure {
    pub fn new(code: Code, what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { code, what: what.into(), remedy: remedy.into() }
    }

    pub fn failed(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Code::Failed, what, remedy)
    }

    pub fn usage(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::new(Code::Usage, what, remedy)
    }

    pub fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code as u8)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if !self.what.ends_with(['.', '\n']) {
            f.write_str(".")?;
        }
        if !self.remedy.is_empty() {
            write!(f, " {}", self.remedy)?;
        }
        Ok(())
    }
}

impl std::error::Error for Failure {}

/// A sentence's beginning.
pub fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}
