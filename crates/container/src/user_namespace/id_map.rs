//! The numbers that a user namespace has, as `/proc/self/uid_map` and `gid_map` list them.

use std::fmt;

/// The user or group IDs of a user namespace: see user_namespaces(7).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IdMap {
    extents: Vec<Extent>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    inside: u32,
    outside: u32,
    count: u32,
}

impl IdMap {
    /// Reads a map in the format of the kernel: a line `INSIDE OUTSIDE COUNT` per extent. Skips
    /// lines that are not in this format.
    pub(crate) fn parse(text: &str) -> Self {
        let extent = |line: &str| {
            let mut numbers = line.split_whitespace().map(|number| number.parse().ok());
            Some(Extent { inside: numbers.next()??, outside: numbers.next()??, count: numbers.next()?? })
        };
        Self { extents: text.lines().filter_map(extent).collect() }
    }

    /// Returns whether the namespace has the ID `id`. No file can belong to another ID, and no
    /// process can have another one.
    pub fn contains(&self, id: u32) -> bool {
        self.extents.iter().any(|extent| id.checked_sub(extent.inside).is_some_and(|offset| offset < extent.count))
    }

    /// Returns the number in the namespace of the ID that is `outside` in the parent namespace.
    /// Returns `None` if the namespace does not have it.
    pub fn inside(&self, outside: u32) -> Option<u32> {
        self.extents.iter().find_map(|extent| {
            let offset = outside.checked_sub(extent.outside).filter(|offset| *offset < extent.count)?;
            extent.inside.checked_add(offset)
        })
    }

    /// Returns how many IDs the namespace has.
    pub fn count(&self) -> u64 {
        self.extents.iter().map(|extent| u64::from(extent.count)).sum()
    }

    /// Returns whether the map has not been set. All IDs of such a namespace are the overflow ID.
    pub(crate) fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }
}

impl fmt::Display for IdMap {
    /// Writes the extents as `INSIDE=OUTSIDE` or `FIRST-LAST=FIRST-LAST`, with commas between them.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, Extent { inside, outside, count }) in self.extents.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            let last = |first: &u32| u64::from(*first) + u64::from(*count).saturating_sub(1);
            match count {
                1 => write!(formatter, "{comma}{inside}={outside}")?,
                _ => write!(formatter, "{comma}{inside}-{}={outside}-{}", last(inside), last(outside))?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_has_the_ids_of_its_extents() {
        let map = IdMap::parse("         0       1000          1\n         1     100000      65536\nnonsense\n");
        let table =
            [(0, true), (1, true), (1000, true), (65535, true), (65536, true), (65537, false), (u32::MAX, false)];
        for (id, expected) in table {
            assert_eq!(map.contains(id), expected, "{id}");
        }
        assert_eq!((map.count(), map.to_string()), (65537, "0=1000, 1-65536=100000-165535".to_owned()));
    }

    #[test]
    fn an_id_of_the_parent_namespace_has_a_number_if_an_extent_has_it() {
        let map = IdMap::parse("0 1000 1\n1 100000 65536\n70000 60 2\n4294967295 200000 2\n");
        let table = [
            (1000, Some(0)),
            (100_000, Some(1)),
            (165_535, Some(65536)),
            (61, Some(70001)),
            (0, None),
            (1001, None),
            (62, None),
            (165_536, None),
            (200_001, None),
        ];
        for (outside, expected) in table {
            assert_eq!(map.inside(outside), expected, "{outside}");
        }
    }

    #[test]
    fn the_first_namespace_has_every_id() {
        let map = IdMap::parse("         0          0 4294967295\n");
        assert!(map.contains(0) && map.contains(65534) && !map.contains(u32::MAX));
        assert_eq!(map.to_string(), "0-4294967294=0-4294967294");
    }

    #[test]
    fn a_map_that_has_not_been_set_is_empty() {
        let map = IdMap::parse("");
        assert!(map.is_empty() && !map.contains(0));
        assert_eq!(map.to_string(), "");
    }
}
