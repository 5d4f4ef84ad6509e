//! How the machine's hierarchies are mounted.

use std::fmt;

use super::{Cgroup, Version, mounted};
use crate::error::Result;

/// How the machine's cgroup hierarchies are mounted: see cgroups(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CgroupLayout {
    /// No hierarchy is mounted.
    Missing,
    /// Only hierarchies of version 1.
    Legacy,
    /// Only the hierarchy of version 2.
    Unified,
    /// The hierarchy of version 2 beside hierarchies of version 1.
    Hybrid,
}

impl fmt::Display for CgroupLayout {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            CgroupLayout::Missing => "none",
            CgroupLayout::Legacy => "version 1",
            CgroupLayout::Unified => "version 2",
            CgroupLayout::Hybrid => "version 1 with version 2 beside it",
        })
    }
}

impl Cgroup {
    /// Returns the machine's layout.
    ///
    /// # Errors
    /// [`Error::Io`](crate::Error::Io) if the mount table cannot be read.
    pub fn layout() -> Result<CgroupLayout> {
        Ok(layout(mounted()?.iter().map(|hierarchy| &hierarchy.version)))
    }
}

fn layout<'a>(versions: impl Iterator<Item = &'a Version>) -> CgroupLayout {
    let (mut v1, mut v2) = (false, false);
    for version in versions {
        match version {
            Version::V1(_) => v1 = true,
            Version::V2 => v2 = true,
        }
    }
    match (v1, v2) {
        (false, false) => CgroupLayout::Missing,
        (true, false) => CgroupLayout::Legacy,
        (false, true) => CgroupLayout::Unified,
        (true, true) => CgroupLayout::Hybrid,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mounted_versions_decide_the_layout() {
        let v1 = || Version::V1(vec!["cpu".into()]);
        let table = [
            (vec![], CgroupLayout::Missing),
            (vec![v1(), v1()], CgroupLayout::Legacy),
            (vec![Version::V2], CgroupLayout::Unified),
            (vec![v1(), Version::V2], CgroupLayout::Hybrid),
        ];
        for (versions, expected) in table {
            assert_eq!(layout(versions.iter()), expected, "{versions:?}");
        }
    }
}
