//! Who a client is: the first message of a connection.

use super::MessageError;
use super::fields::Fields;
use crate::frame::Frame;

/// What a client is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Samples rollouts.
    Generator,
    /// Grades them.
    Scorer,
    /// Asks for pinned rollouts and takes their verdicts.
    Evaluator,
    /// Trains batches.
    Learner,
}

impl Role {
    /// Its name on the wire.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Generator => "generator",
            Self::Scorer => "scorer",
            Self::Evaluator => "evaluator",
            Self::Learner => "learner",
        }
    }

    fn from_name(name: &str) -> Option<Self> {
        [
            Self::Generator,
            Self::Scorer,
            Self::Evaluator,
            Self::Learner,
        ]
        .into_iter()
        .find(|role| role.name() == name)
    }
}

/// First message of a connection.
#[derive(Debug, Clone, PartialEq)]
pub struct Hello<'a> {
    /// Protocol version; of another protocol nothing else is read.
    pub protocol: i64,
    /// What the client is.
    pub role: Role,
    /// Its name in logs and events.
    pub name: &'a str,
    /// The run it means to join.
    pub run: &'a str,
    /// Of a learner only.
    pub learner: Option<LearnerHello<'a>>,
}

/// What a learner adds to its hello.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LearnerHello<'a> {
    /// This process.
    pub rank: usize,
    /// Processes that train together.
    pub world: usize,
    /// The learner's life, one above any seen.
    pub epoch: i64,
    /// Steps in its newest whole checkpoint.
    pub step: i64,
    /// Whose memory it can map (`service::BatchMemory`); `None`: its batches travel.
    pub machine: Option<&'a str>,
}

impl<'a> Hello<'a> {
    /// Reads a `hello`.
    ///
    /// # Errors
    /// A field is missing or wrong.
    pub fn read(frame: &Frame<'a>, protocol: i64) -> Result<Self, MessageError> {
        let fields = Fields::of(frame);
        let role = fields
            .get("role")?
            .one_of("generator, scorer, evaluator or learner", Role::from_name)?;
        let learner = (role == Role::Learner)
            .then(|| LearnerHello::read(&fields))
            .transpose()?;
        Ok(Self {
            protocol,
            role,
            name: fields.get("name")?.name()?,
            run: fields.get("run")?.name()?,
            learner,
        })
    }

    /// The protocol that a `hello` names, to be looked at before anything else in it.
    ///
    /// # Errors
    /// It names none.
    pub fn protocol(frame: &Frame<'a>) -> Result<i64, MessageError> {
        Fields::of(frame).get("protocol")?.int()
    }
}

impl<'a> LearnerHello<'a> {
    fn read(fields: &Fields<'_, 'a>) -> Result<Self, MessageError> {
        let world = fields.get("world")?.in_range(1, 1 << 16, "1..65536")?;
        let rank = fields
            .get("rank")?
            .in_range(0, world - 1, "0 <= rank < world")?;
        let (epoch, step) = (fields.get("epoch")?.count()?, fields.get("step")?.count()?);
        Ok(Self {
            rank: rank as usize,
            world: world as usize,
            epoch,
            step,
            machine: match fields.given("machine") {
                Some(machine) => Some(machine.name()?),
                None => None,
            },
        })
    }
}
