//! Decides in which lane of the timeline each run is drawn, and which runs belong to one batch.
//! This is arithmetic; [`model`](super::model) supplies the times.

use serde::Serialize;

/// The resolution of `created_at`, in milliseconds. A run ends up to this much later than its
/// layer records.
const RESOLUTION: i64 = 1000;

/// The idle time between two batches, in milliseconds: 15 minutes.
const IDLE: i64 = 15 * 60 * 1000;

/// A time from `start` to `end`, in milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct Span {
    pub(super) start: i64,
    pub(super) end: i64,
}

/// The place of a run in the timeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// The number of the lane, from 0.
    pub(super) lane: usize,
    /// The start of the bar: that of the run, or up to a second later if a run before it in its
    /// lane has a recorded end that is a little too late.
    pub(super) start: i64,
}

/// Runs without a longer idle time between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Batch {
    #[serde(flatten)]
    pub(super) span: Span,
    /// The number of runs.
    pub(super) runs: usize,
    /// The number of lanes that they take: how many of them ran at the same time, at most.
    pub(super) lanes: usize,
}

/// Packs runs into the fewest lanes, so that no two bars of a lane overlap, and that all bars of a
/// lane are from the same host. Each run takes the first lane that is free, in the order of their
/// starts. The lanes of a batch are in the order of their hosts.
///
/// Returns the places in the order of `runs`, and the batches in the order of time.
pub(super) fn pack<H: Ord + Copy>(runs: &[(H, Span)]) -> (Vec<Place>, Vec<Batch>) {
    let mut places = vec![Place { lane: 0, start: 0 }; runs.len()];
    let mut order: Vec<usize> = (0..runs.len()).collect();
    order.sort_by_key(|index| runs[*index].1);
    let mut batches: Vec<Batch> = Vec::new();
    // The host of each lane of the batch, and the end of its last bar.
    let mut lanes: Vec<(H, i64)> = Vec::new();
    // The position in `order` of the first run of the batch.
    let mut first = 0;
    for (position, index) in order.iter().copied().enumerate() {
        let (host, run) = runs[index];
        let batch = match batches.last_mut() {
            Some(batch) if run.start - batch.span.end <= IDLE => batch,
            _ => {
                sort_by_host(&lanes, &order[first..position], &mut places);
                first = position;
                lanes.clear();
                batches.push(Batch { span: run, runs: 0, lanes: 0 });
                batches.last_mut().expect("a batch was pushed")
            }
        };
        // A short run keeps at least half of its length.
        let slack = RESOLUTION.min((run.end - run.start) / 2);
        let is_free = |(of, end): &(H, i64)| *of == host && *end <= run.start + slack;
        let lane = lanes.iter().position(is_free).unwrap_or(lanes.len());
        let start = lanes.get(lane).map_or(run.start, |(_, end)| run.start.max(*end));
        if lane == lanes.len() {
            lanes.push((host, run.end));
        }
        lanes[lane].1 = run.end;
        places[index] = Place { lane, start };
        batch.runs += 1;
        batch.lanes = lanes.len();
        batch.span.end = batch.span.end.max(run.end);
    }
    sort_by_host(&lanes, &order[first..], &mut places);
    (places, batches)
}

