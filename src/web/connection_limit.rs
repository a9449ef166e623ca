//! How many connections are served at once: in all, and of one address.
//!
//! The limit of an address leaves connections for others while one peer holds on to as many as it gets.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::api::LISTENERS_MAX;
use super::login_throttle::network;

/// Connections at once.
pub const CONNECTIONS_MAX: usize = 512;
/// … of one IPv4 address or IPv6 network.
pub const CONNECTIONS_PER_ADDRESS: usize = 48;
const _: () = assert!(
    LISTENERS_MAX < CONNECTIONS_PER_ADDRESS,
    "a proxy, which has one address, passes all event streams and other requests"
);

/// Counts the connections; each returns its permit when it ends.
pub struct ConnectionLimit {
    all: Arc<Semaphore>,
    by_address: BTreeMap<IpAddr, Arc<Semaphore>>,
}

impl Default for ConnectionLimit {
    fn default() -> Self {
        Self {
            all: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
            by_address: BTreeMap::new(),
        }
    }
}

impl ConnectionLimit {
    /// A permit for one more connection, if there is one.
    pub fn admit(&mut self, peer: IpAddr) -> Option<[OwnedSemaphorePermit; 2]> {
        self.by_address
            .retain(|_, permits| permits.available_permits() < CONNECTIONS_PER_ADDRESS);
        let of_address = self
            .by_address
            .entry(network(peer))
            .or_insert_with(|| Arc::new(Semaphore::new(CONNECTIONS_PER_ADDRESS)));
        let of_address = Arc::clone(of_address).try_acquire_owned().ok()?;
        let of_all = Arc::clone(&self.all).try_acquire_owned().ok()?;
        Some([of_address, of_all])
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn address(number: usize) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from(u32::try_from(number).unwrap()))
    }

    #[test]
    fn one_address_gets_its_share_and_leaves_the_rest_to_others() {
        let mut limit = ConnectionLimit::default();
        let mut permits: Vec<_> = (0..CONNECTIONS_PER_ADDRESS)
            .map(|_| limit.admit(address(1)).unwrap())
            .collect();
        assert!(limit.admit(address(1)).is_none());
        assert!(limit.admit(address(2)).is_some());
        permits.pop();
        assert!(limit.admit(address(1)).is_some());
    }

    #[test]
    fn there_is_a_limit_for_all_addresses_and_those_without_connections_are_forgotten() {
        let mut limit = ConnectionLimit::default();
        let permits: Vec<_> = (0..2 * CONNECTIONS_MAX)
            .filter_map(|number| limit.admit(address(number)))
            .collect();
        assert_eq!(permits.len(), CONNECTIONS_MAX);
        drop(permits);
        assert!(limit.admit(address(1)).is_some());
        assert_eq!(limit.by_address.len(), 1);
    }
}
