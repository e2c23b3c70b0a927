//! One message is one frame: a msgpack header, then raw little-endian columns (`wire.py` has the layout).
//!
//! Reading borrows: strings, blobs and columns are slices of the frame. Every size is checked against the
//! bytes that are there before anything is allocated for it, so a hostile frame costs at most
//! [`MAX_VALUES`] small values. Writing allocates once, the exact size: columns are laid down in place.

mod value;
mod write;

use std::borrow::Cow;

use bytemuck::Pod;
use thiserror::Error;

pub use value::{MAX_DEPTH, MAX_VALUES, Value};
pub use write::{Bytes, Filled, FrameWriter, Nested, Open, Sealed};

#[cfg(target_endian = "big")]
compile_error!("columns are little-endian on the wire and are copied as they lie in memory");

/// First bytes of every frame; the last digit is the layout's version.
pub const MAGIC: [u8; 4] = *b"R1A1";
/// A longer header is refused.
pub const MAX_HEADER_BYTES: usize = 64 << 20;
/// More columns than any message has are refused.
pub const MAX_COLUMNS: usize = 256;

/// How a frame breaks the layout.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FrameError {
    /// The frame is larger than `buffer.max_message_bytes`.
    #[error("message of {got} bytes, at most {cap} are taken (buffer.max_message_bytes)")]
    TooBig {
        /// Bytes of the frame.
        got: usize,
        /// Bytes that are taken.
        cap: usize,
    },
    /// The magic is missing.
    #[error(
        "not a message of this protocol: {len} bytes beginning with {begin:02x?}, wanted \"R1A1\""
    )]
    NotOurs {
        /// Bytes of the frame.
        len: usize,
        /// The first of them, at most four.
        begin: Vec<u8>,
    },
    /// The header's length does not fit the frame or the cap.
    #[error("header of {header} bytes in a frame of {frame}")]
    HeaderSize {
        /// What the frame says.
        header: usize,
        /// What there is.
        frame: usize,
    },
    /// The header is not the msgpack we take.
    #[error("header is not msgpack of this protocol: {what} at byte {at}")]
    Msgpack {
        /// What is wrong.
        what: &'static str,
        /// Where, counted from the header's begin.
        at: usize,
    },
    /// The header has no string `t`.
    #[error("header must be a map with a string 't'")]
    NoType,
    /// An entry of `cols` is not `[name, dtype, count]`, or there are too many.
    #[error(
        "column entry {index} must be [name, dtype, count] with a known dtype and count >= 0 (at most {MAX_COLUMNS})"
    )]
    ColumnEntry {
        /// Place in `cols`.
        index: usize,
    },
    /// A column goes past the frame's end.
    #[error("column {name:?} ends at byte {end} of {frame}")]
    ColumnEnd {
        /// The column.
        name: String,
        /// Where it would end.
        end: u128,
        /// Where the frame ends.
        frame: usize,
    },
    /// The frame goes on after the last column.
    #[error("{0} bytes after the last column")]
    Trailing(usize),
}

/// Element type of a column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    /// Unsigned byte.
    U1,
    /// Signed 16 bit.
    I2,
    /// Unsigned 16 bit.
    U2,
    /// Signed 32 bit.
    I4,
    /// Signed 64 bit.
    I8,
    /// Single precision.
    F4,
    /// Double precision.
    F8,
}

impl Dtype {
    /// The wire's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::U1 => "u1",
            Self::I2 => "i2",
            Self::U2 => "u2",
            Self::I4 => "i4",
            Self::I8 => "i8",
            Self::F4 => "f4",
            Self::F8 => "f8",
        }
    }

    /// Bytes of one element.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::U1 => 1,
            Self::I2 | Self::U2 => 2,
            Self::I4 | Self::F4 => 4,
            Self::I8 | Self::F8 => 8,
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [
            Self::U1,
            Self::I2,
            Self::U2,
            Self::I4,
            Self::I8,
            Self::F4,
            Self::F8,
        ]
        .into_iter()
        .find(|dtype| dtype.name() == name)
    }
}

/// A Rust type that a column can hold.
pub trait Element: Pod {
    /// Its name on the wire.
    const DTYPE: Dtype;
}

macro_rules! elements {
    ($($rust:ty => $dtype:ident),*) => { $(impl Element for $rust { const DTYPE: Dtype = Dtype::$dtype; })* };
}
elements!(u8 => U1, i16 => I2, u16 => U2, i32 => I4, i64 => I8, f32 => F4, f64 => F8);

/// One column: a slice of the frame.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Column<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its element type.
    pub dtype: Dtype,
    /// Its little-endian bytes, at any alignment.
    pub bytes: &'a [u8],
}

