//! What generators and scorers do, rightly or wrongly.

use r1async_core::{
    Announcement, ChunkAck, ChunkRef, Finish, HolderId, PolicyVersion, RolloutLease, Verdict,
    VerdictAck, VersionRun,
};

use super::{Held, World};

impl World {
    pub(super) fn lease(&mut self, a: usize, free: usize) {
        let (holder, installed) = self.generators[a % self.generators.len()];
        let leases = if a % 4 == 3 {
            self.ledger.lease_evaluation(self.now, holder, free)
        } else {
            self.ledger
                .lease_rollouts(self.now, holder, installed, free, 4)
        };
        assert!(leases.len() <= free);
        for lease in leases {
            self.take(holder, &lease);
        }
    }

    fn take(&mut self, holder: HolderId, lease: &RolloutLease) {
        assert!(
            !self.finished.contains_key(&lease.rollout),
            "a finished rollout is lent again"
        );
        let versions = self.versions.entry(lease.rollout).or_default();
        assert!(lease.resume.is_empty() || lease.resume.len() == versions.len());
        let expected: Vec<i32> = (0..lease.resume.len() as i32).collect();
        assert_eq!(lease.resume, expected);
        versions.truncate(lease.resume.len());
        let (before, rest): (Vec<Held>, _) = self
            .held
            .drain(..)
            .partition(|held| held.rollout == lease.rollout);
        self.past.extend(before);
        self.held = rest;
        let (rollout, tokens, pin) = (lease.rollout, lease.resume.len(), lease.pin);
        self.held.push(Held {
            holder,
            lease: lease.lease,
            rollout,
            tokens,
            pin,
        });
    }

    /// A chunk of a rollout that a generator believes it has: new, repeated, overlapping or with a gap.
    pub(super) fn send(&mut self, a: usize, b: usize) {
        if self.held.is_empty() {
            return;
        }
        let held = self.held[a % self.held.len()].clone();
        let offset = match b % 8 {
            0 => 0,
            1 => held.tokens.saturating_sub(2),
            2 => held.tokens + 1,
            _ => held.tokens,
        };
        let count = b / 8 % 4;
        let finish = (b / 32)
            .is_multiple_of(3)
            .then_some(if (b / 96).is_multiple_of(4) {
                Finish::Length
            } else {
                Finish::Stop
            });
        self.send_chunk(&held, offset, count, finish);
    }

    /// Every generator sends a token or two of each rollout; some of them end.
    pub(super) fn send_all(&mut self, a: usize, b: usize) {
        for (index, held) in self.held.clone().into_iter().enumerate() {
            let finish = ((a + index * 7) % 5 < b % 5).then_some(Finish::Stop);
            self.send_chunk(&held, held.tokens, 1 + (b + index) % 2, finish);
        }
    }

    pub(super) fn send_late(&mut self, a: usize, b: usize) {
        if self.past.is_empty() {
            return;
        }
        let held = self.past[a % self.past.len()].clone();
        let finish = b.is_multiple_of(2).then_some(Finish::Stop);
        self.send_chunk(&held, held.tokens, b / 2 % 3, finish);
    }

    fn version_of(&self, held: &Held) -> PolicyVersion {
        let installed = self
            .generators
            .iter()
            .find(|(holder, _)| *holder == held.holder);
        held.pin
            .unwrap_or_else(|| installed.map_or(PolicyVersion::new(0, 0), |(_, version)| *version))
    }

    pub(super) fn send_chunk(
        &mut self,
        held: &Held,
        offset: usize,
        count: usize,
        finish: Option<Finish>,
    ) {
        let known = self
            .versions
            .get(&held.rollout)
            .cloned()
            .unwrap_or_default();
        let end = offset + count;
        let versions: Vec<PolicyVersion> = (offset..end)
            .map(|at| {
                known
                    .get(at)
                    .copied()
                    .unwrap_or_else(|| self.version_of(held))
            })
            .collect();
        let runs: Vec<VersionRun> = versions
            .iter()
            .map(|&version| VersionRun::new(version, 1))
            .collect();
        let tokens: Vec<i32> = (offset as i32..end as i32).collect();
        let logprobs = vec![-0.5; count];
        let chunk = ChunkRef {
            lease: held.lease,
            offset,
            tokens: &tokens,
            logprobs: &logprobs,
            runs: &runs,
            finish,
        };
        match self.ledger.chunk(self.now, held.holder, chunk) {
            Ok(ChunkAck::Held(now_held)) => self.filed(held, now_held, offset, &versions, finish),
            Ok(ChunkAck::Lost) => self.held.retain(|other| other.lease != held.lease),
            Err(_) => {}
        }
    }

    fn filed(
        &mut self,
        held: &Held,
        now_held: usize,
        offset: usize,
        versions: &[PolicyVersion],
        finish: Option<Finish>,
    ) {
        let known = self.versions.entry(held.rollout).or_default();
        assert!(now_held >= known.len());
        let new = now_held - known.len();
        if new > 0 {
            known.extend_from_slice(&versions[known.len() - offset..]);
        }
        assert_eq!(known.len(), now_held);
        self.tokens_filed += new as u64;
        let is_end = finish.is_some() && offset + versions.len() == now_held;
        if let Some(own) = self.held.iter_mut().find(|own| own.lease == held.lease) {
            own.tokens = now_held;
        }
        if is_end {
            let by = *self.finished.entry(held.rollout).or_insert(held.lease);
            assert_eq!(by, held.lease, "two holders finished one rollout");
            self.held.retain(|other| other.lease != held.lease);
            self.past.push(held.clone());
            if held.lease.0.is_multiple_of(3) {
                self.grade_own(held);
            }
        }
    }

