//! Layers and images in registries (feature `registry`).
//!
//! A [`Registry`] is a connection to one repository. [`Push`] writes layers of a store there, and
//! [`Pull`] makes layers of a store from it. An [`Import`](super::Import) reads images, and an
//! [`Export`](super::Export) writes them.
//!
//! # Trust
//! Neither the registry nor the network is trusted. Every manifest and blob is read with a limit,
//! and compared with its digest before any part of it gets its name. A login goes to the origin of
//! the registry and to the token server that the registry names, and never over a connection
//! without TLS, unless the registry is on this machine or the caller asks for it.
//!
//! # Errors
//! A request that can succeed later is repeated a few times. After that,
//! [`Error::is_temporary`](super::Error::is_temporary) returns whether a scheduler should try
//! again.
//!
//! # Example
//! ```no_run
//! use layer::oci::registry::{Options, Pull, Push, Registry, Wanted};
//!
//! let registry = Registry::open(&"docker://registry.example/farm".parse()?, &Options::default());
//! let store = layer::Store::open("/var/cache/layers")?;
//! for pushed in Push::new(&registry).run(&[store.layer("gcc")?, store.layer("libc6-dev")?]) {
//!     println!("{}", pushed?.manifest);
//! }
//! let other = layer::Store::open("/srv/layers")?;
//! for pulled in Pull::new(&registry).run(&other, &[Wanted::new("gcc")?]) {
//!     println!("{}", pulled?.layer.path().display());
//! }
//! # Ok::<(), layer::oci::Error>(())
//! ```

mod address;
mod blob;
mod cancel;
mod challenge;
mod form;
mod http;
mod jobs;
mod local;
mod login;
mod manifest;
mod name_lock;
mod pins;
mod problem;
mod pull;
mod push;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ureq::tls::{RootCerts, TlsConfig, TlsProvider};

pub use self::cancel::Cancel;
pub use self::local::Local;
pub use self::pins::Pins;
pub use self::problem::RegistryProblem;
pub use self::pull::{Pull, Pulled, Wanted};
pub use self::push::{Push, Pushed};
use super::error::Error;
use super::reference::Repository;

pub(crate) use self::blob::{BlobReader, Failure, take};
pub(crate) use self::manifest::Manifest;

/// The default of [`Options::retries`].
const RETRIES: u32 = 4;

/// The default of [`Options::timeout`].
const TIMEOUT: Duration = Duration::from_secs(120);

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// Whether connections have no TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PlainHttp {
    /// Connections to this machine have no TLS. All others have it.
    #[default]
    Loopback,
    /// No connection has TLS.
    Always,
    /// All connections have TLS.
    Never,
}

/// How a registry is used.
///
/// ```
/// use layer::oci::registry::{Options, PlainHttp};
///
/// let options = Options::default().plain_http(PlainHttp::Always).retries(0);
/// # let _ = options;
/// ```
#[derive(Debug, Clone)]
pub struct Options {
    plain_http: PlainHttp,
    retries: u32,
    timeout: Duration,
    cancel: Cancel,
}

impl Default for Options {
    fn default() -> Self {
        Self { plain_http: PlainHttp::default(), retries: RETRIES, timeout: TIMEOUT, cancel: Cancel::default() }
    }
}

impl Options {
    /// Decides whether connections have TLS.
    pub fn plain_http(mut self, plain_http: PlainHttp) -> Self {
        self.plain_http = plain_http;
        self
    }

    /// Sets how often a failed request is repeated if it can succeed later. The default is 4, with
    /// pauses that double from a quarter of a second. A registry can ask for longer pauses.
    pub fn retries(mut self, retries: u32) -> Self {
        self.retries = retries;
        self
    }

    /// Sets how long the registry may neither send nor accept data. The default is two minutes.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Lets `cancel` end all operations.
    pub fn cancel(mut self, cancel: &Cancel) -> Self {
        self.cancel = cancel.clone();
        self
    }
}

/// The access to the repository that a request needs. A token is made for one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Access {
    Pull,
    Push,
}

/// A connection to a repository in a registry. Several threads can use it.
#[derive(Debug)]
pub struct Registry {
    repository: Repository,
    agent: ureq::Agent,
    /// The address of the registry's host, without a path.
    origin: String,
    plain_http: PlainHttp,
    retries: u32,
    cancel: Cancel,
    /// The header that the registry accepted last, by access.
    authorizations: Mutex<HashMap<Access, String>>,
}

impl Registry {
    /// Returns a connection to `repository`. Connects with the first request.
    ///
    /// Proxies are those of the environment (`HTTPS_PROXY`, `NO_PROXY`), but for a registry on this
    /// machine. The certificates are those of the system (or `SSL_CERT_FILE`).
    pub fn open(repository: &Repository, options: &Options) -> Arc<Self> {
        let is_plain = address::may_be_plain(repository.registry(), options.plain_http);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(RootCerts::PlatformVerifier)
            .unversioned_rustls_crypto_provider(provider)
            .build();
        let mut config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            // A redirect decides about the login, too.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .https_only(!is_plain)
            .tls_config(tls)
            .user_agent(concat!("layered/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_resolve(Some(CONNECT_TIMEOUT))
            .timeout_per_read(Some(options.timeout))
            .timeout_per_write(Some(options.timeout))
            .input_buffer_size(128 * 1024)
            .output_buffer_size(128 * 1024);
        if repository.is_loopback() {
            config = config.proxy(None);
        }
        let agent = config.build().new_agent();
        options.cancel.add(&agent);
        let scheme = if is_plain { "http" } else { "https" };
        Arc::new(Self {
            origin: format!("{scheme}://{}", repository.host()),
            repository: repository.clone(),
            agent,
            plain_http: options.plain_http,
            retries: options.retries,
            cancel: options.cancel.clone(),
            authorizations: Mutex::default(),
        })
    }

    /// Returns the repository.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Returns the error about an operation on `place`, a part of the repository.
    pub(crate) fn failed(
        &self,
        operation: &'static str,
        place: impl ToString,
    ) -> impl FnOnce(RegistryProblem) -> Error {
        let place = place.to_string();
        move |problem| match problem {
            RegistryProblem::Cancelled => Error::Cancelled,
            problem => Error::Registry { operation, place, problem },
        }
    }

    /// Returns an error if the operation was cancelled.
    pub(crate) fn check_cancelled(&self) -> Result<(), Error> {
        if self.cancel.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }
}
