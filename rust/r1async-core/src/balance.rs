//! Who trains which rollout of a batch: an even, deterministic split over ranks and micro-batches.
//!
//! *Ranks.* Longest first, each rollout to the rank with the fewest tokens so far (the lowest rank of
//! equals): the ranks differ by at most the longest rollout, and none is empty while there are as many
//! rollouts as ranks.
//!
//! *Micro-batches* are what one forward pass pads to a rectangle, so their size is rows × longest, and a
//! share is cut into contiguous ranges of at most `micro_batch_tokens` of that. Similar lengths belong
//! together, so a share that needs cutting is sorted, longest first (the pass that needs most memory comes
//! first). A batch that fits one micro-batch per rank keeps its place-in-line order instead: groups in the
//! order of the batch, members in theirs, as a plain loop over the same batch would have them.
//!
//! *The same number everywhere.* Ranks meet in a collective operation after every micro-batch. A rank that
//! needs fewer has its costliest ranges halved; only a rank with fewer rollouts than there are
//! micro-batches gets empty ranges, at the end, in which it takes part with a zero loss.

use std::cmp::Reverse;

/// One rank's rollouts and their micro-batches.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Share {
    /// Places in the batch of the rank's rollouts, in the order they are packed.
    pub places: Vec<usize>,
    /// Half-open ranges of `places`, one after the other; they cover it.
    pub micro_batches: Vec<(usize, usize)>,
}

/// Splits rollouts of `lengths` tokens (prompt and completion) over `ranks` ranks.
///
/// A rollout longer than `micro_batch_tokens` is a micro-batch of its own.
///
/// # Panics
/// `ranks` is zero.
///
/// ```
/// use r1async_core::balance::{Share, split};
/// let share = Share { places: vec![0, 1, 2], micro_batches: vec![(0, 3)] };
/// assert_eq!(split(&[5, 9, 2], 1, 27), [share]);
/// let share = Share { places: vec![1, 0, 2], micro_batches: vec![(0, 2), (2, 3)] };
/// assert_eq!(split(&[5, 9, 2], 1, 26), [share]);
/// ```
#[must_use]
pub fn split(lengths: &[usize], ranks: usize, micro_batch_tokens: usize) -> Vec<Share> {
    assert!(ranks > 0, "a batch is split over at least one rank");
    let mut places = over_ranks(lengths, ranks);
    let longest = |places: &[usize]| {
        places
            .iter()
            .map(|&place| lengths[place])
            .max()
            .unwrap_or(0)
    };
    let whole =
        |places: &Vec<usize>| longest(places).saturating_mul(places.len()) <= micro_batch_tokens;
    if places.iter().all(whole) {
        let share = |mut places: Vec<usize>| {
            places.sort_unstable();
            Share {
                micro_batches: vec![(0, places.len())],
                places,
            }
        };
        return places.into_iter().map(share).collect();
    }
    let mut cuts = Vec::with_capacity(ranks);
    for places in &mut places {
        places.sort_unstable_by_key(|&place| (Reverse(lengths[place]), place));
        cuts.push(cut(places, lengths, micro_batch_tokens));
    }
    let count = cuts.iter().map(Vec::len).max().unwrap_or(1);
    let share = |(places, cut): (Vec<usize>, Vec<(usize, usize)>)| Share {
        micro_batches: halved_up_to(count, cut, &places, lengths),
        places,
    };
    places.into_iter().zip(cuts).map(share).collect()
}

fn over_ranks(lengths: &[usize], ranks: usize) -> Vec<Vec<usize>> {
    let mut longest_first: Vec<usize> = (0..lengths.len()).collect();
    longest_first.sort_unstable_by_key(|&place| (Reverse(lengths[place]), place));
    let mut places = vec![Vec::new(); ranks];
    let mut tokens =
        std::collections::BinaryHeap::from_iter((0..ranks).map(|rank| Reverse((0, rank))));
    for place in longest_first {
        let Some(mut least) = tokens.peek_mut() else {
            break;
        };
        let Reverse((sum, rank)) = *least;
        places[rank].push(place);
        // An empty rollout still takes a row, so it counts as a token: no rank stays empty for it.
        *least = Reverse((sum + lengths[place].max(1), rank));
    }
    places
}

/// The fewest ranges of sorted rollouts that keep rows × longest within the limit.
fn cut(places: &[usize], lengths: &[usize], micro_batch_tokens: usize) -> Vec<(usize, usize)> {
    let mut ranges = Vec::new();
    let mut begin = 0;
    while begin < places.len() {
        let longest = lengths[places[begin]].max(1);
        let rows = (micro_batch_tokens / longest).max(1);
        let end = places.len().min(begin + rows);
        ranges.push((begin, end));
        begin = end;
    }
    ranges
}

