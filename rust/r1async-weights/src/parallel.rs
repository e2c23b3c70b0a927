//! Many tensors at once.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use crate::Scratch;

/// `work` on every item, by at most `threads` threads; results in the order of the items. The largest go first, by
/// `size`, so that no thread begins with one when the others are done.
///
/// # Panics
/// If `work` does.
pub fn map<T: Send, R: Send>(
    items: Vec<T>,
    threads: usize,
    size: impl Fn(&T) -> usize,
    work: impl Fn(T, &mut Scratch) -> R + Sync,
) -> Vec<R> {
    let threads = threads.clamp(1, items.len().max(1));
    if threads == 1 {
        let mut scratch = Scratch::default();
        return items
            .into_iter()
            .map(|item| work(item, &mut scratch))
            .collect();
    }
    let mut items: Vec<_> = items.into_iter().enumerate().collect();
    items.sort_by_key(|(_, item)| std::cmp::Reverse(size(item)));
    let items: Vec<_> = items
        .into_iter()
        .map(|item| Mutex::new(Some(item)))
        .collect();
    let next = AtomicUsize::new(0);
    let one = || {
        let mut scratch = Scratch::default();
        let mut done = Vec::new();
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            let item = item.lock().expect("nobody panics with it").take();
            let (place, item) = item.expect("every number is drawn once");
            done.push((place, work(item, &mut scratch)));
        }
        done
    };
    let mut done: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
        let done = threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("a worker panicked"));
        done.collect()
    });
    done.sort_by_key(|(place, _)| *place);
    done.into_iter().map(|(_, result)| result).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn results_keep_the_order_of_the_items() {
        let items: Vec<usize> = (0..50).collect();
        let squares = super::map(items, 3, |item| *item, |item, _| item * item);
        assert!(squares.iter().enumerate().all(|(at, got)| *got == at * at));
    }
}
