//! Evaluations: asked for by an evaluator, answered prompt by prompt as their groups close.

use std::collections::BTreeMap;

use super::{Refusal, Service};
use crate::evaluation::{EvaluateError, EvaluatedGroup, EvaluationRequest};
use crate::group::{Outcome, Prompt};
use crate::ids::{HolderId, PolicyVersion};
use crate::messages::{Evaluate, SamplingFields};
use crate::settings::Sampling;

/// Evaluations that one evaluator may have at a time.
const MAX_EVALUATIONS: usize = 64;

impl Service {
    pub(super) fn evaluate(
        &mut self,
        holder: HolderId,
        evaluate: &Evaluate<'_>,
    ) -> Result<(), Refusal> {
        let pools = self.pools_of(&evaluate.pools)?;
        let prompt = |(at, (range, meta)): (usize, (&std::ops::Range<usize>, &&[u8]))| Prompt {
            ordinal: at as u64,
            tokens: evaluate.prompt_tokens[range.clone()].to_vec(),
            meta: meta.to_vec(),
            pool: pools.get(at).copied().unwrap_or(0),
        };
        let running = self
            .evaluations
            .values()
            .filter(|&&owner| owner == holder)
            .count();
        if running >= MAX_EVALUATIONS {
            let text = format!("evaluate: {running} evaluations run; wait for one or cancel it");
            return Err(Refusal::new("invalid", text));
        }
        if let Some(at) = evaluate.prompts.iter().position(std::ops::Range::is_empty) {
            return Err(Refusal::new(
                "invalid",
                format!("evaluate: prompt {at} has no tokens; want at least 1 in each"),
            ));
        }
        let request = EvaluationRequest {
            id: evaluate.id.to_owned(),
            pin: PolicyVersion::new(evaluate.pin.0 as u64, evaluate.pin.1 as u64),
            samples: evaluate.samples,
            sampling: sampling(&evaluate.sampling)?,
            first: evaluate.first.map(|first| first as u64),
            prompts: evaluate
                .prompts
                .iter()
                .zip(&evaluate.metas)
                .enumerate()
                .map(prompt)
                .collect(),
        };
        let groups = self.ledger.evaluate(request).map_err(|error| match error {
            EvaluateError::Version { .. } => Refusal::new("version", error),
            _ => Refusal::new("invalid", error),
        })?;
        self.evaluations.insert(evaluate.id.to_owned(), holder);
        self.news.rollouts = true;
        self.answer(holder, "accepted", |head| {
            head.str("id", evaluate.id).int("groups", groups as i64)
        });
        Ok(())
    }

    /// Pools by their names.
    fn pools_of(&self, names: &[&str]) -> Result<Vec<usize>, Refusal> {
        names.iter().map(|name| self.pool_named(name)).collect()
    }

    pub(super) fn pool_named(&self, name: &str) -> Result<usize, Refusal> {
        let settings = &self.settings.ledger;
        let mut pools = 0..settings.pools();
        pools
            .find(|&pool| settings.pool_name(pool) == name)
            .ok_or_else(|| {
                let known: Vec<&str> = (0..settings.pools())
                    .map(|pool| settings.pool_name(pool))
                    .collect();
                let text = format!("no pool {name:?}; this run has {}", known.join(", "));
                Refusal::new("invalid", text)
            })
    }

    pub(super) fn cancel_evaluation(&mut self, holder: HolderId, id: &str) -> Result<(), Refusal> {
        match self.evaluations.get(id) {
            Some(&owner) if owner == holder => {
                self.evaluations.remove(id);
                self.ledger.cancel_evaluation(id);
                self.answer(holder, "alive", |head| head);
                Ok(())
            }
            _ => Err(Refusal::new(
                "invalid",
                format!("no evaluation {id:?} of this evaluator runs"),
            )),
        }
    }

    /// Nobody waits for its evaluations any more: an evaluator that connects again asks again.
    pub(super) fn evaluator_lost(&mut self, holder: HolderId) {
        for (id, _) in self.evaluations.extract_if(.., |_, owner| *owner == holder) {
            self.ledger.cancel_evaluation(&id);
        }
    }

    /// Sends closed groups to whoever asked for them.
    pub(super) fn deliver_evaluated(&mut self) {
        let mut by_id: BTreeMap<String, Vec<EvaluatedGroup>> = BTreeMap::new();
        for group in self.ledger.take_evaluated() {
            by_id.entry(group.id.clone()).or_default().push(group);
        }
        for (id, groups) in &by_id {
            let Some(&holder) = self.evaluations.get(id) else {
                continue;
            };
            let frame = evaluated_frame(self.head("evaluated"), id, groups);
            self.send(holder, frame);
            if groups.iter().any(|group| group.done == group.of) {
                self.evaluations.remove(id);
            }
        }
    }
}

fn sampling(fields: &SamplingFields) -> Result<Sampling, Refusal> {
    let wrong = |field: &str, want: &str, got: &dyn std::fmt::Display| {
        Err(Refusal::new(
            "invalid",
            format!("evaluate: sampling.{field} must be {want}, got {got}"),
        ))
    };
    if !(fields.temperature.is_finite() && fields.temperature > 0.0) {
        return wrong(
            "temperature",
            "above 0 (greedy has its own switch)",
            &fields.temperature,
        );
    }
    if !(fields.top_p > 0.0 && fields.top_p <= 1.0) {
        return wrong("top_p", "above 0 and at most 1", &fields.top_p);
    }
    let (Ok(top_k), Ok(max_tokens)) = (
        u32::try_from(fields.top_k),
        u32::try_from(fields.max_tokens),
    ) else {
        return wrong("top_k", "below 2^32", &fields.top_k);
    };
    let (temperature, top_p, greedy) = (fields.temperature, fields.top_p, fields.greedy);
    Ok(Sampling {
        temperature,
        top_p,
        top_k,
        max_tokens,
        greedy,
    })
}

fn evaluated_frame(
    head: crate::frame::FrameWriter,
    id: &str,
    groups: &[EvaluatedGroup],
) -> Vec<u8> {
    let (done, of) = groups.last().map_or((0, 0), |group| (group.done, group.of));
    let members = || {
        groups
            .iter()
            .flat_map(|group| group.members.iter().enumerate().map(move |it| (group, it)))
    };
    let head = head
        .str("id", id)
        .int("done", done as i64)
        .int("of", of as i64);
    let head = head.list("items", members().count(), |out| {
        for (group, (member, it)) in members() {
            out.list(7);
            out.int(group.prompt_index as i64);
            out.int(member as i64);
            match &it.outcome {
                Outcome::Score(score) => {
                    out.float(score.total);
                    out.map(score.parts.len());
                    for (name, value) in &score.parts {
                        out.str(name);
                        out.float(*value);
                    }
                    out.str(&score.status);
                }
                Outcome::Abstain(status) => {
                    out.nil();
                    out.map(0);
                    out.str(status);
                }
            }
            match it.finish {
                Some(finish) => out.str(finish.name()),
                None => out.nil(),
            }
            out.int(it.tokens.len() as i64);
        }
    });
    let mut frame = head
        .column::<i32>(
            "tokens",
            members().map(|(_, (_, it))| it.tokens.len()).sum(),
        )
        .open();
    members().for_each(|(_, (_, it))| frame.put(&it.tokens));
    frame.end_column();
    frame.finish()
}
