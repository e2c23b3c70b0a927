//! Tokens that come back from generators.

use thiserror::Error;

use crate::group::{Ended, Finish, Purpose, State};
use crate::ids::{HolderId, LeaseId, Member, PolicyVersion};
use crate::lease::ChunkAck;
use crate::leases::{Lease, Work};
use crate::ledger::Ledger;
use crate::staleness::VersionRun;
use crate::timers::Timer;
use crate::trace::Event;

/// New tokens of one leased rollout.
#[derive(Debug, Clone, Copy)]
pub struct ChunkRef<'a> {
    /// The loan they were sampled under.
    pub lease: LeaseId,
    /// Tokens of the completion before these.
    pub offset: usize,
    /// The tokens.
    pub tokens: &'a [i32],
    /// Log-probability of each, in nats.
    pub logprobs: &'a [f32],
    /// Version of each, run-length-encoded.
    pub runs: &'a [VersionRun],
    /// Set on the last chunk.
    pub finish: Option<Finish>,
}

/// A chunk that cannot be. It changes nothing but a counter.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum ChunkError {
    /// The columns do not fit together.
    #[error(
        "lease {lease}: {tokens} tokens, {logprobs} logprobs and version runs of {runs} in all; want the same of each"
    )]
    Lengths {
        /// The loan.
        lease: LeaseId,
        /// Tokens sent.
        tokens: usize,
        /// Log-probabilities sent.
        logprobs: usize,
        /// Tokens that the version runs cover.
        runs: u64,
    },
    /// A version run of no tokens.
    #[error("lease {0}: a version run of 0 tokens; want at least 1 in each")]
    EmptyRun(LeaseId),
    /// A token that no vocabulary has.
    #[error("lease {lease}: token {token} at position {position}; want 0 or more")]
    Token {
        /// The loan.
        lease: LeaseId,
        /// The token.
        token: i32,
        /// Its place in the completion.
        position: usize,
    },
    /// A log-probability that is not finite.
    #[error(
        "lease {lease}: behavior logprob {logprob} at position {position}; want a finite number"
    )]
    Logprob {
        /// The loan.
        lease: LeaseId,
        /// The log-probability.
        logprob: f32,
        /// Its place in the completion.
        position: usize,
    },
    /// A version that no learner has made, or another than the pinned one.
    #[error("lease {lease}: tokens of version {got}; want {want}")]
    Version {
        /// The loan.
        lease: LeaseId,
        /// The version named.
        got: PolicyVersion,
        /// What it may be.
        want: String,
    },
    /// More tokens than asked for.
    #[error("lease {lease}: {got} completion tokens; want at most max_tokens = {want}")]
    TooLong {
        /// The loan.
        lease: LeaseId,
        /// Tokens it would have.
        got: usize,
        /// Tokens it may have.
        want: u32,
    },
    /// The end is not where the tokens end.
    #[error(
        "lease {lease}: ends at {end} tokens where {held} are held; a completion has at least 1 token and ends once"
    )]
    End {
        /// The loan.
        lease: LeaseId,
        /// Where it would end.
        end: usize,
        /// What is held.
        held: usize,
    },
}

/// Columns have room for a multiple of so many numbers.
const ROOM: usize = 16;

impl Ledger {
    /// Files the tokens of a chunk, if its lease is current; skips what is held already. A chunk that
    /// leaves out tokens before it is not filed: the answer says from where to send again.
    ///
    /// # Errors
    /// The chunk cannot be; nothing has changed but a counter.
    pub fn chunk(
        &mut self,
        now: f64,
        holder: HolderId,
        chunk: ChunkRef<'_>,
    ) -> Result<ChunkAck, ChunkError> {
        let current = self
            .leases
            .get(chunk.lease)
            .filter(|lease| lease.holder == Some(holder) && lease.work != Work::Score);
        let Some(lease) = current else {
            self.counters.late_chunks += 1;
            return Ok(ChunkAck::Lost);
        };
        self.check_chunk(lease, &chunk)
            .inspect_err(|_| self.counters.invalid += 1)?;
        let held = self.rollout_mut(lease.member).tokens.len();
        if chunk.offset > held {
            self.counters.gaps += 1;
        } else if lease.work == Work::Generate {
            self.file_tokens(now, lease.member, &chunk, held - chunk.offset);
            if let Some(finish) = chunk.finish {
                self.finish_rollout(lease.member, finish);
                return Ok(ChunkAck::Held(
                    chunk.offset.saturating_add(chunk.tokens.len()),
                ));
            }
        }
        Ok(self.held(lease.member))
    }

