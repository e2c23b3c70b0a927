//! Generators: slots that decode side by side, weights that change between two tokens.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use r1async_core::{
    ChunkAck, ChunkRef, Finish, HolderId, LeaseId, PolicyVersion, RolloutLease, VersionRun,
};

use crate::queue::Event;
use crate::simulation::{EPOCH, Simulation};

/// How far the slots of a generator have come, in held tokens since its start: all run at one speed.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Progress(f64);

impl Eq for Progress {}

impl PartialOrd for Progress {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Progress {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

/// Progress closer than this is the same: seconds are rounded to it.
const SAME: f64 = 1e-6;

/// A rollout in a slot.
#[derive(Debug, Clone, Copy)]
struct Slot {
    lease: LeaseId,
    /// Progress of the generator at which it has no token.
    begin: f64,
    /// Tokens it will have.
    length: u64,
    /// Tokens that the ledger has.
    sent: u64,
    finish: Finish,
}

/// One generator.
#[derive(Debug)]
pub(crate) struct Generator {
    pub(crate) holder: HolderId,
    /// How often it came back; events of an earlier life mean nothing.
    pub(crate) life: u64,
    pub(crate) alive: bool,
    /// The version it serves.
    pub(crate) installed: u64,
    /// The version that is on its way to it, or being installed.
    pub(crate) fetching: Option<u64>,
    installing: bool,
    slots: Vec<Option<Slot>>,
    empty: Vec<u32>,
    ends: BinaryHeap<Reverse<(Progress, u32, LeaseId)>>,
    taken: usize,
    progress: f64,
    /// When `progress` was right.
    at: f64,
    /// The newest plan for its next end.
    plan: u64,
    pub(crate) decoding_slot_s: f64,
    pub(crate) installing_slot_s: f64,
    pub(crate) down_slot_s: f64,
}

impl Generator {
    pub(crate) fn new(holder: HolderId, slots: usize) -> Self {
        Self {
            holder,
            life: 0,
            alive: true,
            installed: 0,
            fetching: None,
            installing: false,
            slots: vec![None; slots],
            empty: (0..slots as u32).rev().collect(),
            ends: BinaryHeap::new(),
            taken: 0,
            progress: 0.0,
            at: 0.0,
            plan: 0,
            decoding_slot_s: 0.0,
            installing_slot_s: 0.0,
            down_slot_s: 0.0,
        }
    }

    pub(crate) fn decodes(&self) -> bool {
        self.alive && !self.installing && self.taken > 0
    }

    /// How far it is at `now`, `unit_s` seconds for one held token of each slot.
    fn progress_at(&self, now: f64, unit_s: f64) -> f64 {
        if self.decodes() {
            self.progress + (now - self.at) / unit_s
        } else {
            self.progress
        }
    }

    /// Lets it come as far as it is at `now`, `unit_s` seconds for one held token of each slot.
    fn advance(&mut self, now: f64, unit_s: f64) {
        self.progress = self.progress_at(now, unit_s);
        let seconds = now - self.at;
        self.at = now;
        if !self.alive {
            self.down_slot_s += seconds * self.slots.len() as f64;
        } else if self.installing {
            self.installing_slot_s += seconds * self.slots.len() as f64;
        } else {
            self.decoding_slot_s += seconds * self.taken as f64;
        }
    }

    /// Its first token comes when `lead` more of the others have.
    fn seat(&mut self, lease: &RolloutLease, length: u64, cap: u64, lead: f64) {
        let place = self
            .empty
            .pop()
            .expect("the ledger lends no more than there is room for");
        let sent = lease.resume.len() as u64;
        let (length, finish) = if length >= cap {
            (cap, Finish::Length)
        } else {
            (length, Finish::Stop)
        };
        let slot = Slot {
            lease: lease.lease,
            begin: self.progress + lead - sent as f64,
            length,
            sent,
            finish,
        };
        self.ends.push(Reverse((
            Progress(slot.begin + length as f64),
            place,
            slot.lease,
        )));
        self.slots[place as usize] = Some(slot);
        self.taken += 1;
    }

    /// Empties a slot; asking for its next rollout is for the caller.
    fn leave(&mut self, place: usize) {
        if self.slots[place].take().is_some() {
            self.empty.push(place as u32);
            self.taken -= 1;
        }
    }

    /// When the first of its rollouts ends, as progress; ends of rollouts it no longer has are forgotten.
    fn first_end(&mut self) -> Option<f64> {
        while let Some(&Reverse((end, place, lease))) = self.ends.peek() {
            if self.slots[place as usize].is_some_and(|slot| slot.lease == lease) {
                return Some(end.0);
            }
            self.ends.pop();
        }
        None
    }
}

impl Simulation {
    fn unit_s(&self, generator: usize) -> f64 {
        let token_s = self.token_s(self.generators[generator].taken);
        token_s * f64::from(self.model.tokens_per_unit)
    }

    /// Seconds for one token of each of `taken` slots, on the part of a processor that a generator has now.
    fn token_s(&self, taken: usize) -> f64 {
        self.model.generators.token_s_at(taken) / self.share
    }