fn halved_up_to(
    count: usize,
    mut ranges: Vec<(usize, usize)>,
    places: &[usize],
    lengths: &[usize],
) -> Vec<(usize, usize)> {
    while ranges.len() < count {
        let padded = |&(begin, end): &(usize, usize)| lengths[places[begin]].max(1) * (end - begin);
        let more_than_a_row = (0..ranges.len()).filter(|&at| ranges[at].1 - ranges[at].0 > 1);
        let Some(at) = more_than_a_row.max_by_key(|&at| (padded(&ranges[at]), Reverse(at))) else {
            break;
        };
        let (begin, end) = ranges[at];
        let middle = begin + (end - begin).div_ceil(2);
        ranges[at] = (begin, middle);
        ranges.insert(at + 1, (middle, end));
    }
    ranges.resize(count, (places.len(), places.len()));
    ranges
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn share(places: &[usize], micro_batches: &[(usize, usize)]) -> Share {
        Share {
            places: places.to_vec(),
            micro_batches: micro_batches.to_vec(),
        }
    }

    #[test]
    fn what_fits_one_micro_batch_keeps_its_place_in_line() {
        assert_eq!(
            split(&[3, 1, 9, 2], 1, 36),
            [share(&[0, 1, 2, 3], &[(0, 4)])]
        );
        assert_eq!(
            split(&[3, 1, 9, 2], 2, 9),
            [share(&[2], &[(0, 1)]), share(&[0, 1, 3], &[(0, 3)])]
        );
    }

    #[test]
    fn longer_batches_are_sorted_and_cut_by_padded_tokens() {
        // 9 alone (2 rows would be 18), then 3 rows of 3.
        assert_eq!(
            split(&[3, 1, 9, 2], 1, 10),
            [share(&[2, 0, 3, 1], &[(0, 1), (1, 4)])]
        );
        // Longer than the limit: a micro-batch of its own all the same.
        assert_eq!(
            split(&[3, 1, 9, 2], 1, 4),
            [share(&[2, 0, 3, 1], &[(0, 1), (1, 2), (2, 4)])]
        );
    }

    #[test]
    fn every_rank_has_the_same_number_of_micro_batches() {
        // Rank 0 gets 9, rank 1 gets 4 + 3 + 2, which needs (4), (3, 2) at a limit of 7; rank 0 has one row only.
        let shares = split(&[4, 9, 3, 2], 2, 7);
        assert_eq!(
            shares,
            [
                share(&[1], &[(0, 1), (1, 1)]),
                share(&[0, 2, 3], &[(0, 1), (1, 3)])
            ]
        );
        // Rank 0: 8; rank 1: 4 + 4. 8 > 7 but one row; rank 1 needs two. Then rank 0 has an empty range.
        let shares = split(&[8, 4, 4], 2, 7);
        assert_eq!(
            shares,
            [
                share(&[0], &[(0, 1), (1, 1)]),
                share(&[1, 2], &[(0, 1), (1, 2)])
            ]
        );
    }

    #[test]
    fn rank_that_needs_fewer_has_its_costliest_range_halved() {
        // Rank 0: 6, 3 at a limit of 7 are two ranges. Rank 1: 5, 1, 1, 1, 1 as 5 | 1 1 1 1.
        let shares = split(&[6, 5, 3, 1, 1, 1, 1], 2, 7);
        assert_eq!(shares[0].micro_batches.len(), shares[1].micro_batches.len());
        let shares = halved_up_to(
            3,
            vec![(0, 2), (2, 6)],
            &[0, 1, 2, 3, 4, 5],
            &[5, 5, 2, 2, 2, 2],
        );
        assert_eq!(shares, [(0, 1), (1, 2), (2, 6)]);
    }

    #[test]
    fn a_batch_of_nothing_is_one_empty_range() {
        assert_eq!(
            split(&[], 2, 7),
            [share(&[], &[(0, 0)]), share(&[], &[(0, 0)])]
        );
        assert_eq!(
            split(&[4], 2, 7),
            [share(&[0], &[(0, 1)]), share(&[], &[(0, 0)])]
        );
    }

    fn padded(share: &Share, (begin, end): (usize, usize), lengths: &[usize]) -> usize {
        let longest = share.places[begin..end]
            .iter()
            .map(|&place| lengths[place])
            .max();
        longest.unwrap_or(0) * (end - begin)
    }

    proptest! {
        #[test]
        fn every_rollout_is_trained_once_and_evenly(
            lengths in prop::collection::vec(1_usize..200, 0..120),
            ranks in 1_usize..6,
            limit in 1_usize..2000,
        ) {
            let shares = split(&lengths, ranks, limit);
            prop_assert_eq!(&shares, &split(&lengths, ranks, limit));
            prop_assert_eq!(shares.len(), ranks);
            let mut places: Vec<usize> = shares.iter().flat_map(|share| share.places.clone()).collect();
            places.sort_unstable();
            prop_assert_eq!(places, (0..lengths.len()).collect::<Vec<_>>());

            let tokens = |share: &Share| share.places.iter().map(|&place| lengths[place]).sum::<usize>();
            let sums: Vec<usize> = shares.iter().map(tokens).collect();
            let longest = lengths.iter().copied().max().unwrap_or(0);
            prop_assert!(sums.iter().max().unwrap() - sums.iter().min().unwrap() <= longest);

            let count = shares[0].micro_batches.len();
            for share in &shares {
                prop_assert_eq!(share.micro_batches.len(), count);
                let mut end = 0;
                for &range in &share.micro_batches {
                    prop_assert_eq!(range.0, end);
                    end = range.1;
                    prop_assert!(range.1 - range.0 <= 1 || padded(share, range, &lengths) <= limit);
                }
                prop_assert_eq!(end, share.places.len());
                if share.places.len() >= count {
                    prop_assert!(share.micro_batches.iter().all(|(begin, end)| end > begin));
                }
                if lengths.len() >= ranks {
                    prop_assert!(!share.places.is_empty());
                }
            }
        }
    }
}