impl<'a> Column<'a> {
    /// Number of elements.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// No elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The elements: borrowed where the frame happens to be aligned for them, else copied once.
    /// `None` if the column holds another type.
    #[must_use]
    pub fn elements<T: Element>(&self) -> Option<Cow<'a, [T]>> {
        if self.dtype != T::DTYPE {
            return None;
        }
        Some(match bytemuck::try_cast_slice(self.bytes) {
            Ok(slice) => Cow::Borrowed(slice),
            Err(_) => Cow::Owned(bytemuck::allocation::pod_collect_to_vec(self.bytes)),
        })
    }
}

/// A decoded frame.
#[derive(Debug, Clone, PartialEq)]
pub struct Frame<'a> {
    /// The message's type, `t`.
    pub kind: &'a str,
    /// All entries of the header but `cols`.
    pub header: Vec<(&'a str, Value<'a>)>,
    /// The columns in their order.
    pub columns: Vec<Column<'a>>,
}

impl<'a> Frame<'a> {
    /// The message in `bytes`, if it is one of at most `cap` bytes.
    ///
    /// # Errors
    /// Where the bytes break the layout.
    pub fn decode(bytes: &'a [u8], cap: usize) -> Result<Self, FrameError> {
        if bytes.len() > cap {
            return Err(FrameError::TooBig {
                got: bytes.len(),
                cap,
            });
        }
        if bytes.len() < 8 || bytes[..4] != MAGIC {
            let begin = bytes[..bytes.len().min(4)].to_vec();
            return Err(FrameError::NotOurs {
                len: bytes.len(),
                begin,
            });
        }
        let size = u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) as usize;
        if size > MAX_HEADER_BYTES || size > bytes.len() - 8 {
            return Err(FrameError::HeaderSize {
                header: size,
                frame: bytes.len(),
            });
        }
        let Value::Map(mut header) = value::read(&bytes[8..8 + size])? else {
            return Err(FrameError::NoType);
        };
        let Some(&(_, Value::Str(kind))) = header.iter().rfind(|(key, _)| *key == "t") else {
            return Err(FrameError::NoType);
        };
        let cols = header
            .iter()
            .rposition(|(key, _)| *key == "cols")
            .map(|at| header.swap_remove(at).1);
        let columns = columns(bytes, padded(8 + size), cols.as_ref())?;
        Ok(Self {
            kind,
            header,
            columns,
        })
    }

    /// The value under `key`; of a repeated key the last, as in Python.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value<'a>> {
        self.header
            .iter()
            .rfind(|(name, _)| *name == key)
            .map(|(_, value)| value)
    }

    /// The column called `name`.
    #[must_use]
    pub fn column(&self, name: &str) -> Option<&Column<'a>> {
        self.columns.iter().rfind(|column| column.name == name)
    }
}

/// `size` rounded up to the next multiple of 8.
const fn padded(size: usize) -> usize {
    size.next_multiple_of(8)
}

fn columns<'a>(
    bytes: &'a [u8],
    begin: usize,
    cols: Option<&Value<'a>>,
) -> Result<Vec<Column<'a>>, FrameError> {
    let entries: &[Value<'a>] = match cols {
        None => &[],
        Some(Value::Array(entries)) if entries.len() <= MAX_COLUMNS => entries,
        Some(_) => return Err(FrameError::ColumnEntry { index: 0 }),
    };
    let mut columns = Vec::with_capacity(entries.len());
    let mut offset = begin;
    for (index, entry) in entries.iter().enumerate() {
        let (name, dtype, count) = column_entry(entry).ok_or(FrameError::ColumnEntry { index })?;
        // u128: a hostile count times the element size must not wrap around.
        let end = offset as u128 + u128::from(count) * dtype.size() as u128;
        let column = usize::try_from(end)
            .ok()
            .and_then(|end| bytes.get(offset..end));
        let Some(column) = column else {
            return Err(FrameError::ColumnEnd {
                name: name.chars().take(64).collect(),
                end,
                frame: bytes.len(),
            });
        };
        offset = padded(offset + column.len());
        columns.push(Column {
            name,
            dtype,
            bytes: column,
        });
    }
    match bytes.len().checked_sub(offset) {
        Some(0) => Ok(columns),
        Some(rest) => Err(FrameError::Trailing(rest)),
        None => Err(FrameError::ColumnEnd {
            name: "padding".into(),
            end: offset as u128,
            frame: bytes.len(),
        }),
    }
}

fn column_entry<'a>(entry: &Value<'a>) -> Option<(&'a str, Dtype, u64)> {
    match entry {
        Value::Array(entry) => match entry[..] {
            [Value::Str(name), Value::Str(dtype), Value::Int(count)] => {
                Some((name, Dtype::from_name(dtype)?, u64::try_from(count).ok()?))
            }
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests;