    /// A generator that knows the reward of what it has just finished says so, and says it again.
    fn grade_own(&mut self, held: &Held) {
        let verdict = || Verdict::Score {
            total: (held.lease.0 / 3 % 2) as f64,
            parts: Vec::new(),
            status: "ok".to_owned(),
        };
        let (now, holder) = (self.now, held.holder);
        self.ledger.verdict(now, holder, held.lease, verdict());
        let before = self.ledger.audit();
        assert_eq!(
            self.ledger.verdict(now, holder, held.lease, verdict()),
            VerdictAck::Lost
        );
        assert_eq!(self.ledger.audit(), before);
    }

    pub(super) fn install(&mut self, a: usize) {
        let index = a % self.generators.len();
        self.generators[index].1 = PolicyVersion::new(self.epoch, self.published);
    }

    pub(super) fn lose_generator(&mut self, a: usize) {
        let index = a % self.generators.len();
        let holder = self.generators[index].0;
        self.ledger.holder_lost(holder);
        let (gone, kept) = self
            .held
            .drain(..)
            .partition::<Vec<Held>, _>(|held| held.holder == holder);
        self.past.extend(gone);
        self.held = kept;
        self.generators[index].0 = self.new_holder();
    }

    /// A generator says goodbye: everything it has is handed back, and costs no attempt.
    pub(super) fn leave_generator(&mut self, a: usize) {
        let index = a % self.generators.len();
        let holder = self.generators[index].0;
        let lost = self.ledger.stats().leases_lost;
        self.ledger.release_all(holder);
        assert_eq!(self.ledger.stats().leases_lost, lost);
        assert!(self.ledger.leases_of(holder).is_empty());
        let (gone, kept) = self
            .held
            .drain(..)
            .partition::<Vec<Held>, _>(|held| held.holder == holder);
        self.past.extend(gone);
        self.held = kept;
        self.generators[index].0 = self.new_holder();
    }

    pub(super) fn release(&mut self, a: usize) {
        if self.held.is_empty() {
            return;
        }
        let held = self.held.swap_remove(a % self.held.len());
        self.ledger.release(held.holder, held.lease);
        self.past.push(held);
    }

    /// A generator that connected again names a lease of a former connection.
    pub(super) fn announce(&mut self, a: usize) {
        if self.past.is_empty() {
            return;
        }
        let past = self.past.swap_remove(a % self.past.len());
        let announced = Announcement {
            lease: past.lease,
            rollout: past.rollout,
            offset: past.tokens,
        };
        let holder = self.generators[a % self.generators.len()].0;
        let unfinished = !self.finished.contains_key(&past.rollout);
        if let ChunkAck::Held(tokens) = self.ledger.announce(self.now, holder, announced)
            && unfinished
        {
            self.held.retain(|held| held.lease != past.lease);
            self.held.push(Held {
                holder,
                tokens,
                ..past
            });
        }
    }

    pub(super) fn lease_scoring(&mut self, a: usize, max: usize) {
        let holder = HolderId(1000 + a as u64 % 2);
        for lease in self.ledger.lease_scoring(self.now, holder, max) {
            let tokens = self.ledger.completion(lease.lease);
            assert_eq!(tokens.len(), self.versions[&lease.rollout].len());
            self.scoring.push((holder, lease.lease));
        }
    }

    pub(super) fn verdict(&mut self, a: usize, b: usize) {
        if self.scoring.is_empty() {
            return;
        }
        let (holder, lease) = self.scoring.swap_remove(a % self.scoring.len());
        let status = "ok".to_owned();
        let verdict = match b % 8 {
            0 => Verdict::Abstain { status },
            1 => Verdict::Score {
                total: f64::NAN,
                parts: Vec::new(),
                status,
            },
            _ => Verdict::Score {
                total: (b / 8 % 2) as f64,
                parts: Vec::new(),
                status,
            },
        };
        self.ledger.verdict(self.now, holder, lease, verdict);
        self.scored.push((holder, lease));
    }

    pub(super) fn score_all(&mut self, b: usize) {
        self.lease_scoring(0, 20);
        for index in 0..self.scoring.len() {
            self.verdict(0, 2 + (b + 8 * index) / 2 * 2);
        }
    }

    pub(super) fn verdict_again(&mut self, a: usize) {
        if self.scored.is_empty() {
            return;
        }
        let (holder, lease) = self.scored[a % self.scored.len()];
        let before = self.ledger.audit();
        let verdict = Verdict::Score {
            total: 1.0,
            parts: Vec::new(),
            status: String::new(),
        };
        assert_eq!(
            self.ledger.verdict(self.now, holder, lease, verdict),
            VerdictAck::Lost
        );
        assert_eq!(self.ledger.audit(), before);
    }

    pub(super) fn lose_scorer(&mut self, a: usize) {
        let lost = HolderId(1000 + a as u64 % 2);
        self.ledger.holder_lost(lost);
        let (gone, kept) = self
            .scoring
            .drain(..)
            .partition::<Vec<_>, _>(|(holder, _)| *holder == lost);
        self.scored.extend(gone);
        self.scoring = kept;
    }
}
