//! Numbers that name things. Each is its own type, so that a rollout is never taken for a group.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Set in the numbers of evaluation groups and rollouts; training counts from zero without it.
pub const EVALUATION_BIT: u64 = 1 << 62;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// A group: all rollouts of one admitted prompt. Training groups are numbered in order of admission.
    GroupId
);
number!(
    /// A rollout: group number * group size + member. With the run's seed it keys the sampling noise.
    RolloutId
);
number!(
    /// One loan of one rollout to one generator or scorer. Never used twice.
    LeaseId
);
number!(
    /// A connected generator, scorer or evaluator. A peer that reconnects may get another number.
    HolderId
);
number!(
    /// An optimizer step. Step v trains at version v and makes version v + 1; the first is 0.
    Step
);

impl GroupId {
    /// Whether this is a group of an evaluation.
    #[must_use]
    pub fn is_evaluation(self) -> bool {
        self.0 & EVALUATION_BIT != 0
    }
}

/// Optimizer steps applied since the start checkpoint, under the learner life (epoch) that applied them.
///
/// ```
/// use r1async_core::PolicyVersion;
/// assert_eq!(PolicyVersion::new(1, 7).to_string(), "7@1");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PolicyVersion {
    /// The learner life; each start of a learner is a higher one.
    pub epoch: u64,
    /// Optimizer steps since the start checkpoint, published or not.
    pub number: u64,
}

impl PolicyVersion {
    /// The version `number` of the learner life `epoch`.
    #[must_use]
    pub fn new(epoch: u64, number: u64) -> Self {
        Self { epoch, number }
    }
}

impl fmt::Display for PolicyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.number, self.epoch)
    }
}

/// One member of one group: the ledger's own name of a rollout. Ordered like rollout numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct Member {
    pub(crate) group: GroupId,
    pub(crate) index: usize,
}