    /// Tokens and whole completions received so far, of whatever purpose: what a chunk changes, if anything.
    pub(crate) fn received(&self) -> (u64, u64, u64) {
        let tokens = self.books.tokens.incoming;
        (
            tokens,
            self.books.evaluation_tokens.incoming,
            self.finished_so_far,
        )
    }

    fn check_chunk(&self, lease: Lease, chunk: &ChunkRef<'_>) -> Result<(), ChunkError> {
        check_columns(chunk)?;
        let (id, held) = (
            chunk.lease,
            self.groups[&lease.member.group].members[lease.member.index]
                .tokens
                .len(),
        );
        let end = chunk.offset.saturating_add(chunk.tokens.len());
        let want = self.max_tokens(lease.member);
        if end > want as usize {
            return Err(ChunkError::TooLong {
                lease: id,
                got: end,
                want,
            });
        }
        let ends_early = chunk.finish.is_some() && (end < held || end == 0);
        if ends_early || (lease.work == Work::Sent && end > held) {
            return Err(ChunkError::End {
                lease: id,
                end,
                held,
            });
        }
        let versions = chunk.runs.iter().map(|run| run.version);
        match versions
            .into_iter()
            .find(|&version| !self.may_have_sampled(lease.pin, version))
        {
            Some(got) => {
                let want = lease
                    .pin
                    .map_or("a version that a learner has made".to_owned(), |pin| {
                        pin.to_string()
                    });
                Err(ChunkError::Version {
                    lease: id,
                    got,
                    want,
                })
            }
            None => Ok(()),
        }
    }

    fn may_have_sampled(&self, pin: Option<PolicyVersion>, version: PolicyVersion) -> bool {
        pin.map_or_else(|| self.is_known_version(version), |pin| version == pin)
    }

    fn max_tokens(&self, member: Member) -> u32 {
        match &self.groups[&member.group].purpose {
            Purpose::Training { .. } => self.settings.max_tokens,
            Purpose::Evaluation(name) => self.evaluations.sampling(name).max_tokens,
        }
    }

    /// Appends all but the first `skip` tokens of a chunk. Only a new token renews the lease; the last chunk ends it.
    fn file_tokens(&mut self, now: f64, member: Member, chunk: &ChunkRef<'_>, skip: usize) {
        let Some(new) = chunk.tokens.get(skip..).filter(|new| !new.is_empty()) else {
            return;
        };
        let training = !member.group.is_evaluation();
        let next_bind = self.next_bind();
        let group = self
            .groups
            .get_mut(&member.group)
            .expect("leased rollouts are held");
        let (source, counts_age) = (group.source, group.counts_age());
        let rollout = &mut group.members[member.index];
        let lowest = rollout.runs.lowest();
        let is_last = chunk.finish.is_some();
        append(&mut rollout.tokens, new, is_last);
        append(&mut rollout.logprobs, &chunk.logprobs[skip..], is_last);
        for run in runs_after(chunk.runs, skip) {
            rollout.runs.push(run);
            if counts_age {
                self.ages.add(member, run);
                let oldest = self.settings.oldest_trainable(next_bind).unwrap_or(0);
                if run.version.number < oldest {
                    self.waste.died(u64::from(run.count));
                }
            }
        }
        let is_older = rollout.runs.lowest() != lowest;
        let received = new.len() as u64;
        let rollout = group.rollout_id(member.index);
        if training {
            self.tell(|| Event::Tokens {
                rollout,
                runs: runs_after(chunk.runs, skip).collect(),
            });
        }
        if counts_age {
            self.waste.generated(received);
        }
        if training {
            self.counters.waste.of(source).generated += received;
            self.books.tokens.incoming += received;
        } else {
            self.books.evaluation_tokens.incoming += received;
        }
        if training && is_older {
            self.ripen(member.group);
        }
        self.news.batch |= self.hold.is_some(); // The budget has grown.
        if chunk.finish.is_none() {
            self.leases
                .renew(chunk.lease, now + self.settings.lease_s, &mut self.timers);
        }
    }

