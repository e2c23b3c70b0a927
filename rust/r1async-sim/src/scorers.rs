//! Scorers: each grades a few rollouts at a time, in the order in which they came.

use std::collections::VecDeque;

use r1async_core::{HolderId, LeaseId, ScoreLease, Verdict};

use crate::queue::Event;
use crate::simulation::Simulation;

/// A rollout to grade.
#[derive(Debug, Clone, Copy)]
struct Work {
    lease: LeaseId,
    ordinal: u64,
    rollout: u64,
}

/// One scorer.
#[derive(Debug)]
pub(crate) struct Scorer {
    holder: HolderId,
    /// Rollouts it can still take.
    room: usize,
    idle_workers: usize,
    line: VecDeque<Work>,
}

impl Scorer {
    pub(crate) fn new(holder: HolderId, queue: usize, workers: usize) -> Self {
        Self {
            holder,
            room: queue,
            idle_workers: workers,
            line: VecDeque::new(),
        }
    }
}

impl Simulation {
    /// Lends to who has the most room, one at a time, as the buffer's service does.
    pub(crate) fn offer_scoring(&mut self) {
        loop {
            let most = (0..self.scorers.len())
                .rev()
                .max_by_key(|&index| self.scorers[index].room)
                .filter(|&index| self.scorers[index].room > 0);
            let Some(index) = most else { return };
            let holder = self.scorers[index].holder;
            let leases = self.ledger.lease_scoring(self.now, holder, 1);
            let Some(ScoreLease {
                lease,
                rollout,
                prompt,
                ..
            }) = leases.into_iter().next()
            else {
                return;
            };
            let scorer = &mut self.scorers[index];
            scorer.room -= 1;
            scorer.line.push_back(Work {
                lease,
                ordinal: prompt.ordinal,
                rollout: rollout.0,
            });
            self.grade(index);
        }
    }

    /// Idle workers take what is next in line.
    fn grade(&mut self, index: usize) {
        while self.scorers[index].idle_workers > 0 {
            let Some(work) = self.scorers[index].line.pop_front() else {
                return;
            };
            self.scorers[index].idle_workers -= 1;
            let (seconds, _) = self.model.verdict(work.rollout);
            self.tally.grading_s += seconds;
            let Work {
                lease,
                ordinal,
                rollout,
            } = work;
            self.queue.plan(
                self.now + seconds,
                Event::Graded {
                    scorer: index,
                    lease,
                    ordinal,
                    rollout,
                },
            );
        }
    }

    pub(crate) fn give_verdict(
        &mut self,
        index: usize,
        lease: LeaseId,
        ordinal: u64,
        rollout: u64,
    ) {
        let scorer = &mut self.scorers[index];
        scorer.idle_workers += 1;
        scorer.room += 1;
        let holder = scorer.holder;
        let (_, given) = self.model.verdict(rollout);
        let verdict = if given {
            let total = self.model.reward(ordinal, rollout);
            Verdict::Score {
                total,
                parts: Vec::new(),
                status: String::new(),
            }
        } else {
            Verdict::Abstain {
                status: "failed".to_owned(),
            }
        };
        // A late one is counted by the ledger; for the scorer both are the end of the work.
        self.ledger.verdict(self.now, holder, lease, verdict);
        self.scoring_wanted = true;
        self.grade(index);
    }
}
