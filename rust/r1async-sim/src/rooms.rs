//! Who has room for rollouts, and who has the most.

/// Empty slots that each generator has asked rollouts for.
#[derive(Debug)]
pub(crate) struct Rooms {
    slots: Vec<usize>,
    /// Who has the most, while that is known: until they have less, it is asked for far more often than it changes.
    most: Option<Option<(usize, usize)>>,
    /// Who is passed over, and the room it has.
    passed_over: Vec<(usize, usize)>,
}

impl Rooms {
    pub(crate) fn new(generators: usize, slots: usize) -> Self {
        Self {
            slots: vec![slots; generators],
            most: None,
            passed_over: Vec::new(),
        }
    }

    pub(crate) fn set(&mut self, generator: usize, slots: usize) {
        self.slots[generator] = slots;
        let Some(known) = self.most else { return };
        let (first, most) = known.unwrap_or((usize::MAX, 0));
        if slots > most || (slots == most && generator < first && slots > 0) {
            self.most = Some(Some((generator, slots)));
        } else if generator == first && slots < most {
            self.most = None;
        }
    }

    pub(crate) fn add(&mut self, generator: usize, slots: usize) {
        self.set(generator, self.slots[generator] + slots);
    }

    /// Who has the most room, and how much; the first among equals. `None`: nobody has any.
    pub(crate) fn most(&mut self) -> Option<(usize, usize)> {
        let slots = &self.slots;
        *self.most.get_or_insert_with(|| most_room(slots))
    }

    /// Takes the room of a generator away for a while; `give_back` returns it.
    pub(crate) fn pass_over(&mut self, generator: usize) {
        let room = std::mem::take(&mut self.slots[generator]);
        self.passed_over.push((generator, room));
        self.most = None;
    }

    /// Generators that were passed over have their room again.
    pub(crate) fn give_back(&mut self) {
        while let Some((generator, room)) = self.passed_over.pop() {
            self.add(generator, room);
        }
    }
}

fn most_room(rooms: &[usize]) -> Option<(usize, usize)> {
    // One number to compare, without a branch: who has the most room changes with every loan.
    let key = |(index, &room): (usize, &usize)| ((room as u64) << 32) | u64::from(!(index as u32));
    let best = rooms.iter().enumerate().map(key).max();
    let (room, index) = best.map(|key| ((key >> 32) as usize, !(key as u32) as usize))?;
    (room > 0).then_some((index, room))
}
