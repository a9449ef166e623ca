//! A text that must never be seen: an API key, a token, a password.
//!
//! The type has neither `Debug` nor `Display`, so that a secret cannot reach a log, an error or a
//! panic message by accident. Whoever needs the text says so with [`Secret::expose`].

/// A secret text. It is printed nowhere; see the module's documentation.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes `text` into custody.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}
