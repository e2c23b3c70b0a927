//! Names, headers and folders.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use r1async_core::journal::{Chain, Kind, append, link};
use serde::{Deserialize, Serialize};

use crate::error::JournalError;

/// Layout of all files.
const FORMAT: u32 = 3;

/// What a journal belongs to. A run goes on only with what it began with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Name of the run.
    pub run: String,
    /// Its seed: the order of prompts, and the noise of every rollout.
    pub seed: u64,
    /// Rollouts of one prompt; rollouts are numbered by it.
    pub group_size: u64,
    /// Fingerprint of the prompts.
    pub data: String,
}

impl Identity {
    pub(crate) fn check(&self, was: &Identity, folder: &Path) -> Result<(), JournalError> {
        let pairs = [
            ("the run's name", was.run.clone(), self.run.clone()),
            ("seed", was.seed.to_string(), self.seed.to_string()),
            (
                "group_size",
                was.group_size.to_string(),
                self.group_size.to_string(),
            ),
            (
                "the data's fingerprint",
                was.data.clone(),
                self.data.clone(),
            ),
        ];
        for (name, was, is) in pairs {
            if was != is {
                let path = folder.to_owned();
                return Err(JournalError::Identity {
                    path,
                    name,
                    was,
                    is,
                });
            }
        }
        Ok(())
    }
}

/// The first record of every file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Header {
    format: u32,
    /// `events`, `payload` or `snapshot`.
    stream: String,
    /// The snapshot it belongs to; 0 is the start of the run.
    pub(crate) generation: u64,
    /// Bytes of the events that a snapshot holds, or that were there when a payload file began.
    pub(crate) events: u64,
    /// What the next event follows. Other formats have none, and are to be refused by their number.
    #[serde(default)]
    pub(crate) chain: Chain,
    pub(crate) identity: Identity,
    /// Version of the build that made it, for people.
    build: String,
}

impl Header {
    /// `events`: how far they have come.
    pub(crate) fn new(
        stream: &str,
        generation: u64,
        (events, chain): (u64, Chain),
        identity: &Identity,
    ) -> Self {
        Self {
            format: FORMAT,
            stream: stream.to_owned(),
            generation,
            events,
            chain,
            identity: identity.clone(),
            build: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// The first record of a file, and what the next one follows.
    pub(crate) fn record(&self) -> (Vec<u8>, Chain) {
        let mut record = Vec::new();
        append(&mut record, Kind::Header, |body| {
            body.extend(rmp_serde::to_vec_named(self).expect("a header can always be written"));
        });
        let chain = link(&mut record, Chain::default());
        (record, chain)
    }

    /// Of the stream and the generation that the file is named after.
    pub(crate) fn read(
        body: &[u8],
        (stream, generation): (&str, u64),
        path: &Path,
    ) -> Result<Self, JournalError> {
        let foreign = |text: String| JournalError::Foreign {
            path: path.to_owned(),
            text,
        };
        let header: Header =
            rmp_serde::from_slice(body).map_err(|error| foreign(error.to_string()))?;
        if header.format != FORMAT {
            let (got, build) = (header.format, &header.build);
            return Err(foreign(format!(
                "format {got} of build {build}; this build reads {FORMAT}"
            )));
        }
        if (header.stream.as_str(), header.generation) != (stream, generation) {
            let (got, of) = (&header.stream, header.generation);
            return Err(foreign(format!(
                "{got:?} of generation {of}; want {stream:?} of {generation}"
            )));
        }
        Ok(header)
    }
}

pub(crate) fn events(folder: &Path) -> PathBuf {
    folder.join("events")
}

pub(crate) fn payload(folder: &Path, generation: u64) -> PathBuf {
    folder.join(format!("payload-{generation:06}"))
}

pub(crate) fn snapshot(folder: &Path, generation: u64) -> PathBuf {
    folder.join(format!("snapshot-{generation:06}"))
}

/// Generations of the files `<stem>-<number>`, rising.
pub(crate) fn generations(folder: &Path, stem: &str) -> Result<Vec<u64>, JournalError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(JournalError::io(folder))? {
        let name = entry.map_err(JournalError::io(folder))?.file_name();
        let number: Option<u64> = name
            .to_str()
            .and_then(|name| name.strip_prefix(stem)?.strip_prefix('-')?.parse().ok());
        found.extend(number);
    }
    found.sort_unstable();
    Ok(found)
}

/// The names in a folder are on the disk.
pub(crate) fn sync_folder(folder: &Path) -> Result<(), JournalError> {
    let open = File::open(folder).map_err(JournalError::io(folder))?;
    open.sync_all().map_err(JournalError::io(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_before_is_refused_by_its_number() {
        #[derive(Serialize)]
        struct First {
            format: u32,
            stream: &'static str,
            generation: u64,
            events: u64,
            identity: Identity,
            build: &'static str,
        }
        let header = First {
            format: FORMAT - 1,
            stream: "events",
            generation: 0,
            events: 0,
            identity: Identity {
                run: "demo".to_owned(),
                seed: 0,
                group_size: 8,
                data: String::new(),
            },
            build: "0.1.0",
        };
        let body = rmp_serde::to_vec_named(&header).unwrap();
        let error = Header::read(&body, ("events", 0), Path::new("events")).unwrap_err();
        assert_eq!(
            error.to_string(),
            "events is not what its name says: format 2 of build 0.1.0; this build reads 3"
        );
    }
}
