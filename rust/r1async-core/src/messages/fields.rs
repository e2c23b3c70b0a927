//! Reading one field after the other, each error naming the field it is about.

use std::borrow::Cow;

use super::{MAX_ENTRIES, MAX_NAME_BYTES, MessageError};
use crate::frame::{Element, Frame, Value};

/// The entries of a header or of a map inside it.
pub(super) struct Fields<'f, 'a> {
    kind: &'f str,
    path: String,
    entries: &'f [(&'a str, Value<'a>)],
    frame: Option<&'f Frame<'a>>,
}

/// One value and where it stands.
pub(super) struct At<'f, 'a> {
    kind: &'f str,
    path: Path<'f>,
    value: &'f Value<'a>,
}

/// Where a value stands: only spelled out when there is something to say about it.
#[derive(Clone, Copy)]
enum Path<'f> {
    Field { of: &'f str, name: &'f str },
    Place { of: &'f Path<'f>, at: usize },
}

impl std::fmt::Display for Path<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Field { of: "", name } => write!(out, "{name}"),
            Self::Field { of, name } => write!(out, "{of}.{name}"),
            Self::Place { of, at } => write!(out, "{of}[{at}]"),
        }
    }
}

impl<'f, 'a> Fields<'f, 'a> {
    pub(super) fn of(frame: &'f Frame<'a>) -> Self {
        Self {
            kind: frame.kind,
            path: String::new(),
            entries: &frame.header,
            frame: Some(frame),
        }
    }

    fn wrong(&self, field: &str, want: &'static str, got: String) -> MessageError {
        MessageError::Field {
            message: self.kind.into(),
            field: field.into(),
            want,
            got,
        }
    }

    pub(super) fn get(&'f self, name: &'f str) -> Result<At<'f, 'a>, MessageError> {
        self.given(name).ok_or_else(|| {
            let path = Path::Field {
                of: &self.path,
                name,
            };
            self.wrong(&path.to_string(), "given", "nothing".into())
        })
    }

    /// A field that may be left out.
    pub(super) fn given(&'f self, name: &'f str) -> Option<At<'f, 'a>> {
        let path = Path::Field {
            of: &self.path,
            name,
        };
        let (_, value) = self.entries.iter().rfind(|(key, _)| *key == name)?;
        Some(At {
            kind: self.kind,
            path,
            value,
        })
    }

    pub(super) fn column<T: Element>(&self, name: &str) -> Result<Cow<'a, [T]>, MessageError> {
        let Some(column) = self.frame.and_then(|frame| frame.column(name)) else {
            return Err(self.wrong(
                &format!("column {name}"),
                T::DTYPE.name(),
                "no such column".into(),
            ));
        };
        let wrong = || {
            self.wrong(
                &format!("column {name}"),
                T::DTYPE.name(),
                column.dtype.name().into(),
            )
        };
        column.elements().ok_or_else(wrong)
    }

    /// A column has as many elements as the header says.
    pub(super) fn length_is(
        &self,
        column: &str,
        got: usize,
        want: usize,
    ) -> Result<(), MessageError> {
        if got == want {
            return Ok(());
        }
        let got = format!("{got} elements where the header says {want}");
        Err(self.wrong(
            &format!("column {column}"),
            "as long as the header says",
            got,
        ))
    }
}

impl<'f, 'a> At<'f, 'a> {
    fn wrong<T>(&self, want: &'static str) -> Result<T, MessageError> {
        let (message, field) = (self.kind.into(), self.path.to_string());
        Err(MessageError::Field {
            message,
            field,
            want,
            got: self.value.describe(),
        })
    }

    pub(super) fn int(&self) -> Result<i64, MessageError> {
        match self.value {
            Value::Int(value) => Ok(*value),
            _ => self.wrong("an integer"),
        }
    }

    pub(super) fn in_range(
        &self,
        low: i64,
        high: i64,
        want: &'static str,
    ) -> Result<i64, MessageError> {
        match self.value {
            Value::Int(value) if (low..=high).contains(value) => Ok(*value),
            _ => self.wrong(want),
        }
    }

