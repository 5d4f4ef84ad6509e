//! Reads and writes blobs. A blob that breaks off is continued where it ended.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use ureq::BodyReader;
use ureq::http::Method;
use ureq::http::header::RANGE;

use super::address::resolve;
use super::http::{Content, Request, location_of};
use super::problem::{RegistryProblem, of_io};
use super::{Access, Registry};
use crate::oci::digest::{Digest, Hashing};
use crate::oci::error::{Error, Result};
use crate::oci::layout_writer::Written;

/// The media type of the bytes of a blob.
const BYTES: &str = "application/octet-stream";

/// A blob in a file, on its way to a registry.
pub(super) struct FileContent<'a> {
    pub(super) file: &'a File,
    pub(super) size: u64,
    /// Called with the number of bytes that were sent since the last call.
    pub(super) sent: &'a (dyn Fn(u64) + Sync),
}

impl Content for FileContent<'_> {
    fn size(&self) -> u64 {
        self.size
    }

    fn reader(&self) -> Box<dyn Read + '_> {
        struct Reader<'a> {
            content: &'a FileContent<'a>,
            offset: u64,
        }
        impl Read for Reader<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let read = self.content.file.read_at(buffer, self.offset)?;
                self.offset += read as u64;
                (self.content.sent)(read as u64);
                Ok(read)
            }
        }
        Box::new(Reader { content: self, offset: 0 })
    }
}

impl Registry {
    /// Returns whether the repository has a blob.
    pub(crate) fn has_blob(&self, digest: Digest) -> Result<bool> {
        let request = Request::new(Method::HEAD, self.url(&format!("blobs/{digest}")), Access::Push);
        let found = self.retrying(|| Ok(self.expect(&request, &[200, 404])?.status() == 200));
        found.map_err(self.failed("look for", self.place(&digest.to_string())))
    }

    /// Writes a blob, unless the repository has it. Returns whether it was sent.
    pub(crate) fn put_blob(&self, digest: Digest, content: &dyn Content) -> Result<bool> {
        if self.has_blob(digest)? {
            return Ok(false);
        }
        let begin = self.url("blobs/uploads/");
        let written = self.retrying(|| {
            let request = Request::new(Method::POST, &*begin, Access::Push);
            let response = self.expect(&request, &[202])?;
            let location = resolve(&begin, &location_of(&response)?, self.plain_http)?;
            let separator = if location.contains('?') { '&' } else { '?' };
            let address = format!("{location}{separator}digest=sha256%3A{}", digest.hex());
            let request = Request::new(Method::PUT, address, Access::Push).content(BYTES, content);
            self.expect(&request, &[201, 204]).map(drop)
        });
        written.map_err(self.failed("write", self.place(&digest.to_string())))?;
        Ok(true)
    }

    /// Writes a blob by `write` into a file without a name, and sends it. Returns what `write`
    /// returned.
    pub(crate) fn written_blob<T>(&self, write: impl FnOnce(&mut dyn Write) -> Result<T>) -> Result<(Written, T)> {
        self.check_cancelled()?;
        let dir = std::env::temp_dir();
        let file = tempfile::tempfile_in(&dir).map_err(Error::io("make a temporary file in", &dir))?;
        let mut out = Hashing::new(BufWriter::with_capacity(128 * 1024, Cancellable { registry: self, out: &file }));
        let written = write(&mut out);
        self.check_cancelled()?;
        let written = written?;
        out.flush().map_err(Error::io("write a temporary file in", &dir))?;
        let (_, digest, size) = out.finish();
        self.put_blob(digest, &FileContent { file: &file, size, sent: &|_| {} })?;
        Ok((Written { digest, size }, written))
    }

    /// Reads a blob of at most `max_bytes` bytes, and checks its size and digest.
    pub(crate) fn small_blob(self: &Arc<Self>, digest: Digest, size: u64, max_bytes: u64) -> Result<Vec<u8>> {
        let place = || self.place(&digest.to_string());
        if size > max_bytes {
            return Err(self.failed("read", place())(RegistryProblem::AnswerTooLarge { max_bytes }));
        }
        let mut reader = BlobReader::new(self, digest, size);
        let failure = reader.failure();
        let mut bytes = Vec::new();
        let read = reader.by_ref().take(size + 1).read_to_end(&mut bytes);
        if let Some(error) = take(&failure) {
            return Err(error);
        }
        read.map_err(Error::io("read", place()))?;
        let found = bytes.len() as u64;
        if found != size {
            return Err(Error::WrongSize { path: place().into(), digest, expected: size, found });
        }
        let found = Digest::of(&bytes);
        if found != digest {
            return Err(Error::WrongDigest { path: place().into(), expected: digest, found });
        }
        Ok(bytes)
    }
}

