//! Every number of the buffer, checked once.

use crate::settings::{Settings, SettingsError};

/// Every number of the buffer.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceSettings {
    /// What the ledger decides by.
    pub ledger: Settings,
    /// Name of the run; a client of another run is refused.
    pub run: String,
    /// Seed of the run, told to every client.
    pub seed: u64,
    /// Padded tokens of one forward pass at most.
    pub micro_batch_tokens: usize,
    /// Seconds without any message after which a peer counts as gone.
    pub peer_deadline_s: f64,
    /// A larger message is refused.
    pub max_message_bytes: usize,
    /// Whether generators may send verdicts along with what they finish.
    pub generators_grade: bool,
    /// Batches' worth of groups, none of which may train, after which filters are named as a stall.
    pub filtered_batches: usize,
    /// Seconds between two publications of figures.
    pub interval_s: f64,
}

impl ServiceSettings {
    /// Refuses what cannot work.
    ///
    /// # Errors
    /// The first setting that is out of range.
    pub fn validate(&self) -> Result<(), SettingsError> {
        let seconds = "a number of seconds above 0";
        let above = |seconds: f64| seconds.is_finite() && seconds > 0.0;
        let (tokens, bytes) = (self.micro_batch_tokens, self.max_message_bytes);
        for (name, holds, want, got) in [
            (
                "run",
                !self.run.is_empty() && self.run.len() <= 256,
                "1 to 256 bytes",
                self.run.clone(),
            ),
            (
                "seed",
                self.seed <= i64::MAX as u64,
                "at most 2^63 - 1",
                self.seed.to_string(),
            ),
            (
                "micro_batch_tokens",
                tokens >= 1,
                "at least 1",
                tokens.to_string(),
            ),
            (
                "filtered_batches",
                self.filtered_batches >= 1,
                "at least 1",
                self.filtered_batches.to_string(),
            ),
            (
                "peer_deadline_s",
                above(self.peer_deadline_s),
                seconds,
                self.peer_deadline_s.to_string(),
            ),
            (
                "max_message_bytes",
                bytes >= 1 << 10,
                "at least 1024",
                bytes.to_string(),
            ),
            (
                "interval_s",
                above(self.interval_s),
                seconds,
                self.interval_s.to_string(),
            ),
        ] {
            if !holds {
                return Err(SettingsError {
                    name,
                    want: want.into(),
                    got,
                });
            }
        }
        self.ledger.validate()
    }
}
