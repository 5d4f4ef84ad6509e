//! Seccomp filters, as programs: what the kernel would make of a call.

/// A program of classic BPF over `struct seccomp_data` (seccomp(2)).
#[derive(Debug, Clone)]
pub struct Filter(Vec<(u16, u8, u8, u32)>);

/// A system call: how it is made, by number, with what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// The convention: `AUDIT_ARCH_…` in linux/audit.h.
    pub convention: u32,
    /// Its number.
    pub number: u32,
    /// Its arguments.
    pub arguments: [u64; 6],
}

impl Filter {
    /// The program in these bytes, `struct sock_filter` after `struct sock_filter`.
    ///
    /// # Panics
    /// If there is half an instruction.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        assert!(!bytes.is_empty() && bytes.len() % 8 == 0);
        let instruction = |bytes: &[u8]| {
            let code = u16::from_ne_bytes(bytes[..2].try_into().unwrap());
            (code, bytes[2], bytes[3], u32::from_ne_bytes(bytes[4..].try_into().unwrap()))
        };
        Self(bytes.chunks(8).map(instruction).collect())
    }

    /// How many instructions it has.
    pub fn length(&self) -> usize {
        self.0.len()
    }

    /// What it returns: `SECCOMP_RET_…` in linux/seccomp.h, and the error beside `SECCOMP_RET_ERRNO`.
    ///
    /// # Panics
    /// If the program is none that ends, or has an instruction that filters are not known to have.
    pub fn answer(&self, call: &Call) -> u32 {
        let mut data = [0; 64];
        data[..4].copy_from_slice(&call.number.to_ne_bytes());
        data[4..8].copy_from_slice(&call.convention.to_ne_bytes());
        for (place, argument) in data[16..].chunks_mut(8).zip(call.arguments) {
            place.copy_from_slice(&argument.to_ne_bytes());
        }
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let (code, if_true, if_false, k) = self.0[at];
            let jump = |holds: bool| usize::from(if holds { if_true } else { if_false });
            // linux/bpf_common.h
            at += 1 + match code {
                0x20 => {
                    accumulator = u32::from_ne_bytes(data[k as usize..][..4].try_into().unwrap());
                    0
                }
                0x54 => {
                    accumulator &= k;
                    0
                }
                0x05 => k as usize,
                0x15 => jump(accumulator == k),
                0x25 => jump(accumulator > k),
                0x35 => jump(accumulator >= k),
                0x45 => jump(accumulator & k != 0),
                0x06 => return k,
                _ => panic!("instruction {code:#x}"),
            };
        }
    }
}
