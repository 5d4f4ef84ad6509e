//! Which compression a layer has, and how it is undone. The first bytes decide, because the media
//! types that programs write are not always right; digests decide whether the bytes are.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};

use flate2::bufread::MultiGzDecoder;

/// The compression of a layer in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Compression {
    /// None.
    None,
    /// gzip, which every program can read.
    #[default]
    Gzip,
    /// zstd, which is faster in both directions; programs before 2020 cannot read it.
    Zstd,
}

impl Compression {
    /// Returns the media type of a layer with this compression.
    pub(crate) fn media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// Some bytes that were read to find out what they are, and the rest.
pub(crate) type Begun<R> = Chain<Cursor<Vec<u8>>, R>;

/// The meaning of the first bytes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detected {
    Known(Compression),
    /// A compression that layered cannot undo, by the name of its program.
    Unknown(&'static str),
}

/// Reads the first bytes of `reader`, and returns what they are, with a reader of everything.
pub(crate) fn detect<R: Read>(mut reader: R) -> io::Result<(Detected, Begun<R>)> {
    let mut first = Vec::new();
    reader.by_ref().take(6).read_to_end(&mut first)?;
    Ok((of(&first), Cursor::new(first).chain(reader)))
}

fn of(first: &[u8]) -> Detected {
    match first {
        [0x1f, 0x8b, ..] => Detected::Known(Compression::Gzip),
        // A frame, or a frame that decoders skip.
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Detected::Known(Compression::Zstd),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => Detected::Unknown("xz"),
        [b'B', b'Z', b'h', ..] => Detected::Unknown("bzip2"),
        _ => Detected::Known(Compression::None),
    }
}

/// A reader that undoes a compression.
pub(crate) enum Decoder<R: Read> {
    None(R),
    Gzip(Box<MultiGzDecoder<BufReader<R>>>),
    Zstd(zstd::stream::read::Decoder<'static, BufReader<R>>),
}

impl<R: Read> Decoder<R> {
    pub(crate) fn new(compression: Compression, reader: R) -> io::Result<Self> {
        let buffered = |reader| BufReader::with_capacity(64 * 1024, reader);
        Ok(match compression {
            Compression::None => Self::None(reader),
            Compression::Gzip => Self::Gzip(Box::new(MultiGzDecoder::new(buffered(reader)))),
            Compression::Zstd => Self::Zstd(zstd::stream::read::Decoder::with_buffer(buffered(reader))?),
        })
    }

    /// Reads the compressed bytes that the decoder has left, so that a digest of them is complete.
    pub(crate) fn finish(self) -> io::Result<()> {
        let rest = match self {
            Self::None(mut reader) => return io::copy(&mut reader, &mut io::sink()).map(drop),
            Self::Gzip(decoder) => decoder.into_inner(),
            Self::Zstd(decoder) => decoder.finish(),
        };
        let mut rest = rest;
        while !rest.fill_buf()?.is_empty() {
            let length = rest.buffer().len();
            rest.consume(length);
        }
        Ok(())
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::None(reader) => reader.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer),
            Self::Zstd(decoder) => decoder.read(buffer),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_decide() {
        use Compression::{Gzip, None, Zstd};
        for (first, expected) in [
            (&b""[..], Detected::Known(None)),
            (b"a", Detected::Known(None)),
            (b"usr/\0\0", Detected::Known(None)),
            (b"\x1f\x8b\x08", Detected::Known(Gzip)),
            (b"\x28\xb5\x2f\xfd", Detected::Known(Zstd)),
            (b"\x50\x2a\x4d\x18", Detected::Known(Zstd)),
            (b"\xfd7zXZ\0", Detected::Unknown("xz")),
            (b"BZh9", Detected::Unknown("bzip2")),
        ] {
            let (detected, mut all) = detect(first).unwrap();
            let mut read = Vec::new();
            all.read_to_end(&mut read).unwrap();
            assert_eq!((detected, &*read), (expected, first));
        }
    }

    #[test]
    fn a_compression_is_undone_to_its_end() {
        let text = b"some text ".repeat(100_000);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        io::copy(&mut &text[..], &mut gzip).unwrap();
        let compressed = [
            (Compression::None, text.clone()),
            (Compression::Gzip, gzip.finish().unwrap()),
            (Compression::Zstd, zstd::encode_all(&text[..], 3).unwrap()),
        ];
        for (compression, bytes) in compressed {
            let mut rest = &*bytes;
            let mut decoder = Decoder::new(compression, &mut rest).unwrap();
            let mut read = Vec::new();
            decoder.read_to_end(&mut read).unwrap();
            assert!(read == text, "{compression:?}");
            decoder.finish().unwrap();
            assert!(rest.is_empty());

            if compression != Compression::None {
                let cut = &bytes[..bytes.len() / 2];
                let error = Decoder::new(compression, cut).unwrap().read_to_end(&mut Vec::new()).unwrap_err();
                assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{compression:?}");
            }
        }
    }
}
