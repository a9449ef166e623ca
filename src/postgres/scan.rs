//! Every row, in parts, for the reader of an agent.
//!
//! A table that fits into one part is read by one statement. For a larger one a single COPY goes through both tables once,
//! over a connection of its own: while the loop takes one part in, the next is taken apart here, and the database is at the
//! one after that; edited rows are read between them over the reader's connection. Through a transaction pooler, or where no
//! further connection is to be had, each further part is a statement of its own, by id.

use std::time::Duration;

use futures_util::TryStreamExt as _;
use sqlx::error::BoxDynError;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::connection::Connection;
use super::failure::{ErrorKind, Failure};
use super::reconnect::{Database, with_timeout};
use super::rows::{self, Cells, Rows};
use crate::domain::agent::ReadRequest;
use crate::domain::limits::ROWS_PER_READ;
use crate::domain::schedule::RowRead;

/// Parts that wait until somebody asks for them.
const PARTS_AHEAD: usize = 1;
/// A part comes within this time, however slowly its rows trickle in.
const PART_WITHIN: Duration = Duration::from_secs(40);
/// How the session of a scan is bounded. A scan waits between two parts for as long as the loop takes, and each wait of ours
/// for the database has its own bound; but an agent that is frozen must not hold its lock on the table for ever.
const BOUNDS: &str = "set statement_timeout = 0; set tcp_user_timeout = '20s'";

/// Reads rows by one statement, or every row part by part.
pub struct Reader {
    database: Database,
    /// The look at every row that is under way.
    look: Option<Look>,
    /// The last scan did not come to its first part; the next look goes by id.
    is_hindered: bool,
}

/// How a look goes on.
enum Look {
    /// After its first part, which ended with this row.
    Begun(Uuid),
    ById,
    Scan(Scan),
}

impl Reader {
    /// A reader that has no look under way.
    pub fn new(database: Database) -> Self {
        Self {
            database,
            look: None,
            is_hindered: false,
        }
    }

    /// Ends the look that is under way. To be called whenever something could not be read: whoever has to wait, or to start
    /// anew, holds no lock and no snapshot meanwhile.
    pub fn forget(&mut self) {
        self.look = None;
    }

    /// Reads a part. [`ReadRequest::After`] goes on with the look that is under way; where that is over, it is an error.
    pub async fn read(
        &mut self,
        connection: &mut Connection,
        what: &ReadRequest,
    ) -> Result<Rows, Failure> {
        match what {
            ReadRequest::All => {
                let first = with_timeout(rows::read(connection, what)).await?;
                self.look = first.more_after.map(Look::Begun);
                Ok(first)
            }
            ReadRequest::After(_) => self.go_on(connection, what).await,
            ReadRequest::Rows(_) | ReadRequest::Since(_) => {
                with_timeout(rows::read(connection, what)).await
            }
        }
    }

    async fn go_on(
        &mut self,
        connection: &mut Connection,
        what: &ReadRequest,
    ) -> Result<Rows, Failure> {
        let look = self.look.take();
        let mut look = match look.ok_or_else(|| Failure::new(ErrorKind::Lost, CUT_SHORT))? {
            Look::Begun(last) => self.after_the_first(last).await,
            look @ (Look::ById | Look::Scan(_)) => look,
        };
        let part = match &mut look {
            Look::Scan(scan) => {
                let rows = scan.next().await?;
                self.is_hindered = false;
                let more_after = rows.last().map(|read| read.row.id);
                Rows {
                    more_after: more_after.filter(|_| rows.len() >= ROWS_PER_READ),
                    rows,
                    db: with_timeout(rows::clock(connection)).await?, // those of the part are older than the call
                }
            }
            Look::ById | Look::Begun(_) => with_timeout(rows::read(connection, what)).await?,
        };
        self.look = part.more_after.map(|_| look);
        Ok(part)
    }

    /// Whatever keeps a further connection from us, the reader's own serves as well.
    async fn after_the_first(&mut self, last: Uuid) -> Look {
        if self.database.is_pooled() || std::mem::take(&mut self.is_hindered) {
            return Look::ById;
        }
        let scan = Scan::begin(&self.database, last).await;
        self.is_hindered = scan.is_ok(); // until its first part is there
        scan.map_or(Look::ById, Look::Scan)
    }
}

const CUT_SHORT: &str = "the look at every row was cut short";

/// One COPY that is under way; dropped, it ends.
struct Scan {
    parts: mpsc::Receiver<Result<Vec<RowRead>, Failure>>,
    _task: JoinSet<()>,
}