/// Numbers the lanes of one batch in the order of their hosts. `runs` has the indexes of its runs.
fn sort_by_host<H: Ord + Copy>(lanes: &[(H, i64)], runs: &[usize], places: &mut [Place]) {
    let mut order: Vec<usize> = (0..lanes.len()).collect();
    order.sort_by_key(|lane| lanes[*lane].0);
    let mut numbers = vec![0; lanes.len()];
    for (number, lane) in order.into_iter().enumerate() {
        numbers[lane] = number;
    }
    for run in runs {
        places[*run].lane = numbers[places[*run].lane];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spans(runs: &[(i64, i64)]) -> Vec<((), Span)> {
        runs.iter().map(|(start, end)| ((), Span { start: start * 1000, end: end * 1000 })).collect()
    }

    #[test]
    fn each_run_takes_the_first_free_lane() {
        type Seconds = &'static [(i64, i64)];
        let table: [(Seconds, &[usize]); 7] = [
            (&[], &[]),
            (&[(0, 10)], &[0]),
            // One worker, and one that starts at the moment at which the other ends.
            (&[(0, 10), (10, 20), (30, 40)], &[0, 0, 0]),
            (&[(0, 30), (5, 15), (15, 40), (20, 25)], &[0, 1, 1, 2]),
            // In any order.
            (&[(20, 25), (15, 40), (5, 15), (0, 30)], &[2, 1, 1, 0]),
            // The shortest of those that start together is first. Its lane is free again for the
            // last.
            (&[(0, 50), (0, 60), (0, 20), (25, 70)], &[1, 2, 0, 0]),
            (&[(5, 5), (5, 5)], &[0, 0]),
        ];
        for (runs, lanes) in table {
            let (places, _) = pack(&spans(runs));
            assert_eq!(places.iter().map(|place| place.lane).collect::<Vec<_>>(), lanes, "{runs:?}");
        }
    }

    #[test]
    fn hosts_share_no_lane_and_are_in_their_order() {
        let runs = [("b", 0, 10), ("a", 5, 10), ("b", 12, 20), ("a", 30, 40), ("a", 31, 32)];
        let runs: Vec<_> = runs.iter().map(|(host, start, end)| (*host, spans(&[(*start, *end)])[0].1)).collect();
        let (places, batches) = pack(&runs);
        assert_eq!(places.iter().map(|place| place.lane).collect::<Vec<_>>(), [2, 0, 2, 0, 1]);
        assert_eq!(batches[0].lanes, 3);
    }

    #[test]
    fn bars_of_one_lane_never_overlap() {
        let mut state = 7_u64;
        let mut next = |limit: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((state >> 33) % limit) as i64
        };
        let runs: Vec<_> = (0..500)
            .map(|_| {
                let start = next(600_000);
                (next(3), Span { start, end: start + next(20_000) })
            })
            .collect();
        let (places, batches) = pack(&runs);
        let mut bars: Vec<_> =
            places.iter().zip(&runs).map(|(place, (host, run))| (place.lane, place.start, run.end, host)).collect();
        bars.sort_unstable();
        for pair in bars.windows(2) {
            let is_same = pair[0].0 == pair[1].0;
            assert!(!is_same || (pair[0].2 <= pair[1].1 && pair[0].3 == pair[1].3), "{pair:?}");
            assert!(pair[0].3 <= pair[1].3, "the lanes are in the order of the hosts: {pair:?}");
        }
        for (place, (_, run)) in places.iter().zip(&runs) {
            assert!((run.start..=run.start + RESOLUTION).contains(&place.start) && place.start <= run.end);
        }
        assert_eq!(batches.iter().map(|batch| batch.runs).sum::<usize>(), 500);
    }

    #[test]
    fn an_end_that_is_less_than_a_second_late_takes_no_lane_of_its_own() {
        let span = |start, end| ((), Span { start, end });
        let table = [
            // The second run starts up to a second before the recorded end of the first.
            ([span(0, 10_000), span(9_100, 20_000)], [(0, 0), (0, 10_000)]),
            ([span(0, 10_000), span(8_900, 20_000)], [(0, 0), (1, 8_900)]),
            // A short run would lose more than half of its length.
            ([span(0, 10_000), span(9_800, 10_100)], [(0, 0), (1, 9_800)]),
            ([span(0, 10_000), span(9_900, 10_100)], [(0, 0), (0, 10_000)]),
        ];
        for (runs, expected) in table {
            let (places, _) = pack(&runs);
            assert_eq!(places.iter().map(|place| (place.lane, place.start)).collect::<Vec<_>>(), expected, "{runs:?}");
        }
    }

    #[test]
    fn an_idle_time_ends_a_batch() {
        let idle = IDLE / 1000;
        let (places, batches) =
            pack(&spans(&[(0, 10), (0, 20), (20 + idle, 100 + idle), (101 + 2 * idle, 102 + 2 * idle)]));
        let batch = |start: i64, end: i64, runs, lanes| Batch {
            span: Span { start: start * 1000, end: end * 1000 },
            runs,
            lanes,
        };
        assert_eq!(batches, [batch(0, 100 + idle, 3, 2), batch(101 + 2 * idle, 102 + 2 * idle, 1, 1)]);
        assert_eq!(places[3].lane, 0);
    }
}
