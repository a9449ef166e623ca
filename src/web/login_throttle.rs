//! How many logins may fail: from one address, and in all.
//!
//! Counts start anew every minute. At most [`OF_ALL`] failures are counted in it, so no more addresses than that are remembered.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use tokio::time::Instant;

/// Logins from one address that may fail within [`WINDOW`].
const OF_ONE: u32 = 10;
/// … and from all addresses.
const OF_ALL: u32 = 1_000;
/// See [`OF_ONE`].
const WINDOW: Duration = Duration::from_secs(60);
/// A host of IPv6 can use every address of its /64.
const NETWORK: u128 = !0 << 64;

/// The failed logins of this minute.
pub struct LoginThrottle {
    since: Instant,
    by_peer: BTreeMap<IpAddr, u32>,
    all: u32,
}

impl LoginThrottle {
    /// Without failures.
    pub fn new(now: Instant) -> Self {
        Self {
            since: now,
            by_peer: BTreeMap::new(),
            all: 0,
        }
    }

    /// Whether this peer may try another login.
    pub fn allow(&mut self, peer: IpAddr, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) > WINDOW {
            *self = Self::new(now);
        }
        let own = self.by_peer.get(&network(peer)).copied().unwrap_or(0);
        own < OF_ONE && self.all < OF_ALL
    }

    /// Counts a failed login that [`Self::allow`] had let through.
    pub fn count(&mut self, peer: IpAddr) {
        *self.by_peer.entry(network(peer)).or_default() += 1;
        self.all += 1;
    }
}

/// The address, or of IPv6 its /64.
pub fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & NETWORK)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn fails(throttle: &mut LoginThrottle, peer: &str, times: u32, now: Instant) {
        for _ in 0..times {
            assert!(throttle.allow(address(peer), now), "{peer}");
            throttle.count(address(peer));
        }
    }

    #[test]
    fn an_address_with_ten_failures_waits_for_the_next_minute_and_no_other_does() {
        let now = Instant::now();
        let mut throttle = LoginThrottle::new(now);
        fails(&mut throttle, "192.0.2.1", OF_ONE, now);
        assert!(!throttle.allow(address("192.0.2.1"), now + WINDOW));
        assert!(throttle.allow(address("192.0.2.2"), now));
        let later = now + WINDOW + Duration::from_millis(1);
        assert!(throttle.allow(address("192.0.2.1"), later));
    }

    #[test]
    fn an_address_is_the_same_in_both_notations_and_an_ipv6_network_counts_as_one() {
        let now = Instant::now();
        let mut throttle = LoginThrottle::new(now);
        fails(&mut throttle, "::ffff:192.0.2.1", OF_ONE, now);
        assert!(!throttle.allow(address("192.0.2.1"), now));
        fails(&mut throttle, "2001:db8:0:1::1", OF_ONE, now);
        assert!(!throttle.allow(address("2001:db8:0:1:ffff::2"), now));
        assert!(throttle.allow(address("2001:db8:0:2::1"), now));
    }

    #[test]
    fn all_addresses_together_have_a_limit_and_so_has_the_memory_for_them() {
        let now = Instant::now();
        let mut throttle = LoginThrottle::new(now);
        for n in 0..2 * OF_ALL {
            let peer = IpAddr::V4((0x0a00_0000 + n).into());
            if throttle.allow(peer, now) {
                throttle.count(peer);
            }
        }
        assert_eq!(throttle.all, OF_ALL);
        assert!(throttle.by_peer.len() <= usize::try_from(OF_ALL).unwrap());
        assert!(!throttle.allow(address("192.0.2.1"), now));
    }
}
