//! Every bound of the schedule, with its reason; asserted against each other where one rests on another.

use std::time::Duration;

/// Visits of one row in one statement: a pause waits for no more than these (some 25 ms on two small cores).
pub const VISITS_PER_ROW: i64 = 1_000;
/// Visits in one statement.
pub const VISITS_PER_BATCH: i64 = 10_000;
/// Rows in one statement.
pub const ROWS_PER_BATCH: usize = 10_000;
/// Rows read by one statement. A full sync takes as many statements as that makes, and edited rows are read between them.
pub const ROWS_PER_READ: usize = 5_000;
/// Rows that are looked at within a second for people and metrics: of more rows each look takes several seconds.
pub const ROWS_PER_LOOK: usize = 20_000;
/// Rows whose counts are compared by one statement, and the visits they may have stored, so that it stays under 500 ms.
pub const ROWS_PER_RECONCILIATION: usize = 500;
/// See [`ROWS_PER_RECONCILIATION`].
pub const VISITS_PER_RECONCILIATION: i64 = 500_000;
/// Rows written back by one statement.
pub const ROWS_PER_WRITE_BACK: usize = 100;

/// A row fires once in this time, in microseconds of DB time.
pub const FIRE_PERIOD_US: i64 = 1_000_000;
/// The finest spacing of statements within a second, in microseconds: [`FIRE_PERIOD_US`] holds [`SLOTS`] of them.
pub const SLOT_US: i64 = 20_000;
/// Slots in a second at the finest spacing.
pub const SLOTS: i64 = FIRE_PERIOD_US / SLOT_US;
/// Running rows that share one slot before the rows are spread over more of them: each waits for the others of its batch, some
/// 30 µs a row, and each further statement costs the server a commit.
pub const ROWS_PER_SLOT: usize = 50;

/// How far back a late batch's visits are dated at the most, in microseconds.
pub const BACKDATED_US: i64 = 120_000_000;

/// Changed rows are gathered for this long before they are read.
pub const COALESCE: Duration = Duration::from_millis(20);
/// A sync while Realtime is live: what has changed since the last one is read.
pub const SYNC_EVERY: Duration = Duration::from_secs(30);
/// A sync while it is not.
pub const SYNC_EVERY_BLIND: Duration = Duration::from_secs(2);
/// A sync reads every row at the latest after this time: only so are deleted rows found that nobody told of and that owe
/// nothing (a batch of one that owes something is refused, and heals the schedule at once).
pub const SYNC_FULL_EVERY: Duration = Duration::from_secs(600);
/// Counts are compared with what is stored.
pub const RECONCILE_EVERY: Duration = Duration::from_secs(300);
/// … and those of a row that rests.
pub const RECONCILE_RESTING_EVERY: Duration = Duration::from_secs(86_400);
/// The agent is seen, the control row is read, the clock is measured.
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(1);

/// The first wait for a row that somebody holds; it doubles up to [`LOCKED_RETRY_MAX`].
pub const LOCKED_RETRY_MIN: Duration = Duration::from_millis(50);
/// See [`LOCKED_RETRY_MIN`].
pub const LOCKED_RETRY_MAX: Duration = Duration::from_secs(1);
/// A row whose insert fails is tried again.
pub const INVALID_RETRY: Duration = Duration::from_secs(60);
/// A row that alone was refused by the schema is tried again, to see whether others got through meanwhile.
pub const SUSPECT_RETRY: Duration = Duration::from_secs(2);
/// An agent that was not seen for so long by DB time has lost its rows to the others.
pub const AGENT_GONE_AFTER: Duration = Duration::from_millis(2_500);
/// A batch that is not answered for so long makes the agent say that it does not serve.
pub const SERVES_WITHIN: Duration = Duration::from_millis(2_500);
/// Waits after a statement that found the database away: the first, and the longest.
pub const DATABASE_RETRY_MIN: Duration = Duration::from_millis(200);
/// See [`DATABASE_RETRY_MIN`].
pub const DATABASE_RETRY_MAX: Duration = Duration::from_secs(10);

/// Each running row is written back this often at the most.
pub const WRITE_BACK_EVERY: Duration = Duration::from_secs(5);
/// … and this often where no publication has the table and only broadcasts are listened to: nobody hears of it.
pub const WRITE_BACK_EVERY_UNHEARD: Duration = Duration::from_secs(1);
/// Write-backs that may come at once after a quiet time.
pub const WRITE_BACK_BURST: i64 = 20;
/// Rows that completed are written back at once, up to so many a second.
pub const COMPLETIONS_PER_SECOND: i64 = 10;

/// A write-back, a touched canary or a repaired change must be heard of within this time.
pub const ECHO_WITHIN: Duration = Duration::from_secs(10);
/// The canary is touched when nothing was written back for so long.
pub const CANARY_EVERY: Duration = Duration::from_secs(60);
/// Rejoins for a missing echo keep this distance.
pub const REJOIN_EVERY: Duration = Duration::from_secs(60);
/// Echoes that are waited for at once; further ones are not, since one that arrives proves the channel.
pub const ECHOES_AWAITED: usize = 256;

const _: () = assert!(FIRE_PERIOD_US % SLOT_US == 0);
const _: () = assert!(VISITS_PER_ROW <= VISITS_PER_BATCH);
const _: () = assert!(2 * HEARTBEAT_EVERY.as_millis() < AGENT_GONE_AFTER.as_millis());
const _: () = assert!(SYNC_EVERY_BLIND.as_secs() < SYNC_EVERY.as_secs());
