//! What wakes the loop, to the microsecond: tokio's own timer rounds up to its next millisecond, which is a third of the time
//! that a commit takes.
//!
//! Linux has a timer that is a file (`timerfd_create`); elsewhere it is tokio's.

use tokio::time::{Instant, sleep_until};

#[cfg(target_os = "linux")]
use self::timer::Timer;

/// Rings at one moment at a time.
pub struct Alarm {
    /// `None` where the kernel gives us none.
    #[cfg(target_os = "linux")]
    timer: Option<Timer>,
}

impl Alarm {
    /// An alarm that nothing has been asked of; needs a runtime.
    pub fn new() -> Self {
        Self {
            #[cfg(target_os = "linux")]
            timer: Timer::new().ok(),
        }
    }

    /// Comes back at that moment, or as soon after it as can be.
    pub async fn at(&self, moment: Instant) {
        tokio::task::coop::consume_budget().await; // a moment that has passed lets others run all the same
        #[cfg(target_os = "linux")]
        if let Some(timer) = &self.timer
            && timer.at(moment).await.is_ok()
        {
            return;
        }
        sleep_until(moment).await;
    }
}

#[cfg(target_os = "linux")]
mod timer {
    use std::io;
    use std::os::fd::{AsFd as _, AsRawFd, RawFd};
    use std::time::Duration;

    use nix::sys::time::TimeSpec;
    use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
    use tokio::io::unix::AsyncFd;
    use tokio::time::Instant;

    /// A moment that has passed: a timer that is set to zero never rings.
    const AT_ONCE: Duration = Duration::from_nanos(1);

    pub(super) struct Timer(AsyncFd<File>);

    struct File(TimerFd);

    impl AsRawFd for File {
        fn as_raw_fd(&self) -> RawFd {
            self.0.as_fd().as_raw_fd()
        }
    }

    impl Timer {
        #[expect(
            deprecated,
            reason = "what replaces it is unsafe; what it asks for holds: a `File` is open, and the same, for as long as it lives"
        )]
        pub(super) fn new() -> io::Result<Self> {
            let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
            let file = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
            Ok(Self(AsyncFd::new(File(file))?))
        }

        pub(super) async fn at(&self, moment: Instant) -> io::Result<()> {
            let left = moment.saturating_duration_since(Instant::now());
            let rings = Expiration::OneShot(TimeSpec::from_duration(left.max(AT_ONCE)));
            let File(file) = self.0.get_ref();
            file.set(rings, TimerSetTimeFlags::empty())?;
            // It may still be told of an earlier ring that nobody waited for.
            while Instant::now() < moment {
                self.0.readable().await?.clear_ready();
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn it_rings_at_each_moment_and_never_before_it() {
        let alarm = Alarm::new();
        for millis in [3, 0, 1, 7] {
            let moment = Instant::now() + Duration::from_millis(millis);
            alarm.at(moment).await;
            assert!(Instant::now() >= moment);
        }
        alarm.at(Instant::now()).await;
    }

    #[tokio::test]
    async fn a_ring_that_nobody_waited_for_is_not_taken_for_the_next_one() {
        let alarm = Alarm::new();
        let soon = Instant::now() + Duration::from_millis(2);
        let given_up = tokio::time::timeout(Duration::ZERO, alarm.at(soon)).await;
        assert!(given_up.is_err());
        sleep_until(soon + Duration::from_millis(2)).await; // it has rung meanwhile
        let later = Instant::now() + Duration::from_millis(5);
        alarm.at(later).await;
        assert!(Instant::now() >= later);
    }
}
