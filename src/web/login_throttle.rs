//! How many logins may fail: of one address, and of all together.
//!
//! One minute is counted after another. All together may fail [`OF_ALL`] times in it, so no more addresses than that are ever
//! remembered.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use tokio::time::Instant;

/// Logins of one address that may fail within [`WITHIN`].
const OF_ONE: u32 = 10;
/// … and of all addresses.
const OF_ALL: u32 = 1_000;
/// See [`OF_ONE`].
const WITHIN: Duration = Duration::from_secs(60);
/// Who has one address of IPv6 has all that begin with these bits.
const NETWORK: u128 = !0 << 64;

/// The logins that failed in this minute.
pub struct Failures {
    since: Instant,
    by_peer: BTreeMap<IpAddr, u32>,
    all: u32,
}

impl Failures {
    /// None yet.
    pub fn new(now: Instant) -> Self {
        Self {
            since: now,
            by_peer: BTreeMap::new(),
            all: 0,
        }
    }

    /// Whether this peer may try another login.
    pub fn allow(&mut self, peer: IpAddr, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) > WITHIN {
            *self = Self::new(now);
        }
        let own = self.by_peer.get(&network(peer)).copied().unwrap_or(0);
        own < OF_ONE && self.all < OF_ALL
    }

    /// A login that [`Self::allow`] let through has failed.
    pub fn count(&mut self, peer: IpAddr) {
        *self.by_peer.entry(network(peer)).or_default() += 1;
        self.all += 1;
    }
}

fn network(peer: IpAddr) -> IpAddr {
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

    fn fails(failures: &mut Failures, peer: &str, times: u32, now: Instant) {
        for _ in 0..times {
            assert!(failures.allow(address(peer), now), "{peer}");
            failures.count(address(peer));
        }
    }

    #[test]
    fn who_fails_ten_times_waits_for_the_next_minute_and_nobody_else_does() {
        let now = Instant::now();
        let mut failures = Failures::new(now);
        fails(&mut failures, "192.0.2.1", OF_ONE, now);
        assert!(!failures.allow(address("192.0.2.1"), now + WITHIN));
        assert!(failures.allow(address("192.0.2.2"), now));
        let later = now + WITHIN + Duration::from_millis(1);
        assert!(failures.allow(address("192.0.2.1"), later));
    }

    #[test]
    fn an_address_is_the_same_however_it_is_written_and_one_of_ipv6_is_its_whole_network() {
        let now = Instant::now();
        let mut failures = Failures::new(now);
        fails(&mut failures, "::ffff:192.0.2.1", OF_ONE, now);
        assert!(!failures.allow(address("192.0.2.1"), now));
        fails(&mut failures, "2001:db8:0:1::1", OF_ONE, now);
        assert!(!failures.allow(address("2001:db8:0:1:ffff::2"), now));
        assert!(failures.allow(address("2001:db8:0:2::1"), now));
    }

    #[test]
    fn all_together_have_a_bound_and_so_has_what_is_remembered() {
        let now = Instant::now();
        let mut failures = Failures::new(now);
        for n in 0..2 * OF_ALL {
            let peer = IpAddr::V4((0x0a00_0000 + n).into());
            if failures.allow(peer, now) {
                failures.count(peer);
            }
        }
        assert_eq!(failures.all, OF_ALL);
        assert!(failures.by_peer.len() <= usize::try_from(OF_ALL).unwrap());
        assert!(!failures.allow(address("192.0.2.1"), now));
    }
}
