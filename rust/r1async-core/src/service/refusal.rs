//! Why a message is refused, as a code that programs read and a text that people read.

use crate::frame::FrameError;
use crate::messages::MessageError;

/// Why a message is refused; it becomes an error message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) code: &'static str,
    pub(super) message: String,
    /// The highest epoch seen, where the message named a lower one.
    pub(super) seen: Option<u64>,
}

impl Refusal {
    pub(super) fn new(code: &'static str, message: impl ToString) -> Self {
        Self {
            code,
            message: message.to_string(),
            seen: None,
        }
    }
}

impl From<FrameError> for Refusal {
    fn from(error: FrameError) -> Self {
        let code = if matches!(error, FrameError::TooBig { .. }) {
            "too_big"
        } else {
            "malformed"
        };
        Self::new(code, error)
    }
}

impl From<MessageError> for Refusal {
    fn from(error: MessageError) -> Self {
        let code = match error {
            MessageError::Field { .. } => "malformed",
            MessageError::UnknownType(_) => "unknown_type",
            MessageError::WrongRole { .. } => "role",
        };
        Self::new(code, error)
    }
}
