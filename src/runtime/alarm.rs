//! A timer with microsecond resolution. Tokio's own timer rounds up to the next millisecond, which is a third of the time that a
//! commit takes.
//!
//! On Linux it is a `timerfd`, elsewhere tokio's timer. Invariant: it never fires early.

use tokio::time::{Instant, sleep_until};

#[cfg(target_os = "linux")]
use self::timer::Timer;

/// Waits for one instant at a time.
pub struct Alarm {
    /// `None` if the kernel refuses one.
    #[cfg(target_os = "linux")]
    timer: Option<Timer>,
}

impl Alarm {
    /// Needs a tokio runtime.
    pub fn new() -> Self {
        Self {
            #[cfg(target_os = "linux")]
            timer: Timer::new().ok(),
        }
    }

    /// Completes at `instant`, or at once if it has passed.
    pub async fn at(&self, instant: Instant) {
        // Without this, instants that have passed would starve the other tasks.
        tokio::task::coop::consume_budget().await;
        #[cfg(target_os = "linux")]
        if let Some(timer) = &self.timer
            && timer.at(instant).await.is_ok()
        {
            return;
        }
        sleep_until(instant).await;
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

    /// A timerfd that is set to zero is disarmed.
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
            reason = "the replacement is unsafe; its requirement holds: a `File` keeps one open descriptor for its whole life"
        )]
        pub(super) fn new() -> io::Result<Self> {
            let flags = TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC;
            let file = TimerFd::new(ClockId::CLOCK_MONOTONIC, flags)?;
            Ok(Self(AsyncFd::new(File(file))?))
        }

        pub(super) async fn at(&self, instant: Instant) -> io::Result<()> {
            let left = instant.saturating_duration_since(Instant::now());
            let expiration = Expiration::OneShot(TimeSpec::from_duration(left.max(AT_ONCE)));
            let File(file) = self.0.get_ref();
            file.set(expiration, TimerSetTimeFlags::empty())?;
            // The file may still be readable from an earlier wait that was dropped.
            while Instant::now() < instant {
                self.0.readable().await?.clear_ready();
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn it_never_fires_early() {
        let alarm = Alarm::new();
        for millis in [3, 0, 1, 7] {
            let instant = Instant::now() + Duration::from_millis(millis);
            alarm.at(instant).await;
            assert!(Instant::now() >= instant);
        }
        alarm.at(Instant::now()).await;
    }

    #[tokio::test]
    async fn a_wait_that_was_dropped_does_not_end_the_next_one_early() {
        let alarm = Alarm::new();
        // Polled once; again if this machine let the instant pass before that.
        let mut dropped = Instant::now();
        while alarm.at(dropped).now_or_never().is_some() {
            dropped = Instant::now() + Duration::from_millis(2);
        }
        sleep_until(dropped + Duration::from_millis(2)).await; // it has fired meanwhile
        let instant = Instant::now() + Duration::from_millis(5);
        alarm.at(instant).await;
        assert!(Instant::now() >= instant);
    }
}
