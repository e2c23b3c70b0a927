//! Figures for people, as a tree of named values: the same in events and in Python.

use crate::frame::Nested;

/// A value or a tree of them.
#[derive(Debug, Clone, PartialEq)]
pub enum Figure {
    /// A count.
    Int(i64),
    /// A measure.
    Float(f64),
    /// A truth.
    Bool(bool),
    /// A text.
    Text(String),
    /// Several.
    List(Vec<Figure>),
    /// Several by name, in order.
    Map(Vec<(String, Figure)>),
}

impl Figure {
    pub(crate) fn map<N: Into<String>, F: Into<Figure>>(
        entries: impl IntoIterator<Item = (N, F)>,
    ) -> Self {
        Self::Map(
            entries
                .into_iter()
                .map(|(name, figure)| (name.into(), figure.into()))
                .collect(),
        )
    }

    /// The figure called `name` of a map.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Figure> {
        match self {
            Self::Map(entries) => entries
                .iter()
                .find(|(key, _)| key == name)
                .map(|(_, figure)| figure),
            _ => None,
        }
    }

    pub(crate) fn write(&self, out: &mut Nested) {
        match self {
            Self::Int(value) => out.int(*value),
            Self::Float(value) => out.float(*value),
            Self::Bool(value) => out.bool(*value),
            Self::Text(value) => out.str(value),
            Self::List(figures) => {
                out.list(figures.len());
                figures.iter().for_each(|figure| figure.write(out));
            }
            Self::Map(entries) => {
                out.map(entries.len());
                for (name, figure) in entries {
                    out.str(name);
                    figure.write(out);
                }
            }
        }
    }
}

impl From<u64> for Figure {
    fn from(value: u64) -> Self {
        Self::Int(value as i64)
    }
}

impl From<usize> for Figure {
    fn from(value: usize) -> Self {
        Self::Int(value as i64)
    }
}

impl From<f64> for Figure {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}
