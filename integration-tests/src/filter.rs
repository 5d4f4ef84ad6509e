//! Evaluates seccomp filters as the kernel would. The tests of module `filter` compare filters with
//! it.

/// A classic BPF program over `struct seccomp_data` (seccomp(2)).
#[derive(Debug, Clone)]
pub struct Filter(Vec<(u16, u8, u8, u32)>);

/// A system call: its ABI, number and arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    /// The ABI: an `AUDIT_ARCH_…` constant of linux/audit.h.
    pub abi: u32,
    /// The number of the call.
    pub number: u32,
    /// The arguments of the call.
    pub arguments: [u64; 6],
}

impl Filter {
    /// Reads a filter from a sequence of `struct sock_filter`.
    ///
    /// # Panics
    /// If the bytes are empty or end within an instruction.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        assert!(!bytes.is_empty() && bytes.len() % 8 == 0);
        let instruction = |bytes: &[u8]| {
            let code = u16::from_ne_bytes(bytes[..2].try_into().unwrap());
            (code, bytes[2], bytes[3], u32::from_ne_bytes(bytes[4..].try_into().unwrap()))
        };
        Self(bytes.chunks(8).map(instruction).collect())
    }

    /// Returns the number of instructions.
    pub fn length(&self) -> usize {
        self.0.len()
    }

    /// Returns the filter's result for a call: a `SECCOMP_RET_…` constant of linux/seccomp.h, with
    /// the error in the low bits of `SECCOMP_RET_ERRNO`.
    ///
    /// # Panics
    /// If the filter does not end with a return, or has an instruction that no known filter uses.
    pub fn answer(&self, call: &Call) -> u32 {
        let mut data = [0; 64];
        data[..4].copy_from_slice(&call.number.to_ne_bytes());
        data[4..8].copy_from_slice(&call.abi.to_ne_bytes());
        for (place, argument) in data[16..].chunks_mut(8).zip(call.arguments) {
            place.copy_from_slice(&argument.to_ne_bytes());
        }
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let (code, if_true, if_false, k) = self.0[at];
            let jump = |holds: bool| usize::from(if holds { if_true } else { if_false });
            // The instruction codes are from linux/bpf_common.h.
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
