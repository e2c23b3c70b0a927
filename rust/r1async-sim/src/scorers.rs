//! Scorers: each grades a few rollouts at a time, in the order in which they came.

use std::collections::VecDeque;

use r1async_core::{HolderId, LeaseId, ScoreLease, Verdict};

use crate::queue::Event;
use crate::simulation::Simulation;

/// A rollout to grade.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Work {
    lease: LeaseId,
    /// Of its prompt.
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
            self.scorers[index].room -= 1;
            let work = Work {
                lease,
                ordinal: prompt.ordinal,
                rollout: rollout.0,
            };
            let travel_s = self.model.scorers.travel_s;
            if travel_s > 0.0 {
                let arrived = Event::Arrived {
                    scorer: index,
                    work,
                };
                self.queue.plan(self.now + travel_s, arrived);
            } else {
                self.receive(index, work);
            }
        }
    }

    /// A rollout takes its place in a scorer's line.
    pub(crate) fn receive(&mut self, index: usize, work: Work) {
        self.scorers[index].line.push_back(work);
        self.grade(index);
    }

    /// Idle workers take what is next in line.
    fn grade(&mut self, index: usize) {
        while self.scorers[index].idle_workers > 0 {
            let Some(work) = self.scorers[index].line.pop_front() else {
                return;
            };
            self.scorers[index].idle_workers -= 1;
            let seconds = self.model.grading_s(work.rollout);
            self.tally.grading_s += seconds;
            let graded = Event::Graded {
                scorer: index,
                work,
            };
            self.queue.plan(self.now + seconds, graded);
        }
    }

    pub(crate) fn give_verdict(&mut self, index: usize, work: Work) {
        let scorer = &mut self.scorers[index];
        scorer.idle_workers += 1;
        scorer.room += 1;
        let holder = scorer.holder;
        let verdict = if self.model.is_graded(work.rollout) {
            let (prompts, ordinal) = (&mut self.prompts, work.ordinal);
            let total = self.model.reward(prompts, ordinal, work.rollout);
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
        self.ledger.verdict(self.now, holder, work.lease, verdict);
        self.scoring_wanted = true;
        self.grade(index);
    }
}
