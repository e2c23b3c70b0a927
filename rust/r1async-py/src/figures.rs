//! Trees of figures as Python dicts and lists.

use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use r1async_core::service::Figure;

/// The figure and all below it.
pub fn to_python<'py>(py: Python<'py>, figure: &Figure) -> PyResult<Bound<'py, PyAny>> {
    match figure {
        Figure::Int(value) => value.into_bound_py_any(py),
        Figure::Float(value) => value.into_bound_py_any(py),
        Figure::Bool(value) => value.into_bound_py_any(py),
        Figure::Text(value) => value.into_bound_py_any(py),
        Figure::List(figures) => {
            let list = PyList::empty(py);
            for figure in figures {
                list.append(to_python(py, figure)?)?;
            }
            Ok(list.into_any())
        }
        Figure::Map(entries) => {
            let dict = PyDict::new(py);
            for (name, figure) in entries {
                dict.set_item(name, to_python(py, figure)?)?;
            }
            Ok(dict.into_any())
        }
    }
}
