//! What the fuzz targets do with their bytes, and the messages that both corpora begin with.

pub mod journal;
pub mod messages;
pub mod seeds;
pub mod service;
pub mod weights;
pub mod wire;
