//! A strict reader of the msgpack that headers are made of: no extension types, string keys, finite depth.

use rmp::Marker;

use super::FrameError;

/// Arrays in arrays at most; the deepest message (`chunks`) has five.
pub const MAX_DEPTH: usize = 16;
/// Values in one header at most: what a hostile header can make us allocate, whatever it claims.
pub const MAX_VALUES: usize = 1 << 20;

/// One msgpack value; strings and blobs are slices of the frame.
#[derive(Debug, Clone, PartialEq)]
pub enum Value<'a> {
    /// Nothing.
    Nil,
    /// True or false.
    Bool(bool),
    /// Any integer up to 64 bits signed.
    Int(i64),
    /// Single or double precision.
    Float(f64),
    /// UTF-8.
    Str(&'a str),
    /// Bytes.
    Bin(&'a [u8]),
    /// A list.
    Array(Vec<Value<'a>>),
    /// A map with string keys.
    Map(Vec<(&'a str, Value<'a>)>),
}

impl Value<'_> {
    /// What it is, for an error text.
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::Nil => "nil".into(),
            Self::Bool(value) => value.to_string(),
            Self::Int(value) => value.to_string(),
            Self::Float(value) => format!("{value:?}"),
            Self::Str(value) => format!("{:?}", value.chars().take(64).collect::<String>()),
            Self::Bin(value) => format!("{} bytes", value.len()),
            Self::Array(values) => format!("a list of {}", values.len()),
            Self::Map(entries) => format!("a map of {}", entries.len()),
        }
    }
}

/// The one value that `bytes` hold.
pub(super) fn read(bytes: &[u8]) -> Result<Value<'_>, FrameError> {
    let mut reader = Reader {
        bytes,
        at: 0,
        values_left: MAX_VALUES,
    };
    let value = reader.value(0)?;
    match bytes.len() - reader.at {
        0 => Ok(value),
        _ => reader.fail("bytes after the value"),
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    values_left: usize,
}

impl<'a> Reader<'a> {
    fn fail<T>(&self, what: &'static str) -> Result<T, FrameError> {
        Err(FrameError::Msgpack { what, at: self.at })
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], FrameError> {
        let Some(taken) = self.bytes[self.at..].get(..count) else {
            return self.fail("a value goes past the end");
        };
        self.at += count;
        Ok(taken)
    }

    fn raw<const N: usize>(&mut self) -> Result<[u8; N], FrameError> {
        let mut raw = [0; N];
        raw.copy_from_slice(self.take(N)?);
        Ok(raw)
    }

    fn len<const N: usize>(&mut self) -> Result<usize, FrameError> {
        Ok(self
            .raw::<N>()?
            .iter()
            .fold(0, |len, byte| len << 8 | usize::from(*byte)))
    }

    fn value(&mut self, depth: usize) -> Result<Value<'a>, FrameError> {
        if depth > MAX_DEPTH {
            return self.fail("nested too deeply");
        }
        let Some(left) = self.values_left.checked_sub(1) else {
            return self.fail("too many values");
        };
        self.values_left = left;
        let [marker] = self.raw()?;
        Ok(match Marker::from_u8(marker) {
            Marker::Null => Value::Nil,
            Marker::True => Value::Bool(true),
            Marker::False => Value::Bool(false),
            Marker::FixPos(value) => Value::Int(value.into()),
            Marker::FixNeg(value) => Value::Int(value.into()),
            Marker::U8 => Value::Int(u8::from_be_bytes(self.raw()?).into()),
            Marker::U16 => Value::Int(u16::from_be_bytes(self.raw()?).into()),
            Marker::U32 => Value::Int(u32::from_be_bytes(self.raw()?).into()),
            Marker::U64 => match i64::try_from(u64::from_be_bytes(self.raw()?)) {
                Ok(value) => Value::Int(value),
                Err(_) => return self.fail("an integer above 2^63 - 1"),
            },
            Marker::I8 => Value::Int(i8::from_be_bytes(self.raw()?).into()),
            Marker::I16 => Value::Int(i16::from_be_bytes(self.raw()?).into()),
            Marker::I32 => Value::Int(i32::from_be_bytes(self.raw()?).into()),
            Marker::I64 => Value::Int(i64::from_be_bytes(self.raw()?)),
            Marker::F32 => Value::Float(f32::from_be_bytes(self.raw()?).into()),
            Marker::F64 => Value::Float(f64::from_be_bytes(self.raw()?)),
            Marker::FixStr(len) => self.string(len.into())?,
            Marker::Str8 => self.len::<1>().and_then(|len| self.string(len))?,
            Marker::Str16 => self.len::<2>().and_then(|len| self.string(len))?,
            Marker::Str32 => self.len::<4>().and_then(|len| self.string(len))?,
            Marker::Bin8 => self
                .len::<1>()
                .and_then(|len| self.take(len))
                .map(Value::Bin)?,
            Marker::Bin16 => self
                .len::<2>()
                .and_then(|len| self.take(len))
                .map(Value::Bin)?,
            Marker::Bin32 => self
                .len::<4>()
                .and_then(|len| self.take(len))
                .map(Value::Bin)?,
            Marker::FixArray(len) => self.array(len.into(), depth)?,
            Marker::Array16 => self.len::<2>().and_then(|len| self.array(len, depth))?,
            Marker::Array32 => self.len::<4>().and_then(|len| self.array(len, depth))?,
            Marker::FixMap(len) => self.map(len.into(), depth)?,
            Marker::Map16 => self.len::<2>().and_then(|len| self.map(len, depth))?,
            Marker::Map32 => self.len::<4>().and_then(|len| self.map(len, depth))?,
            _ => return self.fail("a type we do not take"),
        })
    }

    fn string(&mut self, len: usize) -> Result<Value<'a>, FrameError> {
        match std::str::from_utf8(self.take(len)?) {
            Ok(text) => Ok(Value::Str(text)),
            Err(_) => self.fail("a string that is not UTF-8"),
        }
    }

    /// Every element takes a byte at least: a longer list than there are bytes is a lie.
    fn claimed(&self, len: usize, bytes_each: usize) -> Result<usize, FrameError> {
        if len > (self.bytes.len() - self.at) / bytes_each || len > self.values_left {
            return self.fail("a longer list or map than the header holds");
        }
        Ok(len)
    }

    fn array(&mut self, len: usize, depth: usize) -> Result<Value<'a>, FrameError> {
        let len = self.claimed(len, 1)?;
        let mut values = Vec::with_capacity(len);
        for _ in 0..len {
            values.push(self.value(depth + 1)?);
        }
        Ok(Value::Array(values))
    }

    fn map(&mut self, len: usize, depth: usize) -> Result<Value<'a>, FrameError> {
        let len = self.claimed(len, 2)?;
        let mut entries = Vec::with_capacity(len);
        for _ in 0..len {
            let Value::Str(key) = self.value(depth + 1)? else {
                return self.fail("a map key that is not a string");
            };
            entries.push((key, self.value(depth + 1)?));
        }
        Ok(Value::Map(entries))
    }
}
