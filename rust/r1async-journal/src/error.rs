//! What can be wrong with a journal.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use r1async_core::journal::{Damage, ReplayError};
use thiserror::Error;

/// A journal that cannot be written, or not be read.
#[derive(Debug, Error)]
pub enum JournalError {
    /// The operating system refused.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        error: io::Error,
    },
    /// The disk refused bytes that the operating system had taken, which forgets them then: to wait again would succeed.
    #[error("{}: the disk refused what was written: {error}; start again, from what is there", path.display())]
    Unsynced {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        error: Arc<io::Error>,
    },
    /// Bytes that no writer of ours has left. Nothing is skipped: what follows may be whole, but not what it means.
    #[error("{} is damaged at byte {offset}: {damage}; restore the file, or begin anew with another name", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where the record begins.
        offset: u64,
        /// What is wrong with it.
        damage: Damage,
    },
    /// Another kind of file, or of another format.
    #[error("{} is not what its name says: {text}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// How it differs.
        text: String,
    },
    /// The journal of another run, or of this one with other data.
    #[error("{}: {name} was {was:?} when this run began, is {is:?} now: go on with what it was, or set name=OTHER for a new run", path.display())]
    Identity {
        /// The journal's folder.
        path: PathBuf,
        /// What differs.
        name: &'static str,
        /// Then.
        was: String,
        /// Now.
        is: String,
    },
    /// There is none.
    #[error("{} holds no journal", .0.display())]
    Missing(PathBuf),
    /// Parts of a journal that do not fit together.
    #[error("{}: {text}", path.display())]
    Parts {
        /// The file.
        path: PathBuf,
        /// Why not.
        text: String,
    },
    /// The history cannot be told again.
    #[error("{} at byte {offset}: {error}", path.display())]
    Replay {
        /// The file.
        path: PathBuf,
        /// Where the event is.
        offset: u64,
        /// What is wrong with it.
        error: ReplayError,
    },
}

impl JournalError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |error| Self::Io { path, error }
    }

    /// The operating system's own number for what it refused (28 is a full disk), if it did.
    #[must_use]
    pub fn os_error(&self) -> Option<i32> {
        match self {
            Self::Io { error, .. } => error.raw_os_error(),
            _ => None,
        }
    }
}