impl Scan {
    async fn begin(database: &Database, after: Uuid) -> Result<Self, Failure> {
        let (mut connection, counted) = database.connect_counted().await?;
        with_timeout(sqlx::raw_sql(BOUNDS).execute(connection.simple())).await?;
        let (parts_in, parts) = mpsc::channel(PARTS_AHEAD);
        let mut task = JoinSet::new();
        task.spawn(async move {
            if let Err(failure) = scan(&mut connection, after, &parts_in).await {
                // Whoever has dropped the scan wants to know nothing.
                let _told = parts_in.send(Err(failure)).await.is_ok();
            }
            // The server notices a lost connection by itself.
            let _said = with_timeout(connection.close()).await.is_ok();
            drop(counted);
        });
        Ok(Self { parts, _task: task })
    }

    async fn next(&mut self) -> Result<Vec<RowRead>, Failure> {
        let part = tokio::time::timeout(PART_WITHIN, self.parts.recv()).await;
        let part =
            part.map_err(|_elapsed| Failure::new(ErrorKind::Lost, "no further rows within 40 s"))?;
        part.ok_or_else(|| Failure::new(ErrorKind::Lost, CUT_SHORT))?
    }
}

/// The last part is the one that is not full.
async fn scan(
    connection: &mut Connection,
    after: Uuid,
    parts: &mpsc::Sender<Result<Vec<RowRead>, Failure>>,
) -> Result<(), Failure> {
    let copy = format!(
        "copy ({} '{after}') to stdout (format binary)",
        rows::ALL_AFTER
    );
    let mut lines = with_timeout(connection.simple().copy_out_raw(&copy)).await?;
    loop {
        let mut part = Vec::with_capacity(ROWS_PER_READ);
        while part.len() < ROWS_PER_READ
            && let Some(line) = with_timeout(lines.try_next()).await?
        {
            part.extend(row(&line).map_err(|error| Failure::from(sqlx::Error::Decode(error)))?);
        }
        let last = part.len() < ROWS_PER_READ;
        part.sort_unstable_by_key(|read: &RowRead| read.row.id);
        if parts.send(Ok(part)).await.is_err() || last {
            return Ok(());
        }
    }
}

/// What every COPY in the binary format begins with: signature, flags, and the length of what may follow them.
///
/// Source: PostgreSQL, COPY, "Binary Format".
const HEADER: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// Stands for the number of cells after the last row.
const TRAILER: i16 = -1;

/// Takes a message apart; `None`: it is no row, but the end. The server sends each row in a message of its own (PostgreSQL,
/// "Message Formats", `CopyData`).
fn row(message: &[u8]) -> Result<Option<RowRead>, BoxDynError> {
    let line = message.strip_prefix(HEADER).unwrap_or(message);
    let (count, cells) = line
        .split_first_chunk()
        .ok_or("a line of COPY is cut short")?;
    if i16::from_be_bytes(*count) == TRAILER {
        return Ok(None);
    }
    rows::row(&mut Line { cells }).map(Some)
}

/// The cells of a row in a COPY.
struct Line<'m> {
    cells: &'m [u8],
}

impl Cells for Line<'_> {
    fn next(&mut self) -> Result<Option<&[u8]>, BoxDynError> {
        let cut_short = "a cell of COPY is cut short";
        let (length, rest) = self.cells.split_first_chunk().ok_or(cut_short)?;
        let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else {
            self.cells = rest;
            return Ok(None); // -1: a null
        };
        let (cell, rest) = rest.split_at_checked(length).ok_or(cut_short)?;
        self.cells = rest;
        Ok(Some(cell))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_is_cut_short_is_an_error_and_no_row() {
        let cells: &[&[u8]] = &[&[7; 16], &[8; 16], &9_i64.to_be_bytes(), &[1]];
        let mut message = [HEADER, &19_i16.to_be_bytes()].concat();
        for cell in cells {
            message.extend(i32::try_from(cell.len()).expect("short").to_be_bytes());
            message.extend(*cell);
        }
        message.extend([0xff; 4].repeat(15)); // the rest is null
        let read = row(&message).expect("whole").expect("a row");
        assert_eq!(read.row.id, Uuid::from_bytes([7; 16]));
        assert_eq!((read.row.is_active, read.progress), (Some(true), None));
        for end in HEADER.len()..message.len() {
            assert!(row(&message[..end]).is_err(), "cut at {end}");
        }
    }

    #[test]
    fn the_end_of_a_copy_is_no_row_also_where_nothing_came_before_it() {
        assert_eq!(row(&[0xff, 0xff]).expect("the end"), None);
        assert_eq!(
            row(&[HEADER, &[0xff, 0xff]].concat()).expect("the end"),
            None
        );
    }
}