/// A writer that fails once the operation is cancelled.
pub(super) struct Cancellable<'a, W> {
    pub(super) registry: &'a Registry,
    pub(super) out: W,
}

impl<W: Write> Write for Cancellable<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.registry.cancel.is_cancelled() {
            true => Err(io::Error::other("cancelled")),
            false => self.out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// The error that has ended a [`BlobReader`]. An [`io::Error`] cannot say whether it is temporary.
pub(crate) type Failure = Arc<Mutex<Option<Error>>>;

/// Takes the error out of a failure.
pub(crate) fn take(failure: &Failure) -> Option<Error> {
    failure.lock().unwrap_or_else(PoisonError::into_inner).take()
}

/// Reads a blob. Checks neither its digest nor that it ends.
pub(crate) struct BlobReader {
    registry: Arc<Registry>,
    digest: Digest,
    size: u64,
    offset: u64,
    body: Option<BodyReader<'static>>,
    attempts: u32,
    failure: Failure,
}

impl BlobReader {
    pub(crate) fn new(registry: &Arc<Registry>, digest: Digest, size: u64) -> Self {
        let registry = Arc::clone(registry);
        Self { registry, digest, size, offset: 0, body: None, attempts: 0, failure: Failure::default() }
    }

    /// Returns where the error is kept that ends the reader.
    pub(crate) fn failure(&self) -> Failure {
        Arc::clone(&self.failure)
    }

    /// Lets the error that ends the reader be kept in `failure`.
    pub(crate) fn failing_into(mut self, failure: &Failure) -> Self {
        self.failure = Arc::clone(failure);
        self
    }

    fn try_read(&mut self, buffer: &mut [u8]) -> Result<usize, RegistryProblem> {
        if self.body.is_none() {
            // All bytes are here: there is nothing to ask for.
            if self.offset >= self.size {
                return Ok(0);
            }
            self.body = Some(self.open()?);
        }
        let Some(body) = &mut self.body else { return Ok(0) };
        let read = match body.read(buffer) {
            // The digest decides whether these are the right bytes.
            Err(_) if self.offset >= self.size => 0,
            read => read.map_err(of_io)?,
        };
        if read == 0 && self.offset < self.size && !buffer.is_empty() {
            return Err(RegistryProblem::Connection(io::ErrorKind::UnexpectedEof.into()));
        }
        self.offset += read as u64;
        Ok(read)
    }

    /// Requests what is left of the blob.
    fn open(&self) -> Result<BodyReader<'static>, RegistryProblem> {
        let url = self.registry.url(&format!("blobs/{}", self.digest));
        let mut request = Request::new(Method::GET, url, Access::Pull);
        if self.offset > 0 {
            request = request.header(RANGE, format!("bytes={}-", self.offset));
        }
        let response = self.registry.expect(&request, &[200, 206])?;
        let is_part = response.status() == 206;
        let begins = response.headers().get("content-range").and_then(|value| value.to_str().ok());
        let begin = format!("bytes {}-", self.offset);
        if is_part && !begins.is_some_and(|range| range.starts_with(&begin)) {
            return Err(RegistryProblem::Answer("it is another part of the blob".into()));
        }
        let (length, left) = (response.body().content_length(), self.size - if is_part { self.offset } else { 0 });
        if let Some(length) = length.filter(|length| *length != left) {
            return Err(RegistryProblem::Answer(format!("the blob has {length} bytes instead of {left}")));
        }
        let mut body = response.into_body().into_with_config().limit(u64::MAX).reader();
        if !is_part && self.offset > 0 {
            // The server has no parts and begins at the start.
            let skipped = io::copy(&mut body.by_ref().take(self.offset), &mut io::sink()).map_err(of_io)?;
            if skipped < self.offset {
                return Err(RegistryProblem::Connection(io::ErrorKind::UnexpectedEof.into()));
            }
        }
        Ok(body)
    }

    fn fail(&self, problem: RegistryProblem) -> io::Error {
        let place = self.registry.place(&self.digest.to_string());
        let message = problem.to_string();
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) =
            Some(self.registry.failed("read", place)(problem));
        io::Error::other(message)
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if self.registry.cancel.is_cancelled() {
                return Err(self.fail(RegistryProblem::Cancelled));
            }
            let before = self.offset;
            match self.try_read(buffer) {
                Ok(read) => {
                    // A blob that goes on may break off again.
                    self.attempts = if self.offset > before { 0 } else { self.attempts };
                    return Ok(read);
                }
                Err(problem) if problem.is_temporary() && self.attempts < self.registry.retries() => {
                    self.body = None;
                    self.registry.pause(self.attempts, &problem);
                    self.attempts += 1;
                }
                Err(_) if self.registry.cancel.is_cancelled() => return Err(self.fail(RegistryProblem::Cancelled)),
                Err(problem) => return Err(self.fail(problem)),
            }
        }
    }
}
