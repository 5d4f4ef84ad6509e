//! Does the same with several layers at a time.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::oci::error::{Error, Result};

/// The number of layers at a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Jobs(pub(super) usize);

impl Default for Jobs {
    fn default() -> Self {
        Self(4)
    }
}

/// Calls `work` for each of `items`, on several threads. Returns the results in the order of the
/// items. After a temporary error of the registry, the disk or the pins, begins no others: they
/// would fail, too, each after its own repetitions.
pub(super) fn run<I: Sync, T: Send>(jobs: Jobs, items: &[I], work: impl Fn(&I) -> Result<T> + Sync) -> Vec<Result<T>> {
    let queue: Mutex<VecDeque<usize>> = Mutex::new((0..items.len()).collect());
    let results: Mutex<Vec<Option<Result<T>>>> = Mutex::new(items.iter().map(|_| None).collect());
    let stopped = AtomicBool::new(false);
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let run = || {
        while let Some(number) = next() {
            let result = match stopped.load(Ordering::Acquire) {
                true => Err(Error::NotBegun),
                false => work(&items[number]),
            };
            if matches!(&result, Err(error) if error.affects_others() || matches!(error, Error::Cancelled)) {
                stopped.store(true, Ordering::Release);
            }
            results.lock().unwrap_or_else(PoisonError::into_inner)[number] = Some(result);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..jobs.0.clamp(1, items.len().max(1)) {
            scope.spawn(run);
        }
        run();
    });
    let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.into_iter().map(|result| result.unwrap_or(Err(Error::NotBegun))).collect()
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;
    use crate::store::hold::Holder;

    #[test]
    fn only_an_error_that_others_would_have_too_stops_them() {
        let held = || Error::Layer(crate::Error::LayerHeld { layer: "a".into(), by: Holder::Locked });
        let base = || Error::Layer(crate::Error::BaseOfOthers { layer: "a".into(), other: "b".into() });
        let pins = |kind: ErrorKind| Error::Pins { operation: "read", path: "a".into(), source: kind.into() };
        let disk = || Error::io("write", "a")(std::io::Error::from(ErrorKind::StorageFull));
        let table: [(&(dyn Fn() -> Error + Sync), bool); 6] = [
            (&held, false),
            (&base, false),
            (&|| pins(ErrorKind::NotADirectory), false),
            (&|| pins(ErrorKind::NotFound), true),
            (&disk, true),
            (&|| Error::Cancelled, true),
        ];
        for (error, stops) in table {
            let results = run(Jobs(1), &[0, 1, 2], |&number| if number == 0 { Err(error()) } else { Ok(number) });
            assert!(results[0].is_err());
            let begun = results[1..].iter().filter(|result| result.is_ok()).count();
            assert_eq!(begun, if stops { 0 } else { 2 }, "{:?}", error());
        }
    }
}