    /// The completion is whole: it waits for a scorer, or abstains because it was cut.
    fn finish_rollout(&mut self, member: Member, finish: Finish) {
        let place = self.finished_so_far;
        self.finished_so_far += 1;
        let group = self
            .groups
            .get_mut(&member.group)
            .expect("leased rollouts are held");
        let rollout = &mut group.members[member.index];
        let State::Generating(lease) = rollout.state else {
            return;
        };
        rollout.finish = Some(finish);
        trim(&mut rollout.tokens);
        trim(&mut rollout.logprobs);
        rollout.state = State::Unscored(place);
        if let Some(at) = rollout.deadline.take() {
            self.timers.clear(at, Timer::Rollout(member));
        }
        let tokens = rollout.tokens.len() as u64;
        let (id, pool) = (group.rollout_id(member.index), group.prompt.pool);
        self.leases.mark_sent(lease, &mut self.timers);
        if !member.group.is_evaluation() {
            self.tell(|| Event::Finished {
                rollout: id,
                finish,
                tokens,
            });
        }
        self.unscored.insert((pool, place), member);
        self.news.scoring = true;
        self.news.rollouts = true;
        if self.settings.drop_truncated && finish == Finish::Length && !member.group.is_evaluation()
        {
            self.end_rollout(member, Ended::truncated());
        }
    }
}

/// The columns fit together and hold what columns of that kind can hold.
fn check_columns(chunk: &ChunkRef<'_>) -> Result<(), ChunkError> {
    let lease = chunk.lease;
    let covered = chunk
        .runs
        .iter()
        .map(|run| u64::from(run.count))
        .sum::<u64>();
    let (tokens, logprobs) = (chunk.tokens.len(), chunk.logprobs.len());
    if tokens != logprobs || tokens as u64 != covered {
        return Err(ChunkError::Lengths {
            lease,
            tokens,
            logprobs,
            runs: covered,
        });
    }
    if chunk.runs.iter().any(|run| run.count == 0) {
        return Err(ChunkError::EmptyRun(lease));
    }
    if is_sound(chunk.tokens, chunk.logprobs) {
        return Ok(());
    }
    if let Some(index) = chunk.tokens.iter().position(|&token| token < 0) {
        return Err(ChunkError::Token {
            lease,
            token: chunk.tokens[index],
            position: chunk.offset + index,
        });
    }
    match chunk
        .logprobs
        .iter()
        .position(|logprob| !logprob.is_finite())
    {
        Some(index) => {
            let (logprob, position) = (chunk.logprobs[index], chunk.offset + index);
            Err(ChunkError::Logprob {
                lease,
                logprob,
                position,
            })
        }
        None => Ok(()),
    }
}

/// No token is negative and every logprob is finite. Looks at all of them, without a way out in between, so that
/// the compiler takes many at a time: searching for the first wrong one costs as much as filing the tokens.
fn is_sound(tokens: &[i32], logprobs: &[f32]) -> bool {
    let signs = tokens.iter().fold(0, |signs, &token| signs | token);
    let finite = logprobs
        .iter()
        .fold(true, |finite, logprob| finite & logprob.is_finite());
    signs >= 0 && finite
}

/// Grows by a quarter, or by what comes last: what is held a piece at a time is mostly held for long, and the room
/// that doubling gives up again at the end is too small for the next to grow in. Room comes in few sizes, which an
/// allocator hands out again more readily.
fn append<T: Copy>(column: &mut Vec<T>, new: &[T], is_last: bool) {
    if column.capacity() - column.len() < new.len() {
        let ahead = if is_last { 0 } else { column.len() / 4 };
        let room = (column.len() + new.len().max(ahead)).next_multiple_of(ROOM);
        column.reserve_exact(room - column.len());
    }
    column.extend_from_slice(new);
}

/// It came in pieces, for which the column grew ahead: up to a quarter of what is held would be air.
fn trim<T>(column: &mut Vec<T>) {
    if column.capacity() - column.len() >= ROOM + column.len() / 16 {
        column.shrink_to(column.len().next_multiple_of(ROOM));
    }
}

/// Version runs without their first `skip` tokens.
fn runs_after(runs: &[VersionRun], mut skip: usize) -> impl Iterator<Item = VersionRun> {
    let rest = move |run: &VersionRun| {
        let skipped = skip.min(run.count as usize);
        skip -= skipped;
        VersionRun {
            count: run.count - skipped as u32,
            ..*run
        }
    };
    runs.iter().map(rest).filter(|run| run.count > 0)
}
