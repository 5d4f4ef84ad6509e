//! Parses sizes as people write them, for `mount_spec` and the command line of the crate `runner`.

/// Parses a size: a number of bytes, or a number with `k`, `m`, `g` or `t` for powers of 1,024,
/// such as `64m`. `64MiB` is the same.
///
/// # Errors
/// The problem, and what to write instead.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = lower.split_at(digits);
    let shift = match unit {
        "" | "b" => Some(0),
        "k" | "kb" | "kib" => Some(10),
        "m" | "mb" | "mib" => Some(20),
        "g" | "gb" | "gib" => Some(30),
        "t" | "tb" | "tib" => Some(40),
        _ => None,
    };
    match (number.parse::<u64>(), shift) {
        (Ok(number), Some(shift)) => {
            number.checked_mul(1 << shift).ok_or_else(|| format!("{text:?} needs more than 64 bits"))
        }
        _ => Err(format!("{text:?} is not a size: write a number of bytes, or a number with k, m, g or t, as in 64m")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_and_without_a_unit() {
        let table = [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("64m", Some(64 << 20)),
            ("2G", Some(2 << 30)),
            ("1KiB", Some(1024)),
            ("16777216t", None),
            ("", None),
            ("m", None),
            ("-1", None),
            ("1.5g", None),
            ("1x", None),
        ];
        for (text, bytes) in table {
            assert_eq!(parse_size(text).ok(), bytes, "{text:?}");
        }
    }
}
