//! Text that came from a peer.

use std::{fmt, ops::Deref, sync::Arc};

/// A text that a peer sent.
///
/// Cheap to clone: many errors may share it. As a `str` it is what the peer sent. Printed, what could
/// garble a log or a terminal is escaped: control characters, line breaks, marks that turn the direction
/// of writing.
///
/// # Examples
///
/// ```
/// use longhaul::PeerText;
///
/// let text = PeerText::from("bye\n");
/// assert_eq!(text, "bye\n");
/// assert_eq!(text.to_string(), "bye\\n");
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerText(Arc<str>);

impl PeerText {
    /// The text as the peer sent it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Deref for PeerText {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl AsRef<str> for PeerText {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl From<&str> for PeerText {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl From<String> for PeerText {
    fn from(text: String) -> Self {
        Self(text.into())
    }
}

impl PartialEq<str> for PeerText {
    fn eq(&self, other: &str) -> bool {
        &*self.0 == other
    }
}

impl PartialEq<&str> for PeerText {
    fn eq(&self, other: &&str) -> bool {
        &*self.0 == *other
    }
}

impl fmt::Display for PeerText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Printable(&self.0).fmt(f)
    }
}

impl fmt::Debug for PeerText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Prints a peer's text with what could garble a log or a terminal escaped.
pub(crate) struct Printable<'a>(pub(crate) &'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for char in self.0.chars() {
            if garbles(char) {
                char.escape_default().fmt(f)?;
            } else {
                fmt::Write::write_char(f, char)?;
            }
        }
        Ok(())
    }
}

/// Whether a character changes how what stands around it is shown.
fn garbles(char: char) -> bool {
    let turns_direction = matches!(
        char,
        '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}'
    );
    let breaks_line = matches!(char, '\u{2028}' | '\u{2029}');
    char.is_control() || turns_direction || breaks_line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_garble_a_log_is_escaped_where_a_text_is_printed() {
        let text = PeerText::from("a\n\u{1b}[2J\u{202e}\u{2028}\u{85}é\"z");
        assert_eq!(text.to_string(), "a\\n\\u{1b}[2J\\u{202e}\\u{2028}\\u{85}é\"z");
        assert_eq!(text.as_str().len(), "a\n\u{1b}[2J\u{202e}\u{2028}\u{85}é\"z".len());
    }
}
