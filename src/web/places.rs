//! The places for connections: how each one stands, and which one makes room.
//!
//! Every connection is taken. Where all places are taken, the one whose peer has kept us waiting for longest is closed for the
//! newcomer: it owes a request, the rest of one, or the reading of its answer. What comes bit by bit counts for nothing until
//! a request is whole, so whoever asks at once is answered, however many others only hold on.
//!
//! Owns no socket: a connection is told to leave, and its task obeys.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How a connection stands. The first of these makes room first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Standing {
    /// Its peer's turn: to send a request, or to read the answer.
    Waits,
    /// Our turn: its request is whole, and not answered yet.
    Answers,
    /// It is told what changes for as long as it likes; such ones have a bound of their own.
    Listens,
}

struct Seat {
    standing: Standing,
    since: Instant,
    leave: CancellationToken,
}

/// Who sits where.
#[derive(Default)]
struct Table {
    seats: BTreeMap<u64, Seat>,
    taken_ever: u64,
}

impl Table {
    fn take(&mut self, now: Instant) -> (u64, CancellationToken) {
        let leave = CancellationToken::new();
        let seat = Seat {
            standing: Standing::Waits,
            since: now,
            leave: leave.clone(),
        };
        self.taken_ever += 1;
        self.seats.insert(self.taken_ever, seat);
        (self.taken_ever, leave)
    }

    fn stands(&mut self, number: u64, standing: Standing, now: Instant) {
        if let Some(seat) = self.seats.get_mut(&number) {
            seat.standing = standing;
            seat.since = now;
        }
    }

    /// The peer's turn again, unless the connection has come to stand otherwise meanwhile.
    fn stood(&mut self, number: u64, standing: Standing, now: Instant) {
        let seat = self.seats.get(&number);
        if seat.is_some_and(|seat| seat.standing == standing) {
            self.stands(number, Standing::Waits, now);
        }
    }

    /// The one that leaves, if one must.
    fn longest(&self) -> Option<u64> {
        let seats = self.seats.iter();
        let longest = seats.min_by_key(|(number, seat)| (seat.standing, seat.since, **number));
        longest.map(|(number, _)| *number)
    }

    fn make_room(&mut self) {
        let seat = self.longest().and_then(|one| self.seats.remove(&one));
        if let Some(seat) = seat {
            seat.leave.cancel();
        }
    }
}

/// All places.
#[derive(Clone, Default)]
pub struct Places(Arc<Mutex<Table>>);

impl Places {
    /// A place for one more.
    pub fn take(&self) -> Place {
        let (number, leave) = self.table().take(Instant::now());
        Place(Arc::new(Taken {
            places: self.clone(),
            number,
            leave,
        }))
    }

    /// Sends one away if so many are taken; its task ends soon.
    pub fn make_room(&self, most: usize) {
        let mut table = self.table();
        if table.seats.len() >= most {
            table.make_room();
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one connection; free again when nobody has it any more.
#[derive(Clone)]
pub struct Place(Arc<Taken>);

struct Taken {
    places: Places,
    number: u64,
    leave: CancellationToken,
}

impl Place {
    /// Once it must leave for another.
    pub async fn leaves(&self) {
        self.0.leave.cancelled().await;
    }

    /// Stands like that until what this gives is dropped.
    pub fn during(&self, standing: Standing) -> During {
        let Taken { places, number, .. } = &*self.0;
        places.table().stands(*number, standing, Instant::now());
        During {
            place: self.clone(),
            standing,
        }
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.places.table().seats.remove(&self.number);
    }
}

/// See [`Place::during`].
pub struct During {
    place: Place,
    standing: Standing,
}

impl Drop for During {
    fn drop(&mut self) {
        let Taken { places, number, .. } = &*self.place.0;
        places.table().stood(*number, self.standing, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Standing::{Answers, Listens, Waits};
    use super::*;

    /// A table with one seat for each, taken in this order, a second apart.
    fn table(standings: &[Standing]) -> (Table, Instant) {
        let mut table = Table::default();
        let mut now = Instant::now();
        for standing in standings {
            let (number, _) = table.take(now);
            table.stands(number, *standing, now);
            now += Duration::from_secs(1);
        }
        (table, now)
    }

    #[test]
    fn who_has_kept_us_waiting_for_longest_makes_room() {
        let (mut table, now) = table(&[Waits, Waits, Waits]);
        assert_eq!(table.longest(), Some(1));
        table.stands(1, Answers, now);
        assert_eq!(table.longest(), Some(2), "the first one is being answered");
        table.stood(1, Answers, now + Duration::from_secs(1));
        table.make_room();
        table.make_room();
        assert_eq!(table.longest(), Some(1), "it has asked last");
        assert_eq!(table.seats.len(), 1);
    }

    #[test]
    fn a_newcomer_outstays_everyone_who_waits() {
        let (mut table, now) = table(&[Waits; 256]);
        let (newcomer, leave) = table.take(now);
        for _ in 0..256 {
            assert_ne!(table.longest(), Some(newcomer));
            table.make_room();
        }
        assert_eq!(table.longest(), Some(newcomer));
        assert!(!leave.is_cancelled());
    }

    #[test]
    fn who_is_being_answered_or_listens_stays_while_anybody_waits() {
        let (mut table, _) = table(&[Listens, Answers, Listens, Waits]);
        for goes in [4, 2, 1, 3] {
            assert_eq!(table.longest(), Some(goes));
            table.make_room();
        }
        assert_eq!(table.longest(), None);
        table.make_room();
    }

    #[test]
    fn who_began_to_listen_listens_on_when_its_request_has_been_answered() {
        let (mut table, now) = table(&[Waits, Waits]);
        table.stands(1, Answers, now);
        table.stands(1, Listens, now);
        table.stood(1, Answers, now);
        table.make_room();
        assert_eq!(table.longest(), Some(1));
        assert_eq!(table.seats[&1].standing, Listens);
        table.stood(1, Listens, now);
        assert_eq!(table.seats[&1].standing, Waits);
    }

    #[test]
    fn whoever_makes_room_is_told_and_a_place_that_nobody_has_is_free() {
        let places = Places::default();
        let (first, second) = (places.take(), places.take());
        places.make_room(3);
        assert!(!first.0.leave.is_cancelled());
        places.make_room(2);
        assert!(first.0.leave.is_cancelled() && !second.0.leave.is_cancelled());
        let answering = second.during(Answers);
        drop(second);
        assert_eq!(places.table().seats.len(), 1, "its answer has it still");
        drop(answering);
        assert_eq!(places.table().seats.len(), 0);
    }
}
