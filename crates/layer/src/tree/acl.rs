//! Access control lists, as the extended attributes `system.posix_acl_*` hold them: acl(5).
//! `attributes.rs` copies them.

/// The size of the version at the beginning of a list.
const HEAD_BYTES: usize = 4;

/// The size of an entry: a tag and permissions of two bytes each, and an ID.
const ENTRY_BYTES: usize = 8;

/// Removes the entries of users and groups that have no number in this process's user namespace.
/// The kernel shows -1 for them, and refuses a list with it. The user or the group then has the
/// permissions of the remaining entries that match, or those of others. These can be more than the
/// removed entry gave.
pub(super) fn retain_known(list: &mut Vec<u8>) {
    if list.len() < HEAD_BYTES || (list.len() - HEAD_BYTES) % ENTRY_BYTES != 0 {
        return;
    }
    let (head, entries) = list.split_at(HEAD_BYTES);
    let retained = entries.chunks_exact(ENTRY_BYTES).filter(|entry| !is_of_unknown(entry)).flatten();
    *list = head.iter().chain(retained).copied().collect();
}

/// Returns whether an entry names a user or a group, and the kernel shows no number for it.
fn is_of_unknown(entry: &[u8]) -> bool {
    // ACL_USER and ACL_GROUP in linux/posix_acl.h.
    const OF_USER: u16 = 0x02;
    const OF_GROUP: u16 = 0x08;
    let tag = u16::from_le_bytes([entry[0], entry[1]]);
    matches!(tag, OF_USER | OF_GROUP) && entry[4..] == u32::MAX.to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(entries: &[(u16, u32)]) -> Vec<u8> {
        let entry = |(tag, id): &(u16, u32)| [tag.to_le_bytes(), [7, 0]].concat().into_iter().chain(id.to_le_bytes());
        2_u32.to_le_bytes().into_iter().chain(entries.iter().flat_map(entry)).collect()
    }

    #[test]
    fn entries_of_unknown_users_and_groups_are_removed() {
        let none = u32::MAX;
        let table = [
            (&[(1, none), (4, none), (0x20, none)][..], &[(1, none), (4, none), (0x20, none)][..]),
            (&[(1, none), (2, 5), (2, none), (4, none), (8, none), (8, 9)], &[(1, none), (2, 5), (4, none), (8, 9)]),
            (&[], &[]),
        ];
        for (before, after) in table {
            let mut found = list(before);
            retain_known(&mut found);
            assert_eq!(found, list(after), "{before:?}");
        }
        for malformed in [&[][..], &[2, 0, 0], &[2, 0, 0, 0, 2, 0, 7, 0, 255]] {
            let mut found = malformed.to_vec();
            retain_known(&mut found);
            assert_eq!(found, malformed);
        }
    }
}
