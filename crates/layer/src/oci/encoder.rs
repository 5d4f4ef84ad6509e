//! Compresses the layers of an export: the same bytes for the same archive. `compression.rs` is the
//! way back.

use std::io::{self, Write};

use zstd::zstd_safe::CParameter;

use super::compression::Compression;

/// The levels of compression: that of gzip(1), and that of zstd(1).
const GZIP_LEVEL: u32 = 6;
const ZSTD_LEVEL: i32 = 3;

/// The number of threads of zstd. Its output is the same for every number except zero.
const ZSTD_THREADS: u32 = 2;

/// The bytes that a thread of zstd compresses at a time. zstd holds about eight times this amount
/// in memory. By default, it would choose 8 MiB. With 1 MiB, the archive of a Debian system is 0.7
/// % larger than with 1.5 MiB, and the two threads hold 12.6 MB instead of 17.2 MB. Its output
/// depends on this number.
const ZSTD_JOB_BYTES: u32 = 1 << 20;

/// The size of the blocks that a compressor gets. Its output depends on them.
const BLOCK_BYTES: usize = 128 * 1024;

/// A writer that compresses.
pub(crate) struct Encoder<'a> {
    compressor: Compressor<'a>,
    /// What does not fill a block yet.
    block: Vec<u8>,
}

enum Compressor<'a> {
    None(&'a mut dyn Write),
    Gzip(flate2::write::GzEncoder<&'a mut dyn Write>),
    Zstd(zstd::stream::write::Encoder<'static, &'a mut dyn Write>),
}

impl<'a> Encoder<'a> {
    pub(crate) fn new(compression: Compression, out: &'a mut dyn Write) -> io::Result<Self> {
        let compressor = match compression {
            Compression::None => Compressor::None(out),
            Compression::Gzip => {
                // Neither a time nor a system gets into the header.
                let header = flate2::GzBuilder::new().mtime(0).operating_system(255);
                Compressor::Gzip(header.write(out, flate2::Compression::new(GZIP_LEVEL)))
            }
            Compression::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(out, ZSTD_LEVEL)?;
                encoder.multithread(ZSTD_THREADS)?;
                encoder.set_parameter(CParameter::JobSize(ZSTD_JOB_BYTES))?;
                encoder.include_checksum(true)?;
                Compressor::Zstd(encoder)
            }
        };
        Ok(Self { compressor, block: Vec::with_capacity(BLOCK_BYTES) })
    }

    /// Writes everything that is left.
    pub(crate) fn finish(mut self) -> io::Result<()> {
        self.write_block()?;
        match self.compressor {
            Compressor::None(out) => out.flush(),
            Compressor::Gzip(encoder) => encoder.finish().map(drop),
            Compressor::Zstd(encoder) => encoder.finish().map(drop),
        }
    }

    fn write_block(&mut self) -> io::Result<()> {
        match &mut self.compressor {
            Compressor::None(out) => out.write_all(&self.block),
            Compressor::Gzip(encoder) => encoder.write_all(&self.block),
            Compressor::Zstd(encoder) => encoder.write_all(&self.block),
        }?;
        self.block.clear();
        Ok(())
    }
}

impl Write for Encoder<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(BLOCK_BYTES - self.block.len());
        self.block.extend_from_slice(&bytes[..length]);
        if self.block.len() == BLOCK_BYTES {
            self.write_block()?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        // A flush would end a block. `finish` writes everything.
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::compression::Decoder;

    #[test]
    fn equal_archives_are_compressed_to_equal_bytes() {
        let text = b"some text ".repeat(200_000);
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            // The sizes of the writes must not show.
            let [one, other] = [1 << 20, 777].map(|size| {
                let mut bytes = Vec::new();
                let mut encoder = Encoder::new(compression, &mut bytes).unwrap();
                text.chunks(size).for_each(|part| encoder.write_all(part).unwrap());
                encoder.finish().unwrap();
                bytes
            });
            assert!(one == other, "{compression:?}");
            let mut read = Vec::new();
            io::Read::read_to_end(&mut Decoder::new(compression, &*one).unwrap(), &mut read).unwrap();
            assert!(read == text, "{compression:?}");
        }
    }
}
