//! `r1async._core`.