    pub(super) fn count(&self) -> Result<i64, MessageError> {
        self.in_range(0, i64::MAX, "an integer >= 0")
    }

    pub(super) fn size(&self) -> Result<usize, MessageError> {
        self.count()
            .map(|count| usize::try_from(count).unwrap_or(usize::MAX))
    }

    pub(super) fn number(&self) -> Result<f64, MessageError> {
        match self.value {
            Value::Int(value) => Ok(*value as f64),
            Value::Float(value) => Ok(*value),
            _ => self.wrong("a number"),
        }
    }

    pub(super) fn bool(&self) -> Result<bool, MessageError> {
        match self.value {
            Value::Bool(value) => Ok(*value),
            _ => self.wrong("true or false"),
        }
    }

    pub(super) fn name(&self) -> Result<&'a str, MessageError> {
        match self.value {
            Value::Str(value) if value.len() <= MAX_NAME_BYTES => Ok(value),
            _ => self.wrong("a string of at most 256 bytes"),
        }
    }

    pub(super) fn one_of<T>(
        &self,
        want: &'static str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<T, MessageError> {
        match self.value {
            Value::Str(value) => read(value).map_or_else(|| self.wrong(want), Ok),
            _ => self.wrong(want),
        }
    }

    pub(super) fn bin(&self) -> Result<&'a [u8], MessageError> {
        match self.value {
            Value::Bin(value) => Ok(value),
            _ => self.wrong("bytes"),
        }
    }

    /// `None` for nil.
    pub(super) fn optional(self) -> Result<Option<Self>, MessageError> {
        Ok((*self.value != Value::Nil).then_some(self))
    }

    pub(super) fn each<T>(
        &self,
        mut read: impl FnMut(At<'_, 'a>) -> Result<T, MessageError>,
    ) -> Result<Vec<T>, MessageError> {
        let Value::Array(values) = self.value else {
            return self.wrong("a list");
        };
        let at = |(at, value)| At {
            kind: self.kind,
            path: Path::Place { of: &self.path, at },
            value,
        };
        values.iter().enumerate().map(at).map(&mut read).collect()
    }

    pub(super) fn tuple<const N: usize>(
        &self,
        want: &'static str,
    ) -> Result<[At<'_, 'a>; N], MessageError> {
        match self.value {
            Value::Array(values) if values.len() == N => Ok(std::array::from_fn(|at| At {
                kind: self.kind,
                path: Path::Place { of: &self.path, at },
                value: &values[at],
            })),
            _ => self.wrong(want),
        }
    }

    pub(super) fn entries(&self) -> Result<Vec<(&'a str, Value<'a>)>, MessageError> {
        match self.value {
            Value::Map(entries) if entries.len() <= MAX_ENTRIES => Ok(entries.clone()),
            _ => self.wrong("a map of at most 256 entries"),
        }
    }

    pub(super) fn numbers(&self) -> Result<Vec<(&'a str, f64)>, MessageError> {
        let Value::Map(entries) = self.value else {
            return self.wrong("a map of names to numbers");
        };
        if entries.len() > MAX_ENTRIES {
            return self.wrong("a map of at most 256 entries");
        }
        let of = self.path.to_string();
        let number = |(name, value): &(&'a str, Value<'a>)| {
            let at = At {
                kind: self.kind,
                path: Path::Field { of: &of, name },
                value,
            };
            if name.len() > MAX_NAME_BYTES {
                return at.wrong("named by at most 256 bytes");
            }
            Ok((*name, at.number()?))
        };
        entries.iter().map(number).collect()
    }

    pub(super) fn fields(&self) -> Result<Fields<'f, 'a>, MessageError> {
        match self.value {
            Value::Map(entries) => Ok(Fields {
                kind: self.kind,
                path: self.path.to_string(),
                entries,
                frame: None,
            }),
            _ => self.wrong("a map"),
        }
    }
}
