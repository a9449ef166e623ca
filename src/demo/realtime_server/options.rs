//! How the server is to run.

use std::{net::SocketAddr, time::Duration};

use crate::domain::secret::Secret;

/// Where the server listens, which database it reads, and which keys it accepts.
#[derive(Clone)]
pub struct RealtimeOptions {
    /// Where to listen; port 0 is any free one.
    pub listen: SocketAddr,
    /// The database, as a superuser or a role with `REPLICATION`; `wal_level` must be `logical`.
    pub database_url: Secret,
    /// The secret of the keys and tokens that are JWTs.
    pub jwt_secret: Secret,
    /// Opaque keys (`sb_secret_…`) that count as `service_role`.
    pub extra_keys: Vec<Secret>,
    /// Bounds and times.
    pub limits: RealtimeLimits,
}

/// Bounds and times that only tests have a reason to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RealtimeLimits {
    /// Clients at once: the real server's `max_concurrent_users`.
    pub clients: usize,
    /// Channels of one client: the real server's `max_channels_per_client`.
    pub channels: usize,
    /// A client that sends nothing for this long is closed.
    pub idle_timeout: Duration,
    /// A client that reads nothing for this long is dropped.
    pub send_timeout: Duration,
    /// How often the published tables are checked for changes.
    pub publication_check: Duration,
    /// How long a connection with an opaque key may last; 24 h on Supabase.
    pub opaque_key_life: Duration,
    /// How often messages that are older than three days are deleted; the real server drops a day's partition.
    pub cleaning: Duration,
}

impl RealtimeOptions {
    /// The demo's options.
    pub fn new(listen: SocketAddr, database_url: impl Into<String>, jwt_secret: Secret) -> Self {
        Self {
            listen,
            database_url: Secret::new(database_url),
            jwt_secret,
            extra_keys: Vec::new(),
            limits: RealtimeLimits::default(),
        }
    }
}

impl Default for RealtimeLimits {
    fn default() -> Self {
        Self {
            clients: 200,
            channels: 100,
            idle_timeout: Duration::from_mins(1),
            send_timeout: Duration::from_secs(30),
            publication_check: Duration::from_mins(1),
            opaque_key_life: Duration::from_hours(24),
            cleaning: Duration::from_hours(24),
        }
    }
}
