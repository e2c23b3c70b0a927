//! What can be wrong with an encoded tensor.

use thiserror::Error;

/// Bytes that no encoder of ours has made for this tensor. What they were applied to is of no use any more.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CodecError {
    /// The bytes end where more must follow.
    #[error("the bytes end within {0}")]
    Cut(&'static str),
    /// A length or count is larger than the tensor allows; nothing was allocated for it.
    #[error("{what} is {got}, the tensor allows {limit}")]
    TooMany {
        /// Which number.
        what: &'static str,
        /// As it was read.
        got: u64,
        /// What is possible at most.
        limit: u64,
    },
    /// A changed value beyond the tensor's end.
    #[error("a change at value {at} of {len}")]
    Position {
        /// Index of the value.
        at: u64,
        /// Values of the tensor.
        len: u64,
    },
    /// More bytes than the tensor needs.
    #[error("{0} bytes too many")]
    Trailing(usize),
    /// zstd refused the bytes, or they came out at another length.
    #[error("{what} is not what zstd made of it: {text}")]
    Zstd {
        /// Which part.
        what: &'static str,
        /// What zstd said.
        text: String,
    },
    /// A number that no encoder writes.
    #[error("{what} cannot be {got}")]
    Impossible {
        /// Which number.
        what: &'static str,
        /// As it was read.
        got: u64,
    },
    /// The tensor's bytes are not a whole number of values, or not as many as the other version's.
    #[error("{bytes} bytes are not {wanted}")]
    Shape {
        /// What was given.
        bytes: usize,
        /// What it must be, in words.
        wanted: String,
    },
    /// A codec that does not exist.
    #[error("unknown codec {0:?}")]
    UnknownCodec(String),
}