    /// Lets a generator come as far as it is now; before anything changes its speed.
    pub(crate) fn advance(&mut self, generator: usize) {
        let unit_s = self.unit_s(generator);
        self.generators[generator].advance(self.now, unit_s);
        if !self.changed[generator] {
            self.changed[generator] = true;
            self.changed_list.push(generator);
        }
    }

    /// Plans the next end of every generator whose speed or rollouts changed.
    pub(crate) fn plan_ends(&mut self) {
        while let Some(index) = self.changed_list.pop() {
            self.changed[index] = false;
            let unit_s = self.unit_s(index);
            let generator = &mut self.generators[index];
            generator.plan += 1;
            let plan = generator.plan;
            if let Some(end) = generator.first_end().filter(|_| generator.decodes()) {
                let at = self.now + (end - generator.progress).max(0.0) * unit_s;
                self.queue.plan(
                    at,
                    Event::Finish {
                        generator: index,
                        plan,
                    },
                );
            }
        }
    }

    /// Sends what ended, if the plan is still the newest.
    pub(crate) fn finish_rollouts(&mut self, index: usize, plan: u64) {
        if self.generators[index].plan != plan {
            return;
        }
        self.advance(index);
        let mut ended = 0;
        while let Some(end) = self.generators[index].first_end() {
            let generator = &mut self.generators[index];
            if end > generator.progress + SAME {
                break;
            }
            let Some(Reverse((_, place, _))) = generator.ends.pop() else {
                break;
            };
            let slot = generator.slots[place as usize].expect("first_end looked");
            generator.leave(place as usize);
            ended += 1;
            self.tally.finished_rollouts += 1;
            self.tally.finished_units += slot.length;
            self.lengths.generated(slot.length);
            self.send(index, slot, slot.length, true);
        }
        self.ask_for(index, ended);
    }

    /// Sends the tokens of a rollout from those sent to `tokens`, all of the version installed.
    fn send(&mut self, index: usize, slot: Slot, tokens: u64, ends: bool) -> ChunkAck {
        let generator = &self.generators[index];
        let count = (tokens - slot.sent) as usize;
        let version = PolicyVersion::new(EPOCH, generator.installed);
        let runs = [VersionRun::new(version, count as u32)];
        let chunk = ChunkRef {
            lease: slot.lease,
            offset: slot.sent as usize,
            tokens: &self.tokens[..count],
            logprobs: &self.logprobs[..count],
            runs: &runs[..usize::from(count > 0)],
            finish: ends.then_some(slot.finish),
        };
        self.ledger
            .chunk(self.now, generator.holder, chunk)
            .expect("a simulated chunk is one that can be")
    }

    /// Generators whose newest tokens have their last chance in `step` have told of them, but for the last chunk
    /// of each rollout. Nothing depends on the other tokens before their weights are replaced.
    pub(crate) fn tell_last_chances(&mut self, step: u64) {
        let (bound, unit) = (
            self.ledger.settings().max_staleness,
            self.model.tokens_per_unit,
        );
        if bound == 0 {
            return; // A step waits for every open group then, whatever it has heard.
        }
        let chunk = u64::from(self.model.generators.chunk_tokens.div_ceil(unit));
        for index in 0..self.generators.len() {
            let generator = &self.generators[index];
            if generator.alive && generator.installed + bound <= step {
                self.send_chunks(index, chunk);
            }
        }
    }

    /// Sends what every rollout of a generator has; rollouts that are no longer wanted leave.
    fn send_all(&mut self, index: usize) {
        self.send_chunks(index, 1);
    }

    /// Likewise as many whole chunks, of `chunk` held tokens each, as there are.
    fn send_chunks(&mut self, index: usize, chunk: u64) {
        let mut lost = 0;
        let progress = self.generators[index].progress_at(self.now, self.unit_s(index));
        for place in 0..self.generators[index].slots.len() {
            let Some(slot) = &mut self.generators[index].slots[place] else {
                continue;
            };
            let have = (progress - slot.begin + SAME).floor().max(0.0) as u64;
            let have = have.min(slot.length);
            let have = slot.sent + have.saturating_sub(slot.sent) / chunk * chunk;
            if have == slot.sent {
                continue;
            }
            let before = *slot;
            slot.sent = have;
            if self.send(index, before, have, false) == ChunkAck::Lost {
                self.advance(index);
                self.generators[index].leave(place);
                lost += 1;
            }
        }
        self.ask_for(index, lost);
    }

    /// The generator asks for as many rollouts as slots became empty.
    fn ask_for(&mut self, index: usize, slots: usize) {
        let turnaround_s = self.model.generators.turnaround_s;
        if slots == 0 {
        } else if turnaround_s > 0.0 {
            let life = self.generators[index].life;
            let at = self.now + turnaround_s;
            self.queue.plan(
                at,
                Event::Room {
                    generator: index,
                    life,
                    slots,
                },
            );
        } else {
            self.rooms.add(index, slots);
            self.rollouts_wanted = true;
        }
    }

    pub(crate) fn add_room(&mut self, index: usize, life: u64, slots: usize) {
        let generator = &mut self.generators[index];
        if generator.life == life && generator.alive {
            self.rooms.add(index, slots);
            self.rollouts_wanted = true;
        }
    }

    /// Lends to who has the most room, a group at a time, as the buffer's service does.
    pub(crate) fn offer_rollouts(&mut self) {
        let size = self.ledger.settings().group_size;
        let cap = u64::from(self.ledger.settings().max_tokens);
        while let Some((index, room)) = self.rooms.most() {
            let generator = &self.generators[index];
            let (holder, capacity) = (generator.holder, generator.slots.len());
            let installed = PolicyVersion::new(EPOCH, generator.installed);
            let leases =
                self.ledger
                    .lease_rollouts(self.now, holder, installed, room.min(size), capacity);
            if leases.is_empty() {
                // Nobody left has more room or newer weights; but a generator smaller than a group gets part
                // of one when it is idle.
                if installed.number == self.newest_installed && capacity >= size {
                    break;
                }
                self.rooms.pass_over(index);
                continue;
            }
            self.advance(index);
            self.rooms.set(index, room - leases.len());
            let taken = self.generators[index].taken + leases.len();
            let unit_s = self.token_s(taken) * f64::from(self.model.tokens_per_unit);
            let lead = self.model.generators.start_s / unit_s;
            for lease in &leases {
                let (prompts, ordinal) = (&mut self.prompts, lease.prompt.ordinal);
                let length = self.model.length_units(prompts, ordinal, lease.rollout.0);
                self.generators[index].seat(lease, length, cap, lead);
            }
        }
        self.rooms.give_back();
    }

    /// A version can be had: whoever fetches nothing begins to.
    pub(crate) fn fetch(&mut self, index: usize) {
        let Some(published) = self.published else {
            return;
        };
        let generator = &mut self.generators[index];
        if generator.alive && generator.fetching.is_none() && generator.installed < published {
            generator.fetching = Some(published);
            let (life, at) = (generator.life, self.now + self.model.weights.transfer_s);
            self.queue.plan(
                at,
                Event::Fetched {
                    generator: index,
                    life,
                },
            );
        }
    }

    /// The generator stands still to install what it has fetched.
    pub(crate) fn begin_install(&mut self, index: usize, life: u64) {
        if self.generators[index].life != life || !self.generators[index].alive {
            return;
        }
        self.advance(index);
        self.generators[index].installing = true;
        let at = self.now + self.model.weights.install_s;
        self.queue.plan(
            at,
            Event::Installed {
                generator: index,
                life,
            },
        );
    }

    /// Every token from now on is of the new version.
    pub(crate) fn end_install(&mut self, index: usize, life: u64) {
        if self.generators[index].life != life || !self.generators[index].alive {
            return;
        }
        self.advance(index);
        self.send_all(index);
        let generator = &mut self.generators[index];
        generator.installing = false;
        generator.installed = generator.fetching.take().unwrap_or(generator.installed);
        self.newest_installed = self.newest_installed.max(generator.installed);
        self.rollouts_wanted = true;
        self.fetch(index);
    }

    /// Draws when a generator that lives from now on dies.
    pub(crate) fn plan_death(&mut self, index: usize) {
        if let Some(seconds) = self.model.lifetime_s(index, self.generators[index].life) {
            self.queue
                .plan(self.now + seconds, Event::Dies { generator: index });
        }
    }

    pub(crate) fn die(&mut self, index: usize) {
        self.advance(index);
        self.send_all(index);
        let generator = &mut self.generators[index];
        generator.alive = false;
        self.rooms.set(index, 0);
        for place in 0..generator.slots.len() {
            generator.leave(place);
        }
        let holder = generator.holder;
        let failures = &self.model.failures;
        self.queue
            .plan(self.now + failures.noticed_s, Event::Missed { holder });
        self.queue.plan(
            self.now + failures.back_s,
            Event::Returns { generator: index },
        );
        self.tally.deaths += 1;
    }

    /// The generator is back with the newest weights, under another number.
    pub(crate) fn come_back(&mut self, index: usize) {
        self.advance(index);
        self.holders += 1;
        let generator = &mut self.generators[index];
        generator.holder = HolderId(self.holders);
        generator.life += 1;
        generator.alive = true;
        generator.installing = false;
        generator.fetching = None;
        generator.installed = self.published.unwrap_or(0);
        self.newest_installed = self.newest_installed.max(generator.installed);
        self.rooms.set(index, generator.slots.len());
        self.rollouts_wanted = true;
        self.plan_death(index);
    }

    /// Rollouts that a deadline took away leave their slots.
    pub(crate) fn drop_lost(&mut self) {
        for index in 0..self.generators.len() {
            let mut lost = 0;
            for place in 0..self.generators[index].slots.len() {
                let generator = &self.generators[index];
                let Some(slot) = generator.slots[place] else {
                    continue;
                };
                if self.ledger.holder_of(slot.lease) != Some(generator.holder) {
                    self.advance(index);
                    self.generators[index].leave(place);
                    lost += 1;
                }
            }
            self.ask_for(index, lost);
        }
    }
}
